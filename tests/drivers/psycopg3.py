"""psycopg 3 through both ports. The tests run it with HOST, CA and, for ParameterStatus, DIRECT_RW in the environment."""

import os
import threading
import psycopg

HOST, CA = os.environ["HOST"], os.environ["CA"]


def connect(port, **options):
    # verify-full: the name in the certificate is checked, the address is the router's.
    return psycopg.connect(
        host="localhost", hostaddr=HOST, port=port, user="app", password="app", dbname="app", sslmode="verify-full",
        sslrootcert=CA, autocommit=True, connect_timeout=10, **options)


def cancelled(connection):
    done = threading.Event()

    def ask():
        while not done.wait(0.05):
            connection.cancel()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        connection.execute("SELECT pg_sleep(30)")
        raise AssertionError("not cancelled")
    except psycopg.errors.QueryCanceled:
        pass
    finally:
        done.set()
        thread.join()


def reads(connection):
    assert connection.pgconn.ssl_in_use and connection.pgconn.used_password
    assert connection.execute("SELECT %s::int + 1", (41,)).fetchone() == (42,)
    for number in range(20):
        row = connection.execute("SELECT %s::int * 2, %s::text", (number, "é"), prepare=True).fetchone()
        assert row == (number * 2, "é")
    with connection.cursor(binary=True) as cursor:
        cursor.execute("SELECT g, g::text FROM generate_series(1, 10000) g")
        assert len(cursor.fetchall()) == 10000
    with connection.cursor().copy("COPY (SELECT g FROM generate_series(1, 10000) g) TO STDOUT") as copy:
        assert sum(int(row[0]) for row in copy.rows()) == 50005000
    with connection.pipeline():
        cursors = [connection.execute("SELECT %s::int", (number,)) for number in range(200)]
        assert [cursor.fetchone()[0] for cursor in cursors] == list(range(200))
    # An error in a pipeline, and the session goes on.
    try:
        with connection.pipeline():
            connection.execute("SELECT 1")
            connection.execute("SELECT 1 / 0")
            connection.execute("SELECT 2")
        raise AssertionError("no error")
    except psycopg.errors.DivisionByZero:
        pass
    with connection.transaction():
        with connection.cursor("named") as cursor:
            cursor.execute("SELECT g FROM generate_series(1, 1000) g")
            assert len(cursor.fetchmany(10)) == 10
    cancelled(connection)
    assert connection.execute("SELECT 'on we go'").fetchone() == ("on we go",)


def writes(connection):
    connection.execute("CREATE TEMP TABLE t (a int PRIMARY KEY, b text)")
    with connection.cursor().copy("COPY t FROM STDIN") as copy:
        for number in range(10000):
            copy.write_row((number, "ü" * 10))
    assert connection.execute("SELECT count(*), sum(a) FROM t").fetchone() == (10000, 49995000)
    try:
        with connection.cursor().copy("COPY t FROM STDIN") as copy:
            copy.write_row((1, "there already"))
        raise AssertionError("no error")
    except psycopg.errors.UniqueViolation:
        pass
    try:
        with connection.cursor().copy("COPY t FROM STDIN") as copy:
            copy.write_row((100000, "x"))
            raise KeyError("the program gives up")
    except KeyError:
        pass
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (10000,)
    connection.cursor().executemany("UPDATE t SET b = %s WHERE a = %s", [("x", n) for n in range(100)])
    assert connection.execute("SELECT count(*) FROM t WHERE b = 'x'").fetchone() == (100,)


def messages(connection):
    said = []
    connection.add_notice_handler(lambda notice: said.append(notice.message_primary))
    connection.execute("DO $$ BEGIN FOR i IN 1..1000 LOOP RAISE NOTICE 'n %', i; END LOOP; END $$")
    assert said == [f"n {number}" for number in range(1, 1001)]
    connection.execute("LISTEN psycopg3")
    with connect(6432) as other:
        other.execute("SELECT pg_notify('psycopg3', 'here')")
    assert next(connection.notifies()).payload == "here"


def two_phase(connection):
    connection.autocommit = False
    connection.tpc_begin("psycopg3 through trunkline")
    connection.execute("SELECT 1")
    connection.tpc_prepare()
    connection.tpc_rollback()
    connection.autocommit = True


NAMES = ("server_version server_encoding client_encoding application_name is_superuser session_authorization DateStyle "
         "IntervalStyle TimeZone integer_datetimes standard_conforming_strings default_transaction_read_only "
         "in_hot_standby").split()


def statuses(connection):
    return {name: connection.info.parameter_status(name) for name in NAMES}


def parameter_status(leader):
    """What the driver is told is what the server it is on tells it."""
    mine = dict(application_name="status", options="-c IntervalStyle=iso_8601 -c TimeZone=Asia/Tokyo", client_encoding="latin1")
    direct = psycopg.connect(host=leader, port=5432, user="app", password="app", dbname="app", **mine)
    with direct, connect(6432, **mine) as through:
        assert statuses(direct) == statuses(through), (statuses(direct), statuses(through))
        assert statuses(through)["TimeZone"] == "Asia/Tokyo"
        for name, value in (("TimeZone", "UTC"), ("application_name", "other"), ("client_encoding", "UTF8")):
            through.execute(f"SET {name} = '{value}'")
            assert through.info.parameter_status(name) == value
    with connect(6433, **mine) as standby:
        seen = statuses(standby)
        assert (seen["in_hot_standby"], seen["default_transaction_read_only"]) == ("on", "on"), seen
        assert (seen["TimeZone"], seen["IntervalStyle"], seen["client_encoding"]) == ("Asia/Tokyo", "iso_8601", "LATIN1")


with connect(6432) as connection:
    reads(connection)
    writes(connection)
    messages(connection)
    two_phase(connection)
with connect(6433) as connection:
    reads(connection)
    try:
        connection.execute("CREATE TABLE never (a int)")
        raise AssertionError("written on the read-only port")
    except psycopg.errors.ReadOnlySqlTransaction as error:
        assert error.sqlstate == "25006"
    assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
parameter_status(os.environ["LEADER"])
print("done")
