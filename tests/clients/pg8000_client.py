"""pg8000, its native interface. It has no pool, so each writer has a connection."""
import contextlib
import importlib.metadata
import io
import ssl
import threading

import harness
import pg8000.native


def connect():
    return pg8000.native.Connection("app", password="app", host=harness.HOST, port=harness.PORT, database="app", timeout=60,
                                    ssl_context=ssl.create_default_context(cafile=harness.CA))  # fmt: skip


def tls():
    with contextlib.closing(connect()) as connection:
        harness.equal(connection.run("SELECT 1"), [[1]], "the answer")


def copy():
    with contextlib.closing(connect()) as connection:
        connection.run("TRUNCATE copied")
        connection.run(harness.COPY_IN, stream=io.BytesIO(harness.LINES.encode()))
        out = io.BytesIO()
        connection.run(harness.COPY_OUT, stream=out)
        harness.equal(out.getvalue().decode(), harness.LINES, "what COPY brings out")


def prepared():
    with contextlib.closing(connect()) as one, contextlib.closing(connect()) as two:
        statements = [connection.prepare(f"SELECT :number + {add}") for add, connection in enumerate((one, two))]
        for number in range(harness.TIMES):
            harness.equal([statement.run(number=number) for statement in statements], [[[number]], [[number + 1]]], "answers")


def writes():
    mine = threading.local()

    def one(writer, number):
        if not hasattr(mine, "connection"):
            mine.connection = connect()
        try:
            mine.connection.run("INSERT INTO written VALUES (:writer, :number)", writer=writer, number=number)
        except Exception:
            del mine.connection
            raise

    harness.write(one)


checks = {
    "tls": tls, "binding": harness.cannot("cannot be required"), "cancel": harness.cannot("no way to cancel"),
    "copy": copy, "prepared": prepared, "pool": harness.cannot("none"),
}  # fmt: skip
harness.main(importlib.metadata.version("pg8000"), checks, writes)
