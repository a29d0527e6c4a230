"""Clients that write while the leader changes, and remember what was acknowledged."""
import threading
import time

import cluster
import psycopg


class Writers:
    """While it is entered, each writer inserts one row after another in a session of its own."""

    PAUSE = 0.05
    # A write whose outcome the router does not know; the session goes on.
    UNKNOWN = "08007"

    def __init__(self, connect, count):
        self.connect = connect
        self.acknowledged = []
        self.unknown = []
        self.errors = []
        self.longest_pause = 0.0
        self.last_server = {}
        self.counts = [0] * count
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=[number], daemon=True) for number in range(count)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        for thread in self.threads:
            thread.join(60)
        if any(thread.is_alive() for thread in self.threads):
            raise cluster.ClusterError("a writer does not end")

    def run(self, writer):
        try:
            with self.connect() as connection:
                while not self.ended.wait(self.PAUSE):
                    self.write(connection, writer)
        except psycopg.Error as error:
            self.errors.append(f"writer {writer} after {self.counts[writer]} writes: {error.sqlstate} {error}")

    def write(self, connection, writer):
        row = (writer, self.counts[writer])
        begun = time.monotonic()
        try:
            answer = connection.execute("INSERT INTO written VALUES (%s, %s) RETURNING host(inet_server_addr())", row)
            self.last_server[writer] = answer.fetchone()[0]
            self.acknowledged.append(row)
        except psycopg.OperationalError as error:
            if error.sqlstate != self.UNKNOWN:
                raise
            self.unknown.append(row)
        self.longest_pause = max(self.longest_pause, time.monotonic() - begun)
        self.counts[writer] += 1

    def await_more(self, writes):
        """Until each writer has done so many more; at once if one has failed."""
        wanted = [count + writes for count in self.counts]
        done = lambda: self.errors or all(count >= goal for count, goal in zip(self.counts, wanted, strict=True))
        cluster.Deadline(90).until(done, "the writers to go on")

    def servers(self):
        return set(self.last_server.values())
