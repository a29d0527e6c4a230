"""asyncpg with its pool and its reset query. Run with HOST, PORT, SCHEMA and TASKS; see tests/it/pooling/drivers.rs."""

import asyncio
import itertools
import os

import asyncpg

HOST, PORT, SCHEMA = os.environ["HOST"], int(os.environ["PORT"]), os.environ["SCHEMA"]
TASKS, LINES = int(os.environ["TASKS"]), 20
numbers = itertools.count(1)
tenants = {}


async def setup(connection):
    """At each acquire: the reset query has thrown away what was set before."""
    assert await connection.fetchval("SELECT current_setting('work_mem')") == "4MB"
    tenants[connection.get_server_pid()] = tenant = f"{SCHEMA} {next(numbers)}"
    await connection.execute(f"SET search_path = {SCHEMA}; SET app.tenant = '{tenant}'; SET work_mem = '7MB'")


async def own(connection):
    row = await connection.fetchrow(
        "SELECT current_setting('app.tenant'), (SELECT name FROM place), current_setting('statement_timeout'), "
        "current_setting('work_mem')")
    assert tuple(row) == (tenants[connection.get_server_pid()], SCHEMA, "0", "7MB"), row


async def transfer(connection, number):
    first, second = sorted((number % 8 + 1, (number + 3) % 8 + 1))
    async with connection.transaction():
        rows = await connection.fetch("SELECT id FROM account WHERE id IN ($1, $2) ORDER BY id FOR UPDATE", first, second)
        assert [row["id"] for row in rows] == [first, second]
        await connection.execute("UPDATE account SET amount = amount - $1 WHERE id = $2", 1, first)
        try:
            async with connection.transaction():
                await connection.execute("UPDATE account SET amount = amount - $1 WHERE id = $2", 1000000, first)
            raise AssertionError("no error")
        except asyncpg.CheckViolationError:
            pass
        await connection.execute("UPDATE account SET amount = amount + $1 WHERE id = $2", 1, second)


async def errors(connection, number):
    try:
        async with connection.transaction():
            await connection.execute("INSERT INTO line VALUES ($1, $2)", number, "of a transaction that fails")
            await connection.execute("INSERT INTO account VALUES ($1, $2)", 1, 1)
        raise AssertionError("no error")
    except asyncpg.UniqueViolationError:
        pass
    # The driver's own time-out: it sends a cancel.
    try:
        await connection.fetchval("SELECT pg_sleep($1)", 30, timeout=0.05)
        raise AssertionError("no time-out")
    except asyncio.TimeoutError:
        pass
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL statement_timeout = '20ms'")
            await connection.execute("SELECT pg_sleep(30)")
        raise AssertionError("no time-out")
    except asyncpg.QueryCanceledError:
        pass


async def copies(connection, number):
    await connection.copy_records_to_table("line", records=[(number, f"{line} ü") for line in range(LINES)])
    chunks = []

    async def take(chunk):
        chunks.append(chunk)

    await connection.copy_from_query("SELECT text FROM line WHERE task = $1", number, output=take)
    assert sorted(b"".join(chunks).decode().splitlines()) == sorted(f"{line} ü" for line in range(LINES))
    async with connection.transaction():
        seen = [row["text"] async for row in connection.cursor("SELECT text FROM line WHERE task = $1", number, prefetch=5)]
        assert len(seen) == LINES


async def untidy(connection, number):
    """What the reset query takes back."""
    heard = asyncio.get_running_loop().create_future()

    def hear(*event):
        if not heard.done():
            heard.set_result(event[3])

    await connection.add_listener(f"{SCHEMA}{number}", hear)
    await connection.execute("SELECT pg_advisory_lock($1)", number)
    await connection.execute("SELECT pg_notify($1, $2)", f"{SCHEMA}{number}", "here")
    assert await asyncio.wait_for(heard, 30) == "here"
    await connection.remove_listener(f"{SCHEMA}{number}", hear)
    await connection.execute("SET statement_timeout = '1h'")


async def task(pool, number):
    for part in (transfer, errors, copies, transfer, untidy):
        async with pool.acquire(timeout=120) as connection:
            await own(connection)
            # Prepared once for each connection, under the driver's names.
            statement = await connection.prepare("SELECT $1::int * 2, $2::text")
            for value in range(5):
                assert tuple(await statement.fetchrow(value, "é")) == (value * 2, "é")
            await connection.executemany("UPDATE account SET amount = amount WHERE id = $1", [(value,) for value in range(1, 9)])
            await own(connection)
            await part(connection, number)


async def main():
    pool = await asyncpg.create_pool(
        host=HOST, port=PORT, user="app", password="app", database="app", ssl=False, min_size=8, max_size=8, setup=setup)
    await asyncio.gather(*(task(pool, number) for number in range(TASKS)))
    assert await pool.fetchval("SELECT count(*) FROM line") == TASKS * LINES
    await pool.close()


asyncio.run(main())
print("done")
