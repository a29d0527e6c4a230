"""asyncpg through both ports. The tests run it with HOST and CA in the environment."""

import asyncio
import io
import os
import ssl
import asyncpg

HOST, CA = os.environ["HOST"], os.environ["CA"]
TLS = ssl.create_default_context(cafile=CA)
TLS.check_hostname = False  # the driver can only check the address it connects to


def connect(port, **options):
    return asyncpg.connect(host=HOST, port=port, user="app", password="app", database="app", ssl=TLS, timeout=10, **options)


async def reads(connection):
    assert connection._transport.get_extra_info("cipher"), "no TLS"
    assert await connection.fetchval("SELECT $1::int + 1", 41) == 42
    statement = await connection.prepare("SELECT g, $1::text FROM generate_series(1, 1000) g")
    for text in ("a", "é"):
        assert len(await statement.fetch(text)) == 1000
    async with connection.transaction(readonly=True):
        total = 0
        async for row in connection.cursor("SELECT g FROM generate_series(1, 1000) g", prefetch=50):
            total += row[0]
        assert total == 500500
    out = io.BytesIO()
    await connection.copy_from_query("SELECT g FROM generate_series(1, 10000) g", output=out, format="csv")
    assert len(out.getvalue().split()) == 10000
    # A time limit in the driver is a cancel on a connection of its own.
    for _ in range(3):
        try:
            await connection.fetchval("SELECT pg_sleep(30)", timeout=0.2)
            raise AssertionError("not cancelled")
        except asyncio.TimeoutError:
            pass
        assert await connection.fetchval("SELECT 'on we go'") == "on we go"


async def writes(connection):
    await connection.execute("CREATE TEMP TABLE t (a int PRIMARY KEY, b text, c bytea)")
    rows = [(number, "ü", bytes(10)) for number in range(10000)]
    await connection.copy_records_to_table("t", records=rows)
    await connection.executemany("INSERT INTO t VALUES ($1, $2, $3)", [(n, "x", b"") for n in range(10000, 10500)])
    assert await connection.fetchval("SELECT count(*) FROM t") == 10500
    try:
        await connection.executemany("INSERT INTO t VALUES ($1, '', '')", [(20000,), (1,), (20001,)])
        raise AssertionError("no error")
    except asyncpg.UniqueViolationError:
        pass
    assert await connection.fetchval("SELECT count(*) FROM t") == 10500


async def messages(connection):
    notices, heard = [], asyncio.get_running_loop().create_future()
    connection.add_log_listener(lambda _, notice: notices.append(notice.message))
    await connection.execute("DO $$ BEGIN RAISE NOTICE 'hear'; RAISE WARNING 'me'; END $$")
    assert notices == ["hear", "me"], notices
    await connection.add_listener("asyncpg", lambda *event: heard.set_result(event[3]))
    other = await connect(6432)
    await other.execute("SELECT pg_notify('asyncpg', 'here')")
    await other.close()
    assert await asyncio.wait_for(heard, 10) == "here"


async def main():
    connection = await connect(6432, server_settings={"application_name": "asyncpg", "TimeZone": "Asia/Tokyo"})
    assert await connection.fetchval("SHOW TimeZone") == "Asia/Tokyo"
    await reads(connection)
    await writes(connection)
    await messages(connection)
    await connection.close()
    connection = await connect(6433)
    await reads(connection)
    try:
        await connection.execute("CREATE TABLE never (a int)")
        raise AssertionError("written on the read-only port")
    except asyncpg.ReadOnlySQLTransactionError as error:
        assert error.sqlstate == "25006"
    await connection.close()
    pool = await asyncpg.create_pool(
        host=HOST, port=6432, user="app", password="app", database="app", ssl=TLS, min_size=4, max_size=4)
    values = await asyncio.gather(*(pool.fetchval("SELECT $1::int", number) for number in range(200)))
    assert values == list(range(200))
    await pool.close()


asyncio.run(main())
print("done")
