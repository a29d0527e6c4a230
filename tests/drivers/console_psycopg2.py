"""psycopg2 with the console, with its default transactions. The tests run it with HOST and CA in the environment."""

import os

import psycopg2
from psycopg2 import errors, extensions

connection = psycopg2.connect(
    host="localhost", hostaddr=os.environ["HOST"], port=6432, user="admin", password="admin", dbname="trunkline",
    sslmode="verify-full", sslrootcert=os.environ["CA"], connect_timeout=10)
cursor = connection.cursor()
cursor.execute("SELECT member, port FROM members WHERE status = %s", ("UP",))
assert len(cursor.fetchall()) == 1
assert connection.get_transaction_status() == extensions.TRANSACTION_STATUS_INTRANS
try:
    cursor.execute("SELECT nothing FROM members")
    raise AssertionError("no error")
except errors.UndefinedColumn:
    assert connection.get_transaction_status() == extensions.TRANSACTION_STATUS_INERROR
try:
    cursor.execute("SELECT 1")
    raise AssertionError("no error")
except errors.InFailedSqlTransaction:
    connection.rollback()
cursor.execute("SELECT 1")
connection.commit()
assert connection.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE
try:
    cursor.execute("RELOAD")
    raise AssertionError("no error")
except errors.ActiveSqlTransaction:
    connection.rollback()
connection.set_session(readonly=True, isolation_level="REPEATABLE READ")
cursor.execute("SELECT count(*) FROM members")
assert cursor.fetchone() == (1,)
connection.rollback()
connection.set_session(readonly=False, isolation_level="DEFAULT", autocommit=True)
cursor.execute("RELOAD")
assert any("nothing has changed" in notice for notice in connection.notices), connection.notices
connection.reset()
connection.close()
print("done")
