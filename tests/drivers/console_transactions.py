"""psycopg 3, asyncpg and SQLAlchemy with the console, with their default transactions and pools. The tests run it with
HOST and CA in the environment."""

import asyncio
import os
import ssl

import asyncpg
import psycopg
import psycopg_pool
import sqlalchemy

HOST, CA = os.environ["HOST"], os.environ["CA"]
DSN = (f"host=localhost hostaddr={HOST} port=6432 user=admin password=admin dbname=trunkline sslmode=verify-full "
       f"sslrootcert={CA} connect_timeout=10")


def with_psycopg():
    with psycopg.connect(DSN) as connection:
        status = lambda: connection.info.transaction_status.name
        assert connection.execute("SELECT count(*) FROM members").fetchone() == (1,)
        assert status() == "INTRANS"
        try:
            connection.execute("SELECT 1/0")
            raise AssertionError("no error")
        except psycopg.errors.DivisionByZero:
            assert status() == "INERROR"
        try:
            connection.execute("SELECT 1")
            raise AssertionError("no error")
        except psycopg.errors.InFailedSqlTransaction:
            connection.rollback()
        with connection.transaction():
            try:
                with connection.transaction():
                    connection.execute("SELECT 1/0")
            except psycopg.errors.DivisionByZero:
                pass
            assert connection.execute("SELECT 2").fetchone() == (2,)
        connection.commit()
        assert status() == "IDLE"
        try:
            connection.execute("RELOAD")
            raise AssertionError("no error")
        except psycopg.errors.ActiveSqlTransaction as error:
            assert "autocommit" in error.diag.message_hint
        connection.rollback()
        # Its own statements are prepared after some time, and dropped.
        connection.prepare_threshold, connection.prepared_max = 0, 2
        for number in range(10):
            assert connection.execute(f"SELECT %s + {number}", (1,)).fetchone() == (number + 1,)
        connection.commit()
        connection.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
        connection.set_read_only(True)
        connection.execute("SELECT 1")
        connection.commit()
    with psycopg_pool.ConnectionPool(DSN, min_size=2, reset=lambda own: own.execute("DISCARD ALL") and own.commit(),
                                     kwargs={"autocommit": True}) as pool:
        for _ in range(4):
            with pool.connection() as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)


async def with_asyncpg():
    context = ssl.create_default_context(cafile=CA)
    context.check_hostname = False
    # A pool sends its statements to reset a session.
    async with asyncpg.create_pool(host=HOST, port=6432, user="admin", password="admin", database="trunkline", ssl=context,
                                   timeout=10, min_size=1, max_size=2) as pool:
        for _ in range(4):
            async with pool.acquire() as connection:
                async with connection.transaction(isolation="repeatable_read", readonly=True):
                    assert await connection.fetchval("SELECT count(*) FROM members") == 1
                    # A cursor is a portal that lives as long as the transaction.
                    number = 0
                    async for _ in connection.cursor("SELECT number FROM events ORDER BY number", prefetch=2):
                        number += 1
                    assert number >= 1
                try:
                    async with connection.transaction():
                        await connection.execute("SELECT 1/0")
                except asyncpg.DivisionByZeroError:
                    pass
                await connection.execute("RELOAD")


def with_sqlalchemy():
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://admin:admin@localhost:6432/trunkline", connect_args={
            "hostaddr": HOST, "sslmode": "verify-full", "sslrootcert": CA, "connect_timeout": 10})
    with engine.connect() as connection:
        rows = connection.execute(sqlalchemy.text("SELECT member, is_leader FROM members WHERE port > :port"), {"port": 1})
        assert rows.all()[0].is_leader is True
        with connection.begin_nested():
            assert connection.execute(sqlalchemy.text("SELECT 1")).scalar() == 1
        connection.commit()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sqlalchemy.text("RELOAD"))
    engine.dispose()


with_psycopg()
asyncio.run(with_asyncpg())
with_sqlalchemy()
print("done")
