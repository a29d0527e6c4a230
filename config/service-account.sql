-- The router's service account: one role, with the least it needs. Run this file once, on the leader, as a superuser, in the
-- database named by `service_account.dbname` (default postgres); it may be run again at any time:
--
--   TRUNKLINE_PASSWORD="$(cat trunkline-password)" psql -d postgres -f service-account.sql
--
-- (`psql -v password=…` works too, but everybody on that host can read it in the list of processes.)
--
-- What the account may do:
--   * log in, for the probes of every member;
--   * pg_monitor: a standby shows the timeline it receives (pg_stat_wal_receiver.received_tli) and its sender only to
--     members of pg_read_all_stats, which pg_monitor contains. It reads statistics and settings, no table's rows;
--   * pg_control_system() and pg_control_checkpoint(): the system identifier and the timeline, so that a member of another
--     cluster, or an old primary, is never used. Every role may call them as PostgreSQL ships; the grant keeps it so where
--     somebody has revoked it from PUBLIC;
--   * trunkline.user_lookup(): the SCRAM verifier of the user who logs in. The account cannot read pg_authid itself.
--   * nothing more for memberships of roles: pg_roles and pg_auth_members are readable by every role, as PostgreSQL ships
--     them.
--
-- Whoever holds the account's password can ask for verifiers and try passwords against them offline, superusers'
-- included: PgBouncer's auth_query has the same property. Keep the password where superusers' would be kept. To keep
-- superusers out altogether (they then cannot log in through the router), add to the function's WHERE:
--     AND NOT a.rolsuper
-- or, for all who should not come through the router:
--     AND NOT pg_catalog.pg_has_role(a.oid, 'no_router', 'member')
--
-- Who can become the account: superusers; every role with CREATEROLE before PostgreSQL 16, since it may set the account's
-- password (give CREATEROLE to nobody there who may not read verifiers); from 16 on roles with ADMIN OPTION on it, of which
-- this file leaves none. The file takes away what others have granted: members of the account, its own memberships, and
-- rights on the schema and the function.
\set ON_ERROR_STOP on

BEGIN;
SET LOCAL search_path = pg_catalog;
DO $do$
BEGIN
    IF pg_catalog.pg_is_in_recovery() THEN
        RAISE EXCEPTION 'this server is a standby: nothing can be written here'
            USING HINT = 'Run this file on the leader, as a superuser.';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = current_user AND rolsuper) THEN
        RAISE EXCEPTION 'the role % is not a superuser', current_user
            USING HINT = 'Run this file on the leader, as a superuser: psql -U postgres …';
    END IF;
END
$do$;

\if :{?password}
\else
    \getenv password TRUNKLINE_PASSWORD
\endif
\if :{?password}
\else
    \warn 'Give the password of the role trunkline in the environment variable TRUNKLINE_PASSWORD'
    DO $$ BEGIN RAISE EXCEPTION 'no password for the role trunkline'; END $$;
\endif

-- No notice of what is there already when the file is run again.
SET LOCAL client_min_messages = 'warning';
SET LOCAL password_encryption = 'scram-sha-256';
-- Neither the password nor its verifier belongs in the server's log.
SET LOCAL log_statement = 'none';
SET LOCAL log_min_duration_statement = -1;
SET LOCAL log_min_error_statement = 'panic';

-- A role that may CREATE in this database could have made the schema first, to read verifiers through it later.
DO $do$
DECLARE
    owner name;
BEGIN
    SELECT r.rolname INTO owner
      FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner
     WHERE n.nspname = 'trunkline' AND NOT r.rolsuper;
    IF FOUND THEN
        RAISE EXCEPTION 'the schema trunkline belongs to %, which is not a superuser', owner
            USING HINT = 'Find out what it is for. Rename or drop it, then run this file again.';
    END IF;
END
$do$;

-- What a former member made as the account goes on with its rights: a SECURITY DEFINER function reads verifiers.
DO $do$
DECLARE
    owned text;
BEGIN
    SELECT pg_catalog.string_agg(pg_catalog.format('%s in %s', d.classid::pg_catalog.regclass,
                                                   coalesce(b.datname, 'every database')), ', ')
      INTO owned
      FROM pg_catalog.pg_shdepend d LEFT JOIN pg_catalog.pg_database b ON b.oid = d.dbid
     WHERE d.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND d.deptype = 'o'
       AND d.refobjid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = 'trunkline');
    IF owned IS NOT NULL THEN
        RAISE EXCEPTION 'the role trunkline owns something (%)', owned
            USING HINT = 'It needs to own nothing. In each of these databases look at it, and run DROP OWNED BY trunkline '
                'or REASSIGN OWNED; then run this file again.';
    END IF;
END
$do$;

SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'trunkline') AS create_role \gset
\if :create_role
    CREATE ROLE trunkline;
\endif
ALTER ROLE trunkline WITH LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE INHERIT NOREPLICATION NOBYPASSRLS
    CONNECTION LIMIT -1 VALID UNTIL 'infinity' PASSWORD :'password';
ALTER ROLE trunkline RESET ALL;
DO $do$
DECLARE
    name name;
BEGIN
    FOR name IN
        SELECT b.datname FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_database b ON b.oid = s.setdatabase
         WHERE s.setrole = 'trunkline'::pg_catalog.regrole
    LOOP
        EXECUTE pg_catalog.format('ALTER ROLE trunkline IN DATABASE %I RESET ALL', name);
    END LOOP;
END
$do$;
COMMENT ON ROLE trunkline IS 'service account of the connection manager Trunkline';

-- A member of the account may look up verifiers as well, and what the account is a member of is more than it needs.
-- Who loses a membership is told at the end, once it is true.
SELECT string_agg(DISTINCT format('%s is no longer a member of %s', member::regrole, roleid::regrole), E'\n') AS removed
  FROM pg_auth_members
 WHERE roleid = 'trunkline'::regrole
    OR member = 'trunkline'::regrole AND roleid <> 'pg_monitor'::regrole \gset
DO $do$
DECLARE
    m record;
BEGIN
    FOR m IN
        SELECT a.roleid::pg_catalog.regrole AS role, a.member::pg_catalog.regrole AS member,
               (SELECT g.rolname FROM pg_catalog.pg_roles g WHERE g.oid = a.grantor) AS grantor
          FROM pg_catalog.pg_auth_members a
         WHERE a.roleid = 'trunkline'::pg_catalog.regrole
            OR a.member = 'trunkline'::pg_catalog.regrole AND a.roleid <> 'pg_monitor'::pg_catalog.regrole
    LOOP
        -- Where it went together with another already, the server says so in a WARNING.
        EXECUTE pg_catalog.format('REVOKE %s FROM %s', m.role, m.member)
            || CASE WHEN pg_catalog.current_setting('server_version_num')::int4 >= 160000
                    THEN pg_catalog.format(' GRANTED BY %I', m.grantor) ELSE '' END
            || ' CASCADE';
    END LOOP;
END
$do$;

GRANT pg_monitor TO trunkline;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_control_system(), pg_catalog.pg_control_checkpoint() TO trunkline;

-- Made anew each time: CREATE OR REPLACE would keep the rights that others have on it. What depends on the function, and
-- anything else in the schema, stops here, since nothing of it belongs there. The server's own hint, CASCADE, would drop it.
DO $do$
DECLARE
    what text;
BEGIN
    DROP FUNCTION IF EXISTS trunkline.user_lookup(text);
    DROP SCHEMA IF EXISTS trunkline;
EXCEPTION WHEN dependent_objects_still_exist THEN
    GET STACKED DIAGNOSTICS what = PG_EXCEPTION_DETAIL;
    RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = SQLERRM, DETAIL = what,
        HINT = 'Move what is not this file''s out of the schema trunkline first, then run this file again.';
END
$do$;
CREATE SCHEMA trunkline;

-- The verifier that the server itself would use: none for a role that does not exist, may not log in, has no password,
-- or whose password has expired (VALID UNTIL; null and infinity never do).
-- A SQL function with a fixed search_path, so that no caller can put its own objects in the way of a superuser's rights.
CREATE FUNCTION trunkline.user_lookup(name text)
    RETURNS TABLE (usename pg_catalog.name, passwd pg_catalog.text)
    LANGUAGE sql STABLE STRICT SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT a.rolname, a.rolpassword
    FROM pg_catalog.pg_authid AS a
    WHERE a.rolname = user_lookup.name
      AND a.rolcanlogin
      AND a.rolpassword IS NOT NULL
      AND (a.rolvaliduntil IS NULL OR a.rolvaliduntil > pg_catalog.now());
$function$;
COMMENT ON FUNCTION trunkline.user_lookup(text) IS 'verifier of a user who may log in now; for the role trunkline only';

-- EXECUTE is everybody's by default, and ALTER DEFAULT PRIVILEGES may give more.
DO $do$
DECLARE
    a record;
BEGIN
    FOR a IN
        SELECT 'FUNCTION trunkline.user_lookup(text)' AS what, e.grantee
          FROM pg_catalog.pg_proc p,
               pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) e
         WHERE p.oid = 'trunkline.user_lookup(text)'::pg_catalog.regprocedure AND e.grantee <> p.proowner
        UNION
        SELECT 'SCHEMA trunkline', e.grantee
          FROM pg_catalog.pg_namespace n,
               pg_catalog.aclexplode(coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))) e
         WHERE n.nspname = 'trunkline' AND e.grantee <> n.nspowner
    LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON %s FROM %s CASCADE', a.what,
            CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::pg_catalog.regrole::text END);
    END LOOP;
END
$do$;
GRANT USAGE ON SCHEMA trunkline TO trunkline;
GRANT EXECUTE ON FUNCTION trunkline.user_lookup(text) TO trunkline;
COMMIT;

\if :{?removed}
    \warn :removed
\endif
