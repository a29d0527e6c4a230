"""A statement during which the session is ended: prints the SQLSTATE that the driver shows."""

import asyncio
import os
import sys

SQL = "SELECT pg_sleep(600), 'outcome unknown'"
HOST, CA = os.environ["HOST"], os.environ["CA"]


def with_psycopg():
    import psycopg

    with psycopg.connect(
        host=HOST, port=6432, user="app", password="app", dbname="app",
        sslmode="verify-ca", sslrootcert=CA, autocommit=True,
    ) as connection:
        try:
            connection.execute(SQL)
        except psycopg.Error as error:
            return error.sqlstate


async def with_asyncpg():
    import ssl

    import asyncpg

    tls = ssl.create_default_context(cafile=CA)
    tls.check_hostname = False
    connection = await asyncpg.connect(
        host=HOST, port=6432, user="app", password="app", database="app", ssl=tls
    )
    try:
        await connection.execute(SQL)
    except asyncpg.PostgresError as error:
        return error.sqlstate


if sys.argv[1] == "psycopg":
    print(with_psycopg())
else:
    print(asyncio.run(with_asyncpg()))
