"""psqlpy, which is made of Rust's tokio-postgres and deadpool, with its pool."""
import asyncio
import importlib.metadata
import struct

import harness
import psqlpy

DSN = f"postgres://app:app@{harness.HOST}:{harness.PORT}/app"


def new_pool(more=""):
    return psqlpy.ConnectionPool(dsn=f"{DSN}{more}", max_db_pool_size=harness.CONNECTIONS, ssl_mode=psqlpy.SslMode.VerifyFull,
                                 ca_file=harness.CA, connect_timeout_sec=20)  # fmt: skip


async def value(connection, query, parameters=None, prepared=False):
    rows = (await connection.execute(query, parameters or [], prepared=prepared)).result()
    return next(iter(rows[0].values()))


async def tls():
    connection = await new_pool().connection()
    harness.equal(await value(connection, "SELECT 1"), 1, "the answer")


async def binding():
    connection = await new_pool("?channel_binding=require").connection()
    harness.equal(await value(connection, "SELECT 1"), 1, "the answer")


async def copy():
    """Binary and inwards only: the driver has no other COPY."""
    connection = await new_pool().connection()
    await connection.execute("TRUNCATE copied")
    data = bytearray(b"PGCOPY\n\xff\r\n\x00" + bytes(8))
    for number, words in harness.ROWS:
        text = words.encode()
        data += struct.pack("!hiqi", 2, 8, number, len(text)) + text
    data += struct.pack("!h", -1)
    await connection.binary_copy_to_table(source=bytes(data), table_name="copied")
    rows = (await connection.execute("SELECT id, words FROM copied ORDER BY id")).result()
    harness.equal([(row["id"], row["words"]) for row in rows], harness.ROWS, "rows of a binary COPY")
    return "inwards only"


async def prepared():
    one, two = await new_pool().connection(), await new_pool().connection()
    for number in range(harness.TIMES):
        answers = [await value(connection, f"SELECT $1::int + {add}", [number], True) for add, connection in enumerate((one, two))]
        harness.equal(answers, [number, number + 1], "answers")


async def pooled():
    connections = new_pool()

    async def task():
        async with connections.acquire() as connection, connection.transaction() as transaction:
            await transaction.execute(harness.ADD)

    connection = await new_pool().connection()
    before = await value(connection, harness.COUNT)
    await asyncio.gather(*(task() for _ in range(harness.TASKS)))
    harness.equal(await value(connection, harness.COUNT), before + harness.TASKS, "the counter")


async def write():
    connections = new_pool()

    async def one(writer, number):
        async with connections.acquire() as connection:
            await connection.execute("INSERT INTO written VALUES ($1::int, $2::int)", [writer, number])

    await harness.write_async(one)


checks = {
    "tls": tls, "binding": binding, "cancel": harness.cannot("no way to cancel"), "copy": copy, "prepared": prepared, "pool": pooled,
}  # fmt: skip
harness.main(importlib.metadata.version("psqlpy"), harness.in_loop(checks), lambda: asyncio.run(write()))
