"""SQLAlchemy's pools over psycopg 3 and asyncpg. Run with HOST, PORT, SCHEMA and TASKS; see tests/it/pooling/drivers.rs."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

HOST, PORT, SCHEMA = os.environ["HOST"], os.environ["PORT"], os.environ["SCHEMA"]
TASKS, LINES = int(os.environ["TASKS"]), 20


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int] = mapped_column(sa.BigInteger)


line = sa.Table("line", Base.metadata, sa.Column("task", sa.Integer), sa.Column("text", sa.Text))
own = sa.text("SELECT current_setting('app.schema'), (SELECT name FROM place), current_setting('statement_timeout'), "
              "current_setting('transaction_isolation')")
expected = (SCHEMA, SCHEMA, "0", "read committed")


def settle(connection, _):
    cursor = connection.cursor()
    cursor.execute(f"SET search_path = {SCHEMA}")
    cursor.execute(f"SET app.schema = '{SCHEMA}'")
    cursor.close()
    connection.commit()


def transfer(session, task):
    assert tuple(session.execute(own).one()) == expected
    ids = sorted((task % 8 + 1, (task + 3) % 8 + 1))
    first, second = session.scalars(
        sa.select(Account).where(Account.id.in_(ids)).order_by(Account.id).with_for_update()).all()
    assert [first.id, second.id] == ids
    first.amount -= 1
    session.flush()
    try:
        with session.begin_nested():
            session.execute(sa.update(Account).where(Account.id == first.id).values(amount=Account.amount - 1000000))
        raise AssertionError("no error")
    except sa.exc.IntegrityError as error:
        assert error.orig.sqlstate == "23514", error
    second.amount += 1
    session.commit()


def errors(session, task):
    try:
        session.execute(line.insert().values(task=task, text="of a transaction that fails"))
        session.execute(sa.insert(Account).values(id=1, amount=1))
        raise AssertionError("no error")
    except sa.exc.IntegrityError as error:
        assert error.orig.sqlstate == "23505", error
        session.rollback()
    session.execute(sa.text("SET LOCAL statement_timeout = '20ms'"))
    try:
        session.execute(sa.select(sa.func.pg_sleep(30)))
        raise AssertionError("no time-out")
    except sa.exc.DBAPIError as error:
        assert error.orig.sqlstate == "57014", error
        session.rollback()
    assert tuple(session.execute(own).one()) == expected
    session.rollback()


def lines(session, task):
    session.execute(line.insert(), [{"task": task, "text": f"{number} ü"} for number in range(LINES)])
    session.commit()
    rows = session.execute(sa.select(line.c.text).where(line.c.task == task).execution_options(stream_results=True, yield_per=7))
    assert sorted(text for text, in rows) == sorted(f"{number} ü" for number in range(LINES))
    session.rollback()


def with_psycopg():
    engine = sa.create_engine(
        f"postgresql+psycopg://app:app@{HOST}:{PORT}/app", pool_size=8, max_overflow=0, pool_pre_ping=True,
        connect_args={"prepare_threshold": 0, "sslmode": "disable"})
    sa.event.listen(engine, "connect", settle)

    def work(task):
        for part in (transfer, errors, lines, transfer):
            with Session(engine) as session:
                part(session, task)
        # Another isolation level is a setting of the session, until the connection returns.
        with engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
            assert tuple(connection.execute(own).one()) == (*expected[:3], "serializable")
            connection.rollback()
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            assert tuple(connection.execute(own).one()) == expected

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(work, range(TASKS)))
    engine.dispose()


async def with_asyncpg():
    engine = create_async_engine(
        f"postgresql+asyncpg://app:app@{HOST}:{PORT}/app", pool_size=8, max_overflow=0, pool_pre_ping=True,
        connect_args={"ssl": False})
    sa.event.listen(engine.sync_engine, "connect", settle)

    async def work(task):
        for part in (transfer, errors, lines, transfer):
            async with AsyncSession(engine) as session:
                await session.run_sync(part, task)

    await asyncio.gather(*(work(task) for task in range(TASKS, 2 * TASKS)))
    async with engine.connect() as connection:
        assert await connection.scalar(sa.select(sa.func.count()).select_from(line)) == 2 * TASKS * LINES
    await engine.dispose()


with_psycopg()
asyncio.run(with_asyncpg())
print("done")
