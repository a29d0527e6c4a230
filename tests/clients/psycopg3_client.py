"""psycopg 3 with psycopg_pool."""
import harness
import psycopg
from psycopg_pool import ConnectionPool


def connect(**more):
    return psycopg.connect(harness.DSN, autocommit=True, **more)


def value(connection, query, parameters=None, **more):
    return connection.execute(query, parameters, **more).fetchone()[0]


def tls():
    with connect() as connection:
        harness.equal(connection.pgconn.ssl_in_use, True, "TLS")


def binding():
    with connect(channel_binding="require") as connection:
        harness.equal(value(connection, "SELECT 1"), 1, "the answer")


def cancel():
    with connect() as connection:
        harness.cancelled(lambda: value(connection, harness.SLEEP), connection.cancel_safe, lambda error: error.sqlstate)
        harness.equal(value(connection, "SELECT 1"), 1, "the next answer")


def copy():
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute("TRUNCATE copied")
        with cursor.copy(harness.COPY_IN) as sink:
            for row in harness.ROWS:
                sink.write_row(row)
        with cursor.copy(harness.COPY_OUT) as source:
            source.set_types(["int8", "text"])
            harness.equal(list(source.rows()), harness.ROWS, "what COPY brings out")


def prepared():
    with connect() as one, connect() as two:
        for number in range(harness.TIMES):
            answers = [value(connection, f"SELECT %s::int + {add}", [number], prepare=True) for add, connection in enumerate((one, two))]
            harness.equal(answers, [number, number + 1], "answers")


def new_pool():
    return ConnectionPool(harness.DSN, min_size=1, max_size=harness.CONNECTIONS, open=True)


def pooled():
    with new_pool() as connections:

        def task(_):
            with connections.connection() as connection:
                connection.execute(harness.ADD)

        harness.counted(connect, value, lambda: harness.in_threads(task, harness.TASKS))


def writes():
    with new_pool() as connections:

        def one(writer, number):
            with connections.connection() as connection:
                connection.execute("INSERT INTO written VALUES (%s, %s)", [writer, number])

        harness.write(one)


checks = {"tls": tls, "binding": binding, "cancel": cancel, "copy": copy, "prepared": prepared, "pool": pooled}
harness.main(psycopg.__version__, checks, writes)
