"""asyncpg with its pool."""
import asyncio
import contextlib
import io
import ssl

import asyncpg
import harness

SETTINGS = {
    "host": harness.HOST, "port": harness.PORT, "user": "app", "password": "app", "database": "app", "timeout": 20,
    "ssl": ssl.create_default_context(cafile=harness.CA),
}  # fmt: skip


@contextlib.asynccontextmanager
async def connected():
    connection = await asyncpg.connect(**SETTINGS)
    try:
        yield connection
    finally:
        await connection.close()


async def tls():
    async with connected() as connection:
        harness.equal(await connection.fetchval("SELECT 1"), 1, "the answer")


async def cancel():
    """A task that is cancelled cancels its statement; the server's error stays within the driver."""
    async with connected() as connection:
        for _ in range(3):
            task = asyncio.create_task(connection.execute(harness.SLEEP))
            await asyncio.sleep(0.5)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            harness.equal(await asyncio.wait_for(connection.fetchval("SELECT 1"), 10), 1, "the next answer")
    return "the driver keeps 57014 to itself"


async def copy():
    async with connected() as connection:
        await connection.execute("TRUNCATE copied")
        await connection.copy_to_table("copied", source=io.BytesIO(harness.LINES.encode()))
        out = io.BytesIO()
        await connection.copy_from_query("SELECT * FROM copied ORDER BY id", output=out)
        harness.equal(out.getvalue().decode(), harness.LINES, "what COPY brings out")
        await connection.execute("TRUNCATE copied")
        await connection.copy_records_to_table("copied", records=harness.ROWS)
        harness.equal(await connection.fetchval("SELECT count(*) FROM copied"), len(harness.ROWS), "rows of a binary COPY")


async def prepared():
    async with connected() as one, connected() as two:
        statements = []
        for add, connection in enumerate((one, two)):
            statements.append(await connection.prepare(f"SELECT $1::int + {add}"))
            # It ends `prepare` with Flush, so the session keeps its server connection until the first execution.
            harness.equal(await statements[-1].fetchval(0), add, "the first answer")
        for number in range(harness.TIMES):
            harness.equal([await statement.fetchval(number) for statement in statements], [number, number + 1], "answers")


def new_pool():
    return asyncpg.create_pool(**SETTINGS, min_size=1, max_size=harness.CONNECTIONS)


async def pooled():
    async with connected() as connection, new_pool() as connections:

        async def task():
            async with connections.acquire() as mine, mine.transaction():
                await mine.execute(harness.ADD)

        before = await connection.fetchval(harness.COUNT)
        await asyncio.gather(*(task() for _ in range(harness.TASKS)))
        harness.equal(await connection.fetchval(harness.COUNT), before + harness.TASKS, "the counter")


async def write():
    async with new_pool() as connections:
        await harness.write_async(lambda writer, number: connections.execute("INSERT INTO written VALUES ($1, $2)", writer, number))


checks = {
    "tls": tls, "binding": harness.cannot("not offered"), "cancel": cancel, "copy": copy, "prepared": prepared, "pool": pooled,
}  # fmt: skip
harness.main(asyncpg.__version__, harness.in_loop(checks), lambda: asyncio.run(write()))
