"""psycopg 3 with the console. The tests run it with HOST and CA in the environment."""

import os
import psycopg

connection = psycopg.connect(
    host="localhost", hostaddr=os.environ["HOST"], port=6432, user="admin", password="admin", dbname="trunkline",
    sslmode="verify-full", sslrootcert=os.environ["CA"], autocommit=True, connect_timeout=10)

# Without parameters: the simple protocol.
row = connection.execute("SHOW HBA").fetchone()
assert row[0] == 1 and row[4] == ["all", "replication"] and row[8] == "scram-sha-256" and row[10] is None, row
# The extended protocol, its results in binary, prepared and pipelined.
with connection.cursor(binary=True) as cursor:
    assert cursor.execute("SHOW HBA").fetchone() == row
for _ in range(3):
    assert connection.execute("SHOW HBA", prepare=True).fetchone() == row
with connection.pipeline():
    cursors = [connection.execute("SHOW VERSION") for _ in range(20)]
    assert all(cursor.fetchone()[0].startswith("Trunkline") for cursor in cursors)
assert connection.execute("SELECT %s + 1", (1,)).fetchone() == (2,)
try:
    connection.execute("LISTEN changes")
    raise AssertionError("no error")
except psycopg.errors.FeatureNotSupported as error:
    assert "SHOW HELP lists the commands" in error.diag.message_hint
assert connection.execute("SHOW VERSION").fetchone()
print("done")
