"""psqlODBC by unixODBC and Debian's pyodbc. Pools are the driver manager's, so each writer has a connection."""
import contextlib
import threading

import harness
import pyodbc

pyodbc.pooling = False


def connect(more=""):
    place = f"Driver={{PostgreSQL Unicode}};Servername={harness.HOST};Port={harness.PORT};Database=app;UID=app;PWD=app"
    return pyodbc.connect(f"{place};SSLmode=verify-full;pqopt={{sslrootcert={harness.CA}{more}}}", autocommit=True)


def value(connection, query, *parameters):
    return connection.execute(query, *parameters).fetchone()[0]


def tls(more=""):
    with contextlib.closing(connect(more)) as connection:
        harness.equal(value(connection, "SELECT 1"), 1, "the answer")


def cancel():
    with contextlib.closing(connect()) as connection:
        cursor = connection.cursor()
        harness.cancelled(lambda: cursor.execute(harness.SLEEP), cursor.cancel, lambda error: error.args[0])
        harness.equal(value(connection, "SELECT 1"), 1, "the next answer")


def prepared():
    with contextlib.closing(connect()) as one, contextlib.closing(connect()) as two:
        for number in range(harness.TIMES):
            answers = [value(connection, f"SELECT ?::int + {add}", number) for add, connection in enumerate((one, two))]
            harness.equal(answers, [number, number + 1], "answers")


def writes():
    mine = threading.local()

    def one(writer, number):
        if not hasattr(mine, "connection"):
            mine.connection = connect()
        try:
            mine.connection.execute("INSERT INTO written VALUES (?, ?)", writer, number)
        except Exception:
            del mine.connection
            raise

    harness.write(one)


checks = {
    "tls": tls, "binding": lambda: tls(" channel_binding=require"), "cancel": cancel, "copy": harness.cannot("not offered"),
    "prepared": prepared, "pool": harness.cannot("the driver manager's"),
}  # fmt: skip
with contextlib.closing(connect()) as first:
    version = first.getinfo(pyodbc.SQL_DRIVER_VER)
harness.main(version, checks, writes)
