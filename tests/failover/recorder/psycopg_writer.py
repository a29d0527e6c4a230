"""psycopg 3 as a writer of the recorder; tests/failover/recorder/mod.rs says what all of them do, and how they are told."""

import logging
import os
import threading
import time
import psycopg

logging.getLogger("psycopg").setLevel(logging.ERROR)  # what a broken pipeline could not finish
PAUSE = int(os.environ["PAUSE_MS"]) / 1000
END = time.monotonic() + int(os.environ["LIMIT_S"])
INSERT = "INSERT INTO recorded (id) VALUES (%s)"
out, lock = open(os.environ["OUT"], "w"), threading.Lock()


def now():
    return time.time_ns() // 1000


def goes_on():
    return time.monotonic() < END and not os.path.exists(os.environ["STOP"])


def line(*fields):
    with lock:
        out.write("\t".join(str(field) for field in fields) + "\n")
        out.flush()


def told(error):
    code = getattr(error, "sqlstate", None) or "-"
    return code, f"{type(error).__name__}: {error}".replace("\t", " ").replace("\n", " ")


def is_fatal(error):
    return isinstance(error, psycopg.Error) and error.diag.severity_nonlocalized in ("FATAL", "PANIC")


def connect(writer):
    hosts = os.environ["HOSTS"].split(",")
    # verify-full: the name in the certificate is checked, the address is the router's.
    connection = psycopg.connect(
        host="localhost", hostaddr=hosts[writer % len(hosts)], port=os.environ["PORT"], user="app", password="app", dbname="app",
        sslmode="verify-full", sslrootcert=os.environ["CA"], require_auth="scram-sha-256", autocommit=True,
        connect_timeout=60, application_name="recorder")  # fmt: skip
    connection.prepare_threshold = None  # only where it says so
    return connection


def single(connection, ids, step):
    step("autocommit")
    connection.execute(f"INSERT INTO recorded (id) VALUES ({ids[0]})")


def prepared(connection, ids, step):
    step("autocommit")
    connection.execute(INSERT, (ids[0],), prepare=True)


def transaction(connection, ids, step):
    step("begin")
    connection.execute("BEGIN")
    for number in ids:
        step("statement")
        connection.execute(INSERT, (number,), prepare=True)
        time.sleep(PAUSE / 4)
    step("commit")
    if connection.execute("COMMIT").statusmessage != "COMMIT":
        raise RuntimeError("COMMIT was answered with ROLLBACK")


def pipelined(connection, ids, step):
    step("autocommit")
    with connection.pipeline():
        for number in ids:
            connection.execute(INSERT, (number,), prepare=True)


KINDS = [(single, 1), (transaction, 2), (prepared, 1), (pipelined, 3)]


def write(writer):
    connection, next_id, turn = None, writer << 32, writer
    while goes_on():
        began = now()
        if connection is None:
            try:
                connection = connect(writer)
                line("login", began, now(), writer, "done", "-", "")
            except Exception as error:
                line("login", began, now(), writer, "error", *told(error))
                time.sleep(PAUSE)
                continue
        kind, count = KINDS[turn % len(KINDS)]
        turn += 1
        ids = list(range(next_id + 1, next_id + 1 + count))
        next_id += count
        phase = []
        began = now()
        try:
            kind(connection, ids, phase.append)
            outcome, code, text = "done", "-", ""
        except Exception as error:
            outcome, (code, text) = "error", told(error)
            ended = now()
            try:
                if is_fatal(error):
                    connection.close()
                elif not connection.closed:
                    connection.rollback()
            except Exception:
                connection.close()
            if connection.closed:
                outcome, connection = "dead", None
        ended = now() if outcome == "done" else ended
        line("write", began, ended, writer, outcome, kind.__name__, ",".join(map(str, ids)), phase[-1], code, text)
        time.sleep(PAUSE)
    if connection:
        connection.close()


threads = [threading.Thread(target=write, args=(int(number),)) for number in os.environ["WRITERS"].split(",")]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
