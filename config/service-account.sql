-- The router's service account: one role, with the least it needs. Run it once, on the leader, as a superuser, in the
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
--   * pg_control_system(): the system identifier, so that a member of another cluster is never used. Every role may call
--     it as PostgreSQL ships; the grant keeps it so where somebody has revoked it from PUBLIC;
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
\set ON_ERROR_STOP on
\if :{?password}
\else
    \getenv password TRUNKLINE_PASSWORD
\endif
\if :{?password}
\else
    \warn 'Give the password of the role trunkline in the environment variable TRUNKLINE_PASSWORD'
    DO $$ BEGIN RAISE EXCEPTION 'no password for the role trunkline'; END $$;
\endif

BEGIN;
SET LOCAL search_path = pg_catalog;
SET LOCAL password_encryption = 'scram-sha-256';
-- Neither the password nor its verifier belongs into the server's log.
SET LOCAL log_statement = 'none';
SET LOCAL log_min_duration_statement = -1;
SET LOCAL log_min_error_statement = 'panic';

SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'trunkline') AS create_role \gset
\if :create_role
    CREATE ROLE trunkline;
\endif
ALTER ROLE trunkline WITH LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE INHERIT NOREPLICATION NOBYPASSRLS
    PASSWORD :'password';
COMMENT ON ROLE trunkline IS 'service account of the connection manager Trunkline';

GRANT pg_monitor TO trunkline;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_control_system() TO trunkline;

CREATE SCHEMA IF NOT EXISTS trunkline;
-- Whoever runs this file owns the schema and the function, also where somebody made them before: an owner could put
-- something else in the function's place. Nobody else may put anything beside it.
ALTER SCHEMA trunkline OWNER TO CURRENT_USER;
REVOKE ALL ON SCHEMA trunkline FROM PUBLIC;
GRANT USAGE ON SCHEMA trunkline TO trunkline;

-- The verifier that the server itself would use: none for a role that does not exist, may not log in, has no password,
-- or whose password has expired (VALID UNTIL; null and infinity never do).
-- A SQL function with a fixed search_path, so that no caller can put its own objects in the way of a superuser's rights.
CREATE OR REPLACE FUNCTION trunkline.user_lookup(name text)
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
ALTER FUNCTION trunkline.user_lookup(text) OWNER TO CURRENT_USER;
COMMENT ON FUNCTION trunkline.user_lookup(text) IS 'verifier of a user who may log in now; for the role trunkline only';

REVOKE ALL ON FUNCTION trunkline.user_lookup(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION trunkline.user_lookup(text) TO trunkline;
COMMIT;
