"""psycopg 3 with its pool, every statement prepared. Run with HOST, PORT, SCHEMA and TASKS; see tests/it/pooling/drivers.rs."""

import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
from psycopg_pool import ConnectionPool

HOST, PORT, SCHEMA = os.environ["HOST"], os.environ["PORT"], os.environ["SCHEMA"]
TASKS, LINES = int(os.environ["TASKS"]), 20
numbers = itertools.count(1)


def settle(connection):
    """What applications set once, after the login: each connection has values of its own."""
    connection.autocommit = True
    connection.tenant = f"{SCHEMA} {next(numbers)}"
    connection.execute("SELECT set_config('search_path', %s, false), set_config('app.tenant', %s, false)",
                       (SCHEMA, connection.tenant))


def own(connection):
    row = connection.execute(
        "SELECT current_setting('app.tenant'), (SELECT name FROM place), current_setting('statement_timeout')").fetchone()
    assert row == (connection.tenant, SCHEMA, "0"), (row, connection.tenant)


def transfer(connection, number):
    first, second = sorted((number % 8 + 1, (number + 3) % 8 + 1))
    with connection.transaction():
        rows = connection.execute(
            "SELECT id FROM account WHERE id IN (%s, %s) ORDER BY id FOR UPDATE", (first, second)).fetchall()
        assert rows == [(first,), (second,)], rows
        connection.execute("UPDATE account SET amount = amount - %s WHERE id = %s", (1, first))
        try:
            with connection.transaction():
                connection.execute("UPDATE account SET amount = amount - %s WHERE id = %s", (1000000, first))
            raise AssertionError("no error")
        except psycopg.errors.CheckViolation:
            pass
        connection.execute("UPDATE account SET amount = amount + %s WHERE id = %s", (1, second))


def errors(connection, number):
    try:
        with connection.transaction():
            connection.execute("INSERT INTO line VALUES (%s, %s)", (number, "of a transaction that fails"))
            connection.execute("INSERT INTO account VALUES (%s, %s)", (1, 1))
        raise AssertionError("no error")
    except psycopg.errors.UniqueViolation:
        pass
    try:
        with connection.transaction():
            connection.execute("SET LOCAL statement_timeout = '20ms'")
            connection.execute("SELECT pg_sleep(%s)", (30,))
        raise AssertionError("no time-out")
    except psycopg.errors.QueryCanceled:
        pass
    if number % 8 == 0:
        cancelled(connection)


def cancelled(connection):
    done = threading.Event()

    def ask():
        while not done.wait(0.02):
            connection.cancel_safe(timeout=10)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        connection.execute("SELECT pg_sleep(%s)", (30,))
        raise AssertionError("not cancelled")
    except psycopg.errors.QueryCanceled:
        pass
    finally:
        done.set()
        thread.join()


def copies(connection, number):
    with connection.transaction():
        with connection.cursor().copy("COPY line FROM STDIN") as copy:
            for line in range(LINES):
                copy.write_row((number, f"{line} ü"))
    with connection.cursor().copy("COPY (SELECT task, text FROM line WHERE task = %s) TO STDOUT", (number,)) as copy:
        assert sorted(row[1] for row in copy.rows()) == sorted(f"{line} ü" for line in range(LINES))
    with connection.transaction(), connection.cursor("named") as cursor:
        cursor.execute("SELECT text FROM line WHERE task = %s", (number,))
        assert len(cursor.fetchmany(5)) == 5 and len(cursor.fetchall()) == LINES - 5


def task(number):
    for part in range(4):
        with pool.connection() as connection:
            own(connection)
            for value in range(5):
                row = connection.execute("SELECT %s::int * 2, %s::text", (value, "é")).fetchone()
                assert row == (value * 2, "é"), row
            with connection.pipeline():
                cursors = [connection.execute("SELECT %s::int + %s", (value, number)) for value in range(10)]
                assert [cursor.fetchone()[0] for cursor in cursors] == [value + number for value in range(10)]
            [transfer, errors, copies, transfer][part](connection, number)
            own(connection)


def at_return(connection):
    connection.execute("DISCARD ALL")


with ConnectionPool(f"host={HOST} port={PORT} user=app password=app dbname=app sslmode=disable",
                    kwargs={"prepare_threshold": 0}, min_size=8, max_size=8, configure=settle, timeout=60) as pool:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(task, range(TASKS)))
    with pool.connection() as connection:
        assert connection.execute("SELECT count(*) FROM line").fetchone() == (TASKS * LINES,)

# A pool that throws everything away when a connection comes back.
with ConnectionPool(f"host={HOST} port={PORT} user=app password=app dbname=app sslmode=disable",
                    kwargs={"prepare_threshold": 0, "autocommit": True}, min_size=4, max_size=4, reset=at_return, timeout=60) as pool:
    def untidy(number):
        with pool.connection() as connection:
            row = connection.execute("SELECT current_setting('work_mem'), to_regclass('pg_temp.mine')").fetchone()
            assert row == ("4MB", None), row
            connection.execute("SELECT set_config('work_mem', %s, false)", ("7MB",))
            connection.execute("CREATE TEMPORARY TABLE mine (a int)")
            connection.execute("LISTEN mine")
            connection.execute("SELECT pg_advisory_lock(%s)", (number,))
            assert connection.execute("SELECT %s::int", (number,)).fetchone() == (number,)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(untidy, range(40)))
print("done")
