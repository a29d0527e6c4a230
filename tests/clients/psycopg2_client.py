"""psycopg2 with its ThreadedConnectionPool."""
import contextlib
import io
import threading

import harness
import psycopg2
from psycopg2 import pool


def connect(**more):
    connection = psycopg2.connect(harness.DSN, **more)
    connection.autocommit = True
    return connection


def value(connection, query, parameters=None):
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return cursor.fetchone()[0]


def tls():
    with contextlib.closing(connect()) as connection:
        harness.equal(connection.info.ssl_in_use, True, "TLS")


def binding():
    with contextlib.closing(connect(channel_binding="require")) as connection:
        harness.equal(value(connection, "SELECT 1"), 1, "the answer")


def cancel():
    with contextlib.closing(connect()) as connection:
        harness.cancelled(lambda: value(connection, harness.SLEEP), connection.cancel, lambda error: error.pgcode)
        harness.equal(value(connection, "SELECT 1"), 1, "the next answer")


def copy():
    with contextlib.closing(connect()) as connection, connection.cursor() as cursor:
        cursor.execute("TRUNCATE copied")
        cursor.copy_expert(harness.COPY_IN, io.StringIO(harness.LINES))
        out = io.StringIO()
        cursor.copy_expert(harness.COPY_OUT, out)
        harness.equal(out.getvalue(), harness.LINES, "what COPY brings out")


def prepared():
    """By statements of SQL: the driver has no others. They keep a server connection, so one session after the other."""
    for add in (0, 1):
        with contextlib.closing(connect()) as connection:
            with connection.cursor() as cursor:
                cursor.execute(f"PREPARE mine (int) AS SELECT $1 + {add}")
            for number in range(harness.TIMES):
                harness.equal(value(connection, "EXECUTE mine (%s)", [number]), number + add, "the answer")
    return "by `PREPARE`"


def new_pool():
    """It raises an error when it has no free connection, so tasks wait for their turn."""
    return pool.ThreadedConnectionPool(0, harness.CONNECTIONS, harness.DSN), threading.Semaphore(harness.CONNECTIONS)


@contextlib.contextmanager
def borrowed(connections, turns):
    with turns:
        connection = connections.getconn()
        try:
            with connection:
                yield connection
        finally:
            connections.putconn(connection)


def pooled():
    connections, turns = new_pool()

    def task(_):
        with borrowed(connections, turns) as connection, connection.cursor() as cursor:
            cursor.execute(harness.ADD)

    harness.counted(connect, value, lambda: harness.in_threads(task, harness.TASKS))
    connections.closeall()


def writes():
    connections, turns = new_pool()

    def one(writer, number):
        with borrowed(connections, turns) as connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO written VALUES (%s, %s)", [writer, number])

    harness.write(one)


checks = {"tls": tls, "binding": binding, "cancel": cancel, "copy": copy, "prepared": prepared, "pool": pooled}
harness.main(psycopg2.__version__.split()[0], checks, writes)
