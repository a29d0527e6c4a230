-- The router's service account: one role, with only the rights that it needs. Run this file once,
-- on the leader, as a superuser, in the database named by `service_account.dbname` (default
-- postgres). You may run it again at any time:
--
--   TRUNKLINE_PASSWORD="$(cat trunkline-password)" psql -d postgres -f service-account.sql
--
-- (`psql -v password=…` works too, but every user of that host can then read the password in the
-- list of processes.)
--
-- The account may do this:
--   * log in, for the probes of every member;
--   * pg_monitor: a standby shows the timeline it receives (pg_stat_wal_receiver.received_tli) and
--     its sender only to members of pg_read_all_stats, which pg_monitor contains. It can read
--     statistics and settings, but no rows of tables;
--   * pg_control_system() and pg_control_checkpoint(): the system identifier and the timeline, so
--     that the router never uses a member of another cluster, or an old primary. By default every
--     role may call them; the grant keeps this right if somebody has revoked it from PUBLIC;
--   * trunkline.user_lookup(): the SCRAM verifier of a user that logs in. The account cannot read
--     pg_authid itself;
--   * memberships of roles need no grant: by default every role can read pg_roles and
--     pg_auth_members.
--
-- A person with the account's password can read verifiers and try passwords against them offline,
-- also those of superusers. PgBouncer's auth_query has the same property. Protect this password
-- like a superuser's. To exclude superusers (they then cannot log in through the router), add to
-- the function's WHERE:
--     AND NOT a.rolsuper
-- or, for all roles that should not log in through the router:
--     AND NOT pg_catalog.pg_has_role(a.oid, 'no_router', 'member')
--
-- These roles can become the account: superusers; before PostgreSQL 16 every role with CREATEROLE,
-- since it may set the account's password (give CREATEROLE there only to roles that may read
-- verifiers); from 16 on roles with ADMIN OPTION on it, of which this file leaves none. The file
-- revokes what others have granted: members of the account, its own memberships, and rights on the
-- schema and the function.
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

-- No notices about objects that exist already when the file is run again.
SET LOCAL client_min_messages = 'warning';
SET LOCAL password_encryption = 'scram-sha-256';
-- Keep the password and its verifier out of the server's log.
SET LOCAL log_statement = 'none';
SET LOCAL log_min_duration_statement = -1;
SET LOCAL log_min_error_statement = 'panic';

-- A role with CREATE on this database could have created the schema first, to read verifiers
-- through it later.
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

-- Objects that a former member created as the account keep the account's rights: a SECURITY DEFINER
-- function could read verifiers.
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
COMMENT ON ROLE trunkline IS 'service account of Trunkline';

-- A member of the account could look up verifiers as well, and the account needs no other
-- memberships. The end of this file reports the memberships that were removed, once the removal is
-- committed.
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
        -- If an earlier REVOKE has removed this one already, the server says so in a WARNING.
        EXECUTE pg_catalog.format('REVOKE %s FROM %s', m.role, m.member)
            || CASE WHEN pg_catalog.current_setting('server_version_num')::int4 >= 160000
                    THEN pg_catalog.format(' GRANTED BY %I', m.grantor) ELSE '' END
            || ' CASCADE';
    END LOOP;
END
$do$;

GRANT pg_monitor TO trunkline;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_control_system(), pg_catalog.pg_control_checkpoint() TO trunkline;

-- Created anew each time, because CREATE OR REPLACE would keep the rights that others have on it.
-- If anything depends on the function, or if the schema contains anything else, the file stops
-- here, because nothing else belongs there. The server's own hint, CASCADE, would drop such
-- objects.
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

-- The verifier that the server itself would use. There is none for a role that does not exist, may
-- not log in, or has no password, and none for an expired password (VALID UNTIL; null and infinity
-- never expire). It is a SQL function with a fixed search_path, so that a caller's own objects
-- never run with a superuser's rights.
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
COMMENT ON FUNCTION trunkline.user_lookup(text) IS 'verifier of a user that may log in now; for the role trunkline only';

-- By default PUBLIC has EXECUTE, and ALTER DEFAULT PRIVILEGES may have added more.
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
