"""What is checked of each combination, through the router: one function for each, in `CHECKS`.

A check raises an error that says what is wrong, or returns what is worth a note. Every wait has a deadline.
"""
import contextlib
import hashlib
import itertools
import subprocess
import threading
from functools import partial

import cluster
import psycopg
from router import PORTS
from writers import Writers

LIMIT = 30


class Wrong(Exception):
    """A check failed."""


def expect(condition, text):
    if not condition:
        raise Wrong(text)


def equal(found, wanted, what):
    expect(found == wanted, f"{what}: {found!r} and not {wanted!r}")


class Place:
    """A cluster and the router before it."""

    def __init__(self, servers, router):
        self.servers = servers
        self.router = router

    def parameters(self, route, user="app", **more):
        return {
            "host": self.router.address, "port": PORTS[route], "user": user, "password": user, "dbname": "app",
            "sslmode": "verify-full", "sslrootcert": str(self.router.ca), "connect_timeout": 20,
            "options": f"-c statement_timeout={LIMIT * 1000}", "autocommit": True,
        } | more  # fmt: skip

    def connect(self, route, user="app", **more):
        return psycopg.connect(**self.parameters(route, user, **more))

    def ask(self, route, query, user="app", **more):
        with self.connect(route, user, **more) as connection:
            return connection.execute(query).fetchone()[0]

    def on_leader(self, query, database="app"):
        return self.servers.sql(self.servers.leader(), query, database=database)

    def configure(self, change):
        """Changes Patroni's dynamic configuration."""
        status, text = cluster.http(f"{self.servers.leader().rest}/config", change, "PATCH", timeout=LIMIT)
        expect(status == 200, f"Patroni does not take {change}: {status} {text}")

    def run(self, program, *arguments, user="app_repl", database=None):
        """A program of PostgreSQL's with a connection to the read-write port; what it prints."""
        place = f"host={self.router.address} port={PORTS['read-write']} user={user} sslmode=verify-full sslrootcert={self.router.ca}"
        if database:
            place += f" dbname={database}"
        command = [self.servers.bindir() / program, "-d", place, "--no-password", *arguments]
        environment = {"PATH": "/usr/bin:/bin", "PGPASSWORD": user, "PGCONNECT_TIMEOUT": "20"}
        result = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT)
        expect(result.returncode == 0, f"{program} ended with {result.returncode}: {result.stderr.strip()}")
        return result.stdout


def set_up(place):
    """Users, each with a method of its own, and tables."""
    place.servers.sql(place.servers.leader(), """
        SET password_encryption = 'md5';
        CREATE ROLE app_md5 LOGIN PASSWORD 'app_md5';
        SET password_encryption = 'scram-sha-256';
        CREATE ROLE app_password LOGIN PASSWORD 'app_password';
        CREATE ROLE app_trust LOGIN;
        CREATE ROLE app_cert LOGIN;
        CREATE ROLE app_reject LOGIN PASSWORD 'app_reject';
        CREATE TABLE copied (id int8 PRIMARY KEY, words text, number float8);
        CREATE TABLE streamed (id int8 PRIMARY KEY);
        CREATE TABLE written (writer int, number int);
        ALTER TABLE copied OWNER TO app;
        ALTER TABLE streamed OWNER TO app;
        ALTER TABLE written OWNER TO app;
    """, database="app")  # fmt: skip


# --- the router itself -----------------------------------------------------------------------------------------------


def of_router(router, command, *arguments, timeout=LIMIT):
    """What `trunkline COMMAND` says."""
    command = [router.program, command, *arguments, "-c", router.configuration]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def connections(place):
    """`trunkline check --connect` finds no fault: endpoints, account and its rights."""
    result = of_router(place.router, "check", "--connect")
    expect(result.returncode == 0, f"it ended with {result.returncode}: {result.stdout}{result.stderr}")
    expect(f"{place.servers.leader().name} holds the leader key" in result.stdout, f"no leader key: {result.stdout}")


def doctor(place):
    """It has questions of its own for each server and each Patroni, and finds nothing that fails."""
    result = of_router(place.router, "doctor")
    failed = [line for line in result.stdout.splitlines() if line.startswith("fail")]
    expect(result.returncode == 0 and not failed, f"it ended with {result.returncode}: {failed or result.stdout}{result.stderr}")


def watch(place):
    """The router watches etcd."""
    up = 'trunkline_cluster_etcd_up{cluster="main"} 1'
    cluster.Deadline(LIMIT).until(lambda: up in place.router.metrics(), f"the metric {up}")


# --- logins ----------------------------------------------------------------------------------------------------------


def scram(place):
    """With channel binding and without; a wrong password is refused."""
    for binding in ("require", "disable"):
        with place.connect("read-write", channel_binding=binding) as connection:
            equal(connection.execute("SELECT current_user").fetchone()[0], "app", f"user with channel_binding={binding}")
            expect(connection.pgconn.ssl_in_use, "no TLS")
    refused(place, "app", "28P01", password="wrong")


def md5(place):
    equal(place.ask("read-write", "SELECT current_user", "app_md5", require_auth="md5"), "app_md5", "user")
    refused(place, "app_md5", "28P01", password="wrong")


def password(place):
    equal(place.ask("read-write", "SELECT current_user", "app_password", require_auth="password"), "app_password", "user")
    refused(place, "app_password", "28P01", password="wrong")


def trust(place):
    """The router logs in as another user, as its configuration says."""
    equal(place.ask("read-write", "SELECT current_user", "app_trust", require_auth="none"), "app", "user on the server")


def certificate(place):
    tls = place.router.directory / "tls"
    proof = {"sslcert": str(tls / "client.crt"), "sslkey": str(tls / "client.key")}
    equal(place.ask("read-write", "SELECT current_user", "app_cert", require_auth="none", **proof), "app", "user on the server")
    refused(place, "app_cert", "28000", sslcert="")


def reject(place):
    refused(place, "app_reject", "28000")


def refused(place, user, sqlstate, **more):
    try:
        place.connect("read-write", user, **more).close()
    except psycopg.OperationalError as error:
        # A failed connection of psycopg has no SQLSTATE of its own.
        words = {"28P01": ["password authentication failed"], "28000": ["rejects connection", "client certificate"]}[sqlstate]
        expect(any(said in str(error) for said in words), f"{user} is refused with other words: {error}")
    else:
        raise Wrong(f"{user} gets in")


# --- sessions --------------------------------------------------------------------------------------------------------


def right_member(place):
    leader = place.servers.leader()
    for route, standby, addresses in (
        ("read-write", False, [leader.address]),
        ("session", False, [leader.address]),
        ("pooled", False, [leader.address]),
        ("tracked", False, [leader.address]),
        ("read-only", True, [node.address for node in place.servers.nodes if node is not leader]),
    ):
        with place.connect(route) as connection:
            found = connection.execute("SELECT pg_is_in_recovery(), host(inet_server_addr())").fetchone()
        equal(found[0], standby, f"in recovery on {route}")
        expect(found[1] in addresses, f"{route} is on {found[1]}")


def synchronous(place):
    """Routes to synchronous standbys, and from Patroni 4.0 on to those of a quorum."""
    modes = {"sync": True} if place.servers.options["patroni"].startswith("3.") else {"sync": True, "quorum": "quorum"}
    standbys = [node.address for node in place.servers.nodes if node is not place.servers.leader()]
    for route in ("sync", "quorum"):
        expect(not served(place, route), f"{route} is served without synchronous mode")
    try:
        for route, mode in modes.items():
            place.configure({"synchronous_mode": mode})
            cluster.Deadline(LIMIT).until(lambda route=route: served(place, route), f"{route} to be served")
            expect(place.ask(route, "SELECT host(inet_server_addr())") in standbys, f"{route} is not on a standby")
    finally:
        place.configure({"synchronous_mode": None})
    for route in modes:
        cluster.Deadline(LIMIT).until(lambda route=route: not served(place, route), f"{route} to be served no longer")


def served(place, route):
    try:
        place.connect(route).close()
    except psycopg.OperationalError as error:
        expect("no replica accepts" in str(error), f"{route} is refused with other words: {error}")
        return False
    return True


def cancel(place):
    """Both versions of the protocol: the key of 3.2 is longer."""
    for route, protocol in itertools.product(("read-write", "read-only", "session", "pooled", "tracked"), ("3.0", "3.2")):
        versions = {"min_protocol_version": protocol, "max_protocol_version": protocol}
        with place.connect(route, **versions) as connection, contextlib.closing(Cancelled(connection)) as sleeper:
            member = place.servers.leader()
            nodes = [node for node in place.servers.nodes if (node is member) == (route != "read-only")]
            active = f"SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = '{sleeper.QUERY}'"
            sleeping = lambda: any(place.servers.sql(node, active) != "0" for node in nodes)
            cluster.Deadline(LIMIT).until(sleeping, "the statement to run")
            connection.cancel_safe(timeout=LIMIT)
            equal(sleeper.sqlstate(), "57014", f"SQLSTATE of a cancelled statement on {route}, protocol {protocol}")


class Cancelled:
    """A statement that runs until somebody cancels it."""

    QUERY = f"SELECT pg_sleep({LIMIT})"

    def __init__(self, connection):
        self.error = None
        self.thread = threading.Thread(target=self.sleep, args=[connection], daemon=True)
        self.thread.start()

    def sleep(self, connection):
        try:
            connection.execute(self.QUERY)
        except psycopg.Error as error:
            self.error = error

    def sqlstate(self):
        self.close()
        return self.error.sqlstate if self.error else None

    def close(self):
        self.thread.join(LIMIT)
        expect(not self.thread.is_alive(), "a statement does not end")


def copy(place):
    """What goes in through each port that writes is what comes out, in text and in binary."""
    rows = [(number, f"words {number} \\ \t é {'x' * (number % 97)}", number / 7) for number in range(5000)]
    for route in ("read-write", "pooled", "tracked"):
        with place.connect(route) as connection, connection.cursor() as cursor:
            cursor.execute("TRUNCATE copied")
            with cursor.copy("COPY copied FROM STDIN") as sink:
                for row in rows:
                    sink.write_row(row)
            sent = copied(cursor, "text"), copied(cursor, "binary")
            equal(cursor.execute("SELECT * FROM copied ORDER BY id").fetchall(), rows, f"rows through {route}")
            with cursor.copy("COPY copied TO STDOUT (FORMAT binary)") as source:
                data = b"".join(bytes(part) for part in source)
            cursor.execute("TRUNCATE copied")
            with cursor.copy("COPY copied FROM STDIN (FORMAT binary)") as sink:
                sink.write(data)
            equal((copied(cursor, "text"), copied(cursor, "binary")), sent, f"digests after a binary COPY through {route}")
    await_replay(place)
    with place.connect("read-only") as connection, connection.cursor() as cursor:
        equal((copied(cursor, "text"), copied(cursor, "binary")), sent, "digests on the replica")


def copied(cursor, form):
    with cursor.copy(f"COPY (SELECT * FROM copied ORDER BY id) TO STDOUT (FORMAT {form})") as source:
        digest = hashlib.sha256()
        for part in source:
            digest.update(part)
    return digest.hexdigest()


def await_replay(place):
    """Until every replica has what the leader has now."""
    position = place.on_leader("SELECT pg_current_wal_flush_lsn()")
    leader = place.servers.leader()
    for node in place.servers.nodes:
        if node is not leader:
            query = f"SELECT pg_last_wal_replay_lsn() >= '{position}'"
            cluster.Deadline(LIMIT).until(lambda node=node: place.servers.sql(node, query) == "t", f"{node.name} to replay")


# --- replication -----------------------------------------------------------------------------------------------------


def physical(place):
    """pg_receivewal gets the bytes that the server has."""
    with place.connect("read-write", "app_repl", dbname="replication", replication="true", options="") as connection:
        identity = connection.execute("IDENTIFY_SYSTEM").fetchone()
    # A walsender without a database reports no encoding, so psycopg leaves the text as bytes.
    equal(identity[0].decode(), place.on_leader("SELECT system_identifier FROM pg_control_system()"), "system identifier")
    place.on_leader("SELECT pg_switch_wal()")
    place.on_leader("INSERT INTO streamed SELECT generate_series(-1000, -1)")
    query = "SELECT file_name, file_offset, l FROM pg_current_wal_flush_lsn() AS l, pg_walfile_name_offset(l)"
    name, offset, end = place.on_leader(query).split("|")
    # It ends when it has received more.
    place.on_leader("INSERT INTO streamed SELECT generate_series(-2000, -1001)")
    directory = place.router.directory / "wal"
    directory.mkdir(exist_ok=True)
    place.run("pg_receivewal", "-D", directory, "--no-loop", f"--endpos={end}")
    received = next(path for path in (directory / name, directory / f"{name}.partial") if path.exists())
    with open(received, "rb") as mine, open(place.servers.leader().data / "pg_wal" / name, "rb") as theirs:
        expect(mine.read(int(offset)) == theirs.read(int(offset)), f"{name} differs from the server's in its first {offset} bytes")


def logical(place):
    """pg_recvlogical gets each change once, in order."""
    slot = ("--slot", "versions")
    run = partial(place.run, "pg_recvlogical", database="app")
    run(*slot, "--create-slot", "--plugin", "test_decoding")
    try:
        for number in range(3):
            place.ask("read-write", f"INSERT INTO streamed VALUES ({number}) RETURNING 1")
        end = place.on_leader("SELECT pg_current_wal_flush_lsn()")
        place.on_leader("CHECKPOINT")
        said = run(*slot, "--start", "--no-loop", f"--endpos={end}", "-f", "-")
    finally:
        run(*slot, "--drop-slot")
    changes = [line for line in said.splitlines() if line.startswith("table ")]
    equal(changes, [f"table public.streamed: INSERT: id[bigint]:{number}" for number in range(3)], "changes")


# --- pools -----------------------------------------------------------------------------------------------------------


def pooling(place):
    """Two sessions share one connection; each keeps its own settings and prepared statements, and sees no others."""
    with place.connect("pooled", prepare_threshold=0) as one, place.connect("pooled", prepare_threshold=0) as two:
        ask = lambda connection, query: connection.execute(query).fetchone()[0]
        process = "SELECT pg_backend_pid()"
        equal(ask(two, process), ask(one, process), "server process of the second session")
        one.execute("SET work_mem = '7MB'")
        one.execute("SET search_path = pg_catalog")
        equal(ask(two, "SHOW work_mem"), "4MB", "work_mem of the second session")
        equal(ask(one, "SHOW work_mem"), "7MB", "work_mem of the first session")
        equal(ask(two, "SHOW search_path"), '"$user", public', "search_path of the second session")
        for number in range(3):
            equal(one.execute("SELECT %s::int + 1", [number]).fetchone()[0], number + 1, "prepared in the first session")
            equal(two.execute("SELECT %s::int + 2", [number]).fetchone()[0], number + 2, "prepared in the second session")
        two.execute("LISTEN news")
        equal(ask(two, "SELECT pg_listening_channels()"), "news", "channel of the second session")
        two.execute("UNLISTEN *")
        equal(one.execute("SELECT count(*) FROM pg_listening_channels()").fetchone()[0], 0, "channels of the first session")
        with one.transaction():
            one.execute("CREATE TEMPORARY TABLE mine ON COMMIT DROP AS SELECT 1")
        equal(ask(two, process), ask(one, process), "server process of the second session at the end")


def session_pool(place):
    """The second session gets the connection of the first one, without its settings, tables and locks."""
    with place.connect("session") as one:
        process = one.execute("SELECT pg_backend_pid()").fetchone()
        one.execute("SET work_mem = '7MB'")
        one.execute("CREATE TEMPORARY TABLE mine (id int)")
        one.execute("SELECT pg_advisory_lock(1)")
    with place.connect("session") as two:
        equal(two.execute("SELECT pg_backend_pid()").fetchone(), process, "server process of the second session")
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        found = two.execute(f"SELECT current_setting('work_mem'), to_regclass('mine'), ({locks})").fetchone()
        equal(found, ("4MB", None, 0), "what the second session sees")


# --- switchovers -----------------------------------------------------------------------------------------------------


def switchover_by_patroni(place):
    """Sessions that are tracked go on. What was under way when the server stopped may have an unknown outcome."""
    return moved(place, lambda: place.servers.switchover(timeout=90), unknown=True)


def switchover_by_router(place):
    """No client notices more than that it waits."""

    def order():
        result = of_router(place.router, "switchover", "--yes", timeout=90)
        expect(result.returncode == 0, f"it ended with {result.returncode}: {result.stdout}{result.stderr}")

    return moved(place, order, unknown=False)


def moved(place, switch, unknown):
    """What clients notice of SWITCH, and whether each write that was acknowledged is there, and no other."""
    place.on_leader("TRUNCATE written")
    before = place.servers.leader()
    with Writers(partial(place.connect, "tracked"), 2) as writers:
        writers.await_more(10)
        switch()
        writers.await_more(10)
    expect(not writers.errors, f"errors of the writers: {'; '.join(writers.errors)}")
    after = place.servers.wait(90)
    expect(after is not before, "the leader is the same")
    equal(writers.servers(), {after.address}, "servers of the writers")
    expect(unknown or not writers.unknown, f"the outcome of {len(writers.unknown)} writes is unknown")
    rows = place.on_leader("SELECT writer, number FROM written ORDER BY writer, number").splitlines()
    recorded = [tuple(map(int, row.split("|"))) for row in rows]
    certain = [row for row in recorded if row not in writers.unknown]
    equal(certain, sorted(writers.acknowledged), "writes in the table, and acknowledged ones")
    place.router.await_ready("rw", "ro")
    right_member(place)
    watch(place)
    told = f", {len(writers.unknown)} of unknown outcome" if writers.unknown else ""
    return f"{len(writers.acknowledged)} writes{told}, longest pause {writers.longest_pause:.1f} s"


# --- etcd ------------------------------------------------------------------------------------------------------------


def etcd_restart(place):
    """A new etcd process knows no token and no watch of before: the router begins anew, and sessions go on."""
    with place.connect("read-write") as writer, place.connect("read-only") as reader:
        process = "SELECT pg_backend_pid()"
        before = writer.execute(process).fetchone(), reader.execute(process).fetchone()
        place.servers.kill(cluster.ETCD)
        down = 'trunkline_cluster_etcd_up{cluster="main"} 0'
        cluster.Deadline(LIMIT).until(lambda: down in place.router.metrics(), f"the metric {down}")
        place.servers.start(cluster.ETCD)
        watch(place)
        equal((writer.execute(process).fetchone(), reader.execute(process).fetchone()), before, "server processes of the sessions")
    place.servers.wait(60)
    right_member(place)


# --- a standby cluster -----------------------------------------------------------------------------------------------


def standby_cluster(place, standby):
    """STANDBY is a standby cluster of PLACE: its standby leader serves readers, and writers are told why not."""
    place.on_leader("INSERT INTO streamed VALUES (1000)")
    there = "SELECT count(*) FROM streamed WHERE id = 1000"
    # All members have their own copy of the same row.
    cluster.Deadline(LIMIT).until(lambda: standby.ask("read-only", there) == 1, "the row to arrive")
    equal(standby.ask("read-only", "SELECT pg_is_in_recovery()"), True, "in recovery on read-only")
    for route in ("read-write", "pooled", "tracked"):
        try:
            standby.connect(route).close()
        except psycopg.OperationalError as error:
            expect("leads a standby cluster, which accepts no writes" in str(error), f"{route} does not say why: {error}")
        else:
            raise Wrong(f"{route} takes a session")


# --- Citus -----------------------------------------------------------------------------------------------------------


def one_group(groups, number, router):
    """A router before one group of Citus serves the leader of this group, whose key etcd has."""
    place = Place(groups, router)
    leader = groups.leader_of(number)
    equal(place.ask("read-write", "SELECT host(inet_server_addr())"), leader.address, f"leader of group {number}")
    result = of_router(router, "check", "--connect")
    expect(f"{leader.name} holds the leader key" in result.stdout, f"group {number}: {result.stdout}{result.stderr}")
    watch(place)


def all_groups(router):
    """The commands say that the endpoints are of different groups."""
    for command in (["doctor"], ["check", "--connect"]):
        result = of_router(router, *command)
        expect(result.returncode != 0, f"{command} finds no fault")
        expect("they are of different clusters" in result.stdout + result.stderr, f"{command} says nothing of it: {result.stdout}")


CHECKS = [
    connections, doctor, watch, scram, md5, password, certificate, trust, reject, right_member, synchronous, cancel, copy, physical, logical,
    pooling, session_pool, switchover_by_patroni, switchover_by_router, etcd_restart,
]  # fmt: skip
