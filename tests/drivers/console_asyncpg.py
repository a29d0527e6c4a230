"""asyncpg and psycopg with the console's views: typed answers, parameters of many types, prepared statements. The tests
run it with HOST and CA in the environment, before a router whose cluster has a leader."""

import asyncio
import datetime
import os
import ssl

import asyncpg
import psycopg

HOST, CA = os.environ["HOST"], os.environ["CA"]
LEADERS = "SELECT member, port, is_leader, lag, weight FROM members WHERE status = $1 AND port > $2 AND is_leader = $3"


async def with_asyncpg():
    context = ssl.create_default_context(cafile=CA)
    context.check_hostname = False
    connection = await asyncpg.connect(
        host=HOST, port=6432, user="admin", password="admin", database="trunkline", ssl=context, timeout=10)
    rows = await connection.fetch(LEADERS, "UP", 1, True)
    assert len(rows) == 1 and rows[0]["is_leader"] is True and rows[0]["lag"] is None, rows
    member = rows[0]["member"]
    # Of arrays, numbers with a point and times, in binary.
    statement = await connection.prepare(
        "SELECT number, at, level FROM events WHERE at > $1 AND level = ANY($2) AND number * 0.5 < $3 ORDER BY number LIMIT $4")
    kinds = [parameter.name for parameter in statement.get_parameters()]
    assert kinds == ["timestamptz", "text[]", "float8", "int8"], kinds
    since = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
    events = await statement.fetch(since, ["info", "warn", "error"], 1e9, 3)
    assert 0 < len(events) <= 3 and events[0]["at"] > since and events[0]["number"] == 1, events
    assert await statement.fetch(since, [], 1e9, 3) == []
    routes = await connection.fetch("SELECT route, members, sessions FROM routes WHERE $1 = ANY(members)", member)
    assert routes and all(member in row["members"] for row in routes), routes
    assert await connection.fetchval("SELECT count(*) FROM members WHERE zone IS NULL OR zone = $1", None) >= 1
    try:
        await connection.fetch("SELECT * FROM members WHERE port = $1 OR member = $1", 1)
        raise AssertionError("no error")
    except asyncpg.exceptions.UndefinedFunctionError:
        pass
    # Its own answers go on behind an error.
    assert await connection.fetchval("SELECT current_user") == "admin"
    await connection.close()


def with_psycopg():
    connection = psycopg.connect(
        host="localhost", hostaddr=HOST, port=6432, user="admin", password="admin", dbname="trunkline",
        sslmode="verify-full", sslrootcert=CA, autocommit=True, connect_timeout=10)
    for binary in (False, True):
        with connection.cursor(binary=binary) as cursor:
            for prepare in (False, True):
                query = "SELECT member, port, is_leader FROM members WHERE status = %s AND port > %s AND weight >= %s"
                row = cursor.execute(query, ("UP", 1, 0), prepare=prepare).fetchone()
                assert row[1] > 1 and isinstance(row[2], bool), row
            row = cursor.execute(
                "SELECT at, number FROM events WHERE at > %s AND level = ANY(%s) ORDER BY at LIMIT 1",
                (datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc), ["info", "warn"])).fetchone()
            assert row[0].year >= 2020 and isinstance(row[1], int), row
            # A hundred connections are no reason to read more than is asked for.
            assert cursor.execute("SELECT id FROM sessions WHERE bytes_up > %s", (2**40,)).fetchall() == []
    connection.close()


asyncio.run(with_asyncpg())
with_psycopg()
print("done")
