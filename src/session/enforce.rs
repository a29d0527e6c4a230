//! `read_only_on_leader: enforced`: a session on the leader whose role has been seen, on that very connection, to be
//! unable to write. What it may do is read from the catalogs, for it and for every role it can become.
//!
//! It may write nothing means: no attribute that lets it (SUPERUSER, CREATEROLE, CREATEDB, REPLICATION, BYPASSRLS), no
//! predefined role that writes, it owns nothing anywhere, may not CREATE or have temporary tables in this database, nor
//! change a table, view, sequence or large object in it, nor call a function there that makes large objects or that
//! runs with its owner's rights.

use tokio::time::Instant;

use crate::backend::{ServerConnection, query};

/// Gives the first thing found, or no row. The client's settings must not bend it: `search_path` is its own.
const FAULTS: &str = "\
BEGIN READ ONLY; SET LOCAL search_path = pg_catalog; \
WITH me AS MATERIALIZED ( \
  SELECT r.* FROM pg_roles r WHERE pg_has_role(session_user, r.oid, 'MEMBER') OR r.rolname = session_user \
), faults (n, why) AS ( \
  SELECT 1, format('has or can take the attributes of %I', rolname) FROM me \
   WHERE rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls \
  UNION ALL \
  SELECT 2, format('is a member of %I', rolname) FROM me \
   WHERE rolname IN ('pg_write_all_data', 'pg_write_server_files', 'pg_execute_server_program', \
                     'pg_create_subscription', 'pg_maintain') \
  UNION ALL \
  SELECT 3, format('owns something, as %I', rolname) FROM me \
   WHERE EXISTS (SELECT FROM pg_shdepend d \
                  WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = me.oid AND d.deptype = 'o') \
  UNION ALL \
  SELECT 4, 'may CREATE in the database, or has TEMPORARY there' FROM me \
   WHERE has_database_privilege(me.oid, (SELECT oid FROM pg_database WHERE datname = current_database()), \
                                'CREATE, TEMPORARY') \
  UNION ALL \
  SELECT 5, format('may create in the schema %I', n.nspname) FROM me, pg_namespace n \
   WHERE has_schema_privilege(me.oid, n.oid, 'CREATE') \
  UNION ALL \
  SELECT 6, format('may change %s', c.oid::regclass) FROM me, pg_class c \
   WHERE c.relkind IN ('r', 'p', 'v', 'f') AND c.oid <> 'pg_settings'::regclass \
     AND (has_table_privilege(me.oid, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE') \
          OR has_any_column_privilege(me.oid, c.oid, 'INSERT, UPDATE')) \
  UNION ALL \
  SELECT 7, format('may change %s', c.oid::regclass) FROM me, pg_class c \
   WHERE CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(me.oid, c.oid, 'USAGE, UPDATE') END \
  UNION ALL \
  SELECT 8, format('may change the large object %s', l.oid) FROM me, pg_largeobject_metadata l, aclexplode(l.lomacl) a \
   WHERE a.grantee IN (0, me.oid) AND a.privilege_type = 'UPDATE' \
  UNION ALL \
  SELECT 9, format('may execute %s', p.oid::regprocedure) FROM me, pg_proc p \
   WHERE (p.prosecdef OR p.pronamespace = 'pg_catalog'::regnamespace \
                         AND p.proname IN ('lo_creat', 'lo_create', 'lo_from_bytea', 'lo_import')) \
     AND has_function_privilege(me.oid, p.oid, 'EXECUTE') \
) SELECT why FROM faults ORDER BY n LIMIT 1; COMMIT";

/// `Err` tells what the role that the connection is logged in as may write, or that this could not be found out:
/// it completes "the role …".
pub(super) async fn writes_nothing(
    connection: &mut ServerConnection,
    deadline: Instant,
) -> Result<(), String> {
    let rows = query::simple_query(connection, FAULTS, 1, deadline)
        .await
        .map_err(|error| format!("could not be examined: {error}"))?;
    match rows.into_iter().next() {
        None => Ok(()),
        Some(row) => {
            let why = row.into_iter().next().flatten().unwrap_or_default();
            let why = String::from_utf8_lossy(&why);
            // Names in it are the cluster's.
            Err(why.chars().take(200).filter(|c| !c.is_control()).collect())
        }
    }
}
