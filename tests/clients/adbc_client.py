"""ADBC's driver for PostgreSQL. It has no pool, so each writer has a connection."""
import importlib.metadata
import threading

import adbc_driver_postgresql.dbapi as adbc
import harness
import pyarrow

URI = f"postgresql://app:app@{harness.HOST}:{harness.PORT}/app?sslmode=verify-full&sslrootcert={harness.CA}&connect_timeout=20"


def connect(more=""):
    return adbc.connect(URI + more, autocommit=True)


def value(connection, query, parameters=None):
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return cursor.fetchone()[0]


def tls():
    with connect() as connection:
        harness.equal(value(connection, "SELECT 1"), 1, "the answer")


def binding():
    with connect("&channel_binding=require") as connection:
        harness.equal(value(connection, "SELECT 1"), 1, "the answer")


def cancel():
    """A query without a result set: those with one are sent as COPY."""
    with connect() as connection, connection.cursor() as cursor:

        def run():
            cursor.execute(harness.SLEEP)
            cursor.fetchall()

        harness.cancelled(run, cursor.adbc_cancel, lambda error: error.sqlstate)
        harness.equal(value(connection, "SELECT 1"), 1, "the next answer")


def copy():
    """It sends a table by COPY, and fetches each result by COPY."""
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute("TRUNCATE copied")
        numbers, words = zip(*harness.ROWS, strict=True)
        table = pyarrow.table({"id": pyarrow.array(numbers, pyarrow.int64()), "words": pyarrow.array(words)})
        cursor.adbc_ingest("copied", table, mode="append")
        cursor.execute("SELECT * FROM copied ORDER BY id")
        harness.equal(cursor.fetchall(), harness.ROWS, "what COPY brings out")


def prepared():
    with connect() as one, connect() as two, one.cursor() as first, two.cursor() as second:
        for number in range(harness.TIMES):
            for add, cursor in enumerate((first, second)):
                cursor.execute(f"SELECT $1::int8 + {add}", [number])
                harness.equal(cursor.fetchone()[0], number + add, "the answer")


def writes():
    mine = threading.local()

    def one(writer, number):
        if not hasattr(mine, "connection"):
            mine.connection = connect()
        try:
            with mine.connection.cursor() as cursor:
                cursor.execute("INSERT INTO written VALUES ($1, $2)", [writer, number])
        except Exception:
            del mine.connection
            raise

    harness.write(one)


checks = {
    "tls": tls, "binding": binding, "cancel": cancel, "copy": copy, "prepared": prepared, "pool": harness.cannot("none"),
}  # fmt: skip
harness.main(importlib.metadata.version("adbc-driver-postgresql"), checks, writes)
