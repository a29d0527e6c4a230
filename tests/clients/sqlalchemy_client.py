"""SQLAlchemy with its QueuePool, on the driver that the second argument names."""
import sys

import harness
import sqlalchemy
from sqlalchemy import text

DRIVER = sys.argv[2]
URL = f"postgresql+{DRIVER}://app:app@{harness.HOST}:{harness.PORT}/app?sslmode=verify-full&sslrootcert={harness.CA}&connect_timeout=20"


def engine(more="", connections=harness.CONNECTIONS, **arguments):
    return sqlalchemy.create_engine(URL + more, pool_size=connections, max_overflow=0, **arguments)


def value(connection, query):
    return connection.execute(text(query)).scalar()


def tls(more=""):
    with engine(more).connect() as connection:
        harness.equal(value(connection, "SELECT 1"), 1, "the answer")


def cancel():
    with engine().connect() as connection:
        code = lambda error: getattr(error.orig, "sqlstate", None) or error.orig.pgcode
        driver = connection.connection.driver_connection
        harness.cancelled(lambda: value(connection, harness.SLEEP), driver.cancel, code)
        connection.rollback()
        harness.equal(value(connection, "SELECT 1"), 1, "the next answer")


def copy():
    return harness.cannot("the driver's")()


def prepared():
    """Psycopg 3 prepares what is executed often; psycopg2 never does."""
    if DRIVER != "psycopg":
        raise harness.Cannot("the driver has none")
    arguments = {"connect_args": {"prepare_threshold": 0}}
    with engine(**arguments).connect() as one, engine(**arguments).connect() as two:
        for number in range(harness.TIMES):
            # Each in a transaction of its own: with a pool of one connection at the router, the other would wait.
            for add, connection in enumerate((one, two)):
                answer = connection.execute(text(f"SELECT cast(:number AS int) + {add}"), {"number": number}).scalar()
                harness.equal(answer, number + add, "the answer")
                connection.rollback()


def pooled():
    connections = engine()

    def task(_):
        with connections.begin() as connection:
            connection.execute(text(harness.ADD))

    with engine(connections=1, isolation_level="AUTOCOMMIT").connect() as connection:
        before = value(connection, harness.COUNT)
        harness.in_threads(task, harness.TASKS)
        harness.equal(value(connection, harness.COUNT), before + harness.TASKS, "the counter")


def writes():
    connections = engine()

    def one(writer, number):
        with connections.begin() as connection:
            connection.execute(text("INSERT INTO written VALUES (:writer, :number)"), {"writer": writer, "number": number})

    harness.write(one)


checks = {
    "tls": tls, "binding": lambda: tls("&channel_binding=require"), "cancel": cancel, "copy": copy, "prepared": prepared, "pool": pooled,
}  # fmt: skip
harness.main(sqlalchemy.__version__, checks, writes)
