"""Django's database layer on psycopg 3, with the pool that it has since 5.1."""
import django
import harness
from django.conf import settings

OPTIONS = {"sslmode": "verify-full", "sslrootcert": harness.CA, "connect_timeout": 20}


def database(options):
    return {
        "ENGINE": "django.db.backends.postgresql", "HOST": harness.HOST, "PORT": harness.PORT, "USER": "app", "PASSWORD": "app",
        "NAME": "app", "OPTIONS": OPTIONS | options,
    }  # fmt: skip


settings.configure(DATABASES={
    "default": database({}), "bound": database({"channel_binding": "require"}), "prepared": database({"prepare_threshold": 0}),
    "pooled": database({"pool": {"min_size": 1, "max_size": harness.CONNECTIONS, "timeout": 60}}),
})  # fmt: skip
django.setup()
from django.db import connections, transaction  # noqa: E402


def value(connection, query, parameters=None):
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return cursor.fetchone()[0]


def tls(name="default"):
    harness.equal(value(connections[name], "SELECT 1"), 1, "the answer")


def cancel():
    connection = connections.create_connection("default")
    connection.inc_thread_sharing()
    connection.ensure_connection()
    driver = connection.connection
    harness.cancelled(lambda: value(connection, harness.SLEEP), driver.cancel_safe, lambda error: error.__cause__.sqlstate)
    harness.equal(value(connection, "SELECT 1"), 1, "the next answer")
    connection.close()


def copy():
    with connections["default"].cursor() as cursor:
        cursor.execute("TRUNCATE copied")
        with cursor.copy(harness.COPY_IN) as sink:
            sink.write(harness.LINES)
        with cursor.copy(harness.COPY_OUT) as source:
            harness.equal(b"".join(map(bytes, source)).decode(), harness.LINES, "what COPY brings out")


def prepared():
    one, two = connections.create_connection("prepared"), connections.create_connection("prepared")
    for number in range(harness.TIMES):
        answers = [value(connection, f"SELECT %s::int + {add}", [number]) for add, connection in enumerate((one, two))]
        harness.equal(answers, [number, number + 1], "answers")
    one.close()
    two.close()


def in_transaction(query, parameters=None):
    """In this thread, with a connection from the pool that goes back to it."""
    try:
        with transaction.atomic(using="pooled"), connections["pooled"].cursor() as cursor:
            cursor.execute(query, parameters)
    finally:
        connections["pooled"].close()


def pooled():
    before = value(connections["default"], harness.COUNT)
    harness.in_threads(lambda _: in_transaction(harness.ADD), harness.TASKS)
    harness.equal(value(connections["default"], harness.COUNT), before + harness.TASKS, "the counter")


def writes():
    harness.write(lambda *row: in_transaction("INSERT INTO written VALUES (%s, %s)", row))
    connections["pooled"].close_pool()


checks = {
    "tls": tls, "binding": lambda: tls("bound"), "cancel": cancel, "copy": copy, "prepared": prepared, "pool": pooled,
}  # fmt: skip
harness.main(django.__version__, checks, writes)
connections["pooled"].close_pool()
