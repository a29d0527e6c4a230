"""asyncpg as a writer of the recorder; tests/failover/recorder/mod.rs says what all of them do, and how they are told."""

import asyncio
import os
import ssl
import time
import asyncpg

PAUSE = int(os.environ["PAUSE_MS"]) / 1000
END = time.monotonic() + int(os.environ["LIMIT_S"])
INSERT = "INSERT INTO recorded (id) VALUES ($1)"
TLS = ssl.create_default_context(cafile=os.environ["CA"])
TLS.check_hostname = False  # the driver can only check the address it connects to
out = open(os.environ["OUT"], "w")


def now():
    return time.time_ns() // 1000


def goes_on():
    return time.monotonic() < END and not os.path.exists(os.environ["STOP"])


def line(*fields):
    out.write("\t".join(str(field) for field in fields) + "\n")
    out.flush()


def told(error):
    code = getattr(error, "sqlstate", None) or "-"
    return code, f"{type(error).__name__}: {error}".replace("\t", " ").replace("\n", " ")


def is_fatal(error):
    return getattr(error, "severity_en", None) in ("FATAL", "PANIC")


def connect(writer):
    hosts = os.environ["HOSTS"].split(",")
    return asyncpg.connect(
        host=hosts[writer % len(hosts)], port=int(os.environ["PORT"]), user="app", password="app", database="app", ssl=TLS,
        timeout=60, server_settings={"application_name": "recorder"})  # fmt: skip


async def single(connection, ids, step):
    step("autocommit")
    await connection.execute(f"INSERT INTO recorded (id) VALUES ({ids[0]})")


async def prepared(connection, ids, step):
    step("autocommit")
    await connection.execute(INSERT, ids[0])


async def transaction(connection, ids, step):
    step("begin")
    transaction = connection.transaction()
    try:
        await transaction.start()
    except Exception:
        # It takes the transaction for begun, and the next one for one within it. Its pool does this.
        try:
            await connection.reset()
        except Exception:
            connection.terminate()
        raise
    try:
        for number in ids:
            step("statement")
            await connection.execute(INSERT, number)
            await asyncio.sleep(PAUSE / 4)
    except Exception:
        try:
            await transaction.rollback()
        except Exception:
            connection.terminate()
        raise
    step("commit")
    await transaction.commit()


async def pipelined(connection, ids, step):
    # All in one batch, which is one implicit transaction.
    step("autocommit")
    await connection.executemany(INSERT, [(number,) for number in ids])


KINDS = [(single, 1), (transaction, 2), (prepared, 1), (pipelined, 3)]


async def write(writer):
    connection, next_id, turn = None, writer << 32, writer
    while goes_on():
        began = now()
        if connection is None:
            try:
                connection = await connect(writer)
                line("login", began, now(), writer, "done", "-", "")
            except Exception as error:
                line("login", began, now(), writer, "error", *told(error))
                await asyncio.sleep(PAUSE)
                continue
        kind, count = KINDS[turn % len(KINDS)]
        turn += 1
        ids = list(range(next_id + 1, next_id + 1 + count))
        next_id += count
        phase = []
        began = now()
        try:
            await kind(connection, ids, phase.append)
            outcome, code, text = "done", "-", ""
        except Exception as error:
            outcome, (code, text) = "error", told(error)
            if is_fatal(error):
                connection.terminate()
            elif not connection.is_closed() and connection.is_in_transaction():
                # The driver says that its transaction is over, and the server does not.
                connection.terminate()
            if connection.is_closed():
                outcome, connection = "dead", None
        line("write", began, now(), writer, outcome, kind.__name__, ",".join(map(str, ids)), phase[-1], code, text)
        await asyncio.sleep(PAUSE)
    if connection:
        await connection.close()


async def main():
    await asyncio.gather(*(write(int(number)) for number in os.environ["WRITERS"].split(",")))


asyncio.run(main())
