"""What the programs for drivers in Python share: the rows, one line of JSON for each result, and writers.

`main` runs the checks (argument `checks`), or writes until the file STOP is there (`writes`). The environment has HOST,
PORT, CA, STOP, and ROUTE, the name of the router's route or `direct`. User, password and database are `app`.
"""
import asyncio
import contextlib
import json
import os
import sys
import threading
import time

HOST, PORT, CA = os.environ["HOST"], int(os.environ["PORT"]), os.environ["CA"]
WRITERS = 4
CONNECTIONS = 4
TASKS = 32
TIMES = 20
LIMIT = 30
SLEEP = f"SELECT pg_sleep({LIMIT})"
CANCELLED = "57014"
# Without what the text form of COPY escapes.
ROWS = [(number, f"words {number} é") for number in range(1000)]
LINES = "".join(f"{number}\t{words}\n" for number, words in ROWS)
COPY_IN, COPY_OUT = "COPY copied FROM STDIN", "COPY (SELECT * FROM copied ORDER BY id) TO STDOUT"
DSN = f"host={HOST} port={PORT} user=app password=app dbname=app sslmode=verify-full sslrootcert={CA} connect_timeout=20"
ADD = "UPDATE counted SET number = number + 1"
COUNT = "SELECT number FROM counted"


class Cannot(Exception):
    """The driver has no way to do this; why."""


def cannot(why):
    """A check that says so."""

    def check():
        raise Cannot(why)

    return check


def equal(found, wanted, what):
    if found != wanted:
        raise AssertionError(f"{what}: {found!r} and not {wanted!r}"[:300])


def say(**what):
    print(json.dumps(what), flush=True)


def until_ended(cancel, thread):
    """Cancels again and again: the first request may come before the statement runs."""
    end = time.monotonic() + LIMIT
    while thread.is_alive() and time.monotonic() < end:
        cancel()
        thread.join(0.2)
    equal(thread.is_alive(), False, "the statement runs on")


def cancelled(run, cancel, code):
    """RUN is a statement that lasts; CODE gives the SQLSTATE of its error."""
    seen = []

    def target():
        try:
            run()
        except Exception as error:
            seen.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    until_ended(cancel, thread)
    equal([code(error) for error in seen], [CANCELLED], f"SQLSTATE of {seen}")


def in_threads(function, count):
    """FUNCTION(number) in a thread of its own for each number; the first error is raised."""
    errors = []

    def target(number):
        try:
            function(number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=target, args=[number], daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT * 2)
    if errors:
        raise errors[0]
    equal(any(thread.is_alive() for thread in threads), False, "a thread does not end")


def counted(connect, value, tasks):
    """TASKS() adds one to the counter, TASKS times."""
    with contextlib.closing(connect()) as connection:
        before = value(connection, COUNT)
        tasks()
        equal(value(connection, COUNT), before + TASKS, "the counter")


def stopped():
    return os.path.exists(os.environ["STOP"])


def write(one):
    """ONE(writer, number) writes one row; each writer goes on until it is told to stop."""

    def run(writer):
        number = 0
        while not stopped():
            begun = time.monotonic()
            try:
                one(writer, number)
                say(wrote=[writer, number], seconds=round(time.monotonic() - begun, 3))
            except Exception as error:
                say(error=f"{type(error).__name__}: {error}".strip(), at=[writer, number])
            number += 1
            time.sleep(0.05)

    in_threads_for_long(run)


def in_threads_for_long(run):
    threads = [threading.Thread(target=run, args=[writer], daemon=True) for writer in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def write_async(one):
    """The same with tasks."""

    async def run(writer):
        number = 0
        while not stopped():
            begun = time.monotonic()
            try:
                await one(writer, number)
                say(wrote=[writer, number], seconds=round(time.monotonic() - begun, 3))
            except Exception as error:
                say(error=f"{type(error).__name__}: {error}".strip(), at=[writer, number])
            number += 1
            await asyncio.sleep(0.05)

    await asyncio.gather(*(run(writer) for writer in range(WRITERS)))


def main(version, checks, writes):
    """CHECKS are functions by name: tls, binding, cancel, copy, prepared, pool. Each may return a note."""
    say(version=version)
    if sys.argv[1] == "writes":
        writes()
        return
    for name, check in checks.items():
        try:
            result = check()
            say(check=name, result="ok", note=result or "")
        except Cannot as why:
            say(check=name, result="cannot", note=str(why))
        except Exception as error:
            say(check=name, result="failed", note=f"{type(error).__name__}: {error}".strip())


def in_loop(checks):
    """Checks that are coroutines."""
    run = lambda check: lambda: asyncio.run(asyncio.wait_for(check(), LIMIT * 2))
    return {name: run(check) if asyncio.iscoroutinefunction(check) else check for name, check in checks.items()}
