//! `read_only_on_leader: enforced`: a session on the leader whose role has been seen, on that very
//! connection, to be unable to write. Its rights are read from the catalogs, for it and for every
//! role it can become.
//!
//! "Unable to write" means:
//! - no attribute that lets it (SUPERUSER, CREATEROLE, CREATEDB, REPLICATION, BYPASSRLS), no
//!   predefined role that writes;
//! - it owns nothing anywhere, may not CREATE or have temporary tables in this database, nor CREATE
//!   in a schema of it;
//! - it may not change, maintain or put a trigger on a table, view, sequence or large object in it,
//!   nor make servers or user mappings of foreign data, nor SET or ALTER SYSTEM a parameter that is
//!   not for all roles;
//! - it may not call a function there that makes large objects, writes messages into the WAL or
//!   runs with its owner's rights, nor an aggregate with such a function, for which the aggregate's
//!   owner needs the right and not its caller;
//! - it may grant nothing (ADMIN OPTION, GRANT OPTION);
//! - it has no role settings: one session can make them (`ALTER ROLE … SET` of itself), and all
//!   others would begin with them.
//!
//! What no privilege can prevent is listed in `docs/configuration.md`, "Reading from the leader".

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::Unverified;
use crate::backend::{ConnectError, ServerConnection, query};
use crate::wire::text::is_unsafe;

/// The client's or its role's `statement_timeout` must not end the examination: with 1 ms it could
/// not report why the role is refused. A separate message, since PostgreSQL measures the time of
/// one message from its beginning.
const UNHURRIED: &str = "SET statement_timeout = 0";
const AS_BEFORE: &str = "RESET statement_timeout";

/// How often [`UNHURRIED`] is tried, which may itself be too slow for the timeout that it ends.
const TRIES: u32 = 5;

/// Returns the first right found, or no row. The client's settings must not influence it: it sets
/// `search_path`.
const BEGINNING: &str = "\
BEGIN READ ONLY; SET LOCAL search_path = pg_catalog; \
WITH me AS MATERIALIZED ( \
  SELECT r.* FROM pg_roles r WHERE pg_has_role(session_user, r.oid, 'MEMBER') OR r.rolname = session_user \
), acls (acl, what) AS ( \
  SELECT relacl, format('%s', oid::regclass) FROM pg_class WHERE relacl IS NOT NULL \
  UNION ALL \
  SELECT attacl, format('%s', attrelid::regclass) FROM pg_attribute WHERE attacl IS NOT NULL \
  UNION ALL SELECT proacl, format('%s', oid::regprocedure) FROM pg_proc WHERE proacl IS NOT NULL \
  UNION ALL SELECT nspacl, format('the schema %I', nspname) FROM pg_namespace WHERE nspacl IS NOT NULL \
  UNION ALL SELECT datacl, format('the database %I', datname) FROM pg_database WHERE datacl IS NOT NULL \
  UNION ALL SELECT typacl, format('the type %s', oid::regtype) FROM pg_type WHERE typacl IS NOT NULL \
  UNION ALL SELECT lanacl, format('the language %I', lanname) FROM pg_language WHERE lanacl IS NOT NULL \
  UNION ALL SELECT spcacl, format('the tablespace %I', spcname) FROM pg_tablespace WHERE spcacl IS NOT NULL \
  UNION ALL SELECT fdwacl, format('the wrapper %I', fdwname) FROM pg_foreign_data_wrapper WHERE fdwacl IS NOT NULL \
  UNION ALL SELECT srvacl, format('the server %I', srvname) FROM pg_foreign_server WHERE srvacl IS NOT NULL \
  UNION ALL SELECT lomacl, format('the large object %s', oid) FROM pg_largeobject_metadata WHERE lomacl IS NOT NULL \
), findings (n, why) AS ( \
  SELECT CASE WHEN rolname = session_user THEN 0 ELSE 1 END, \
         format(CASE WHEN rolname = session_user THEN 'has %2$s' ELSE 'is a member of %1$I, which has %2$s' END, \
                rolname, concat_ws(' and ', CASE WHEN rolsuper THEN 'SUPERUSER' END, \
                                   CASE WHEN rolcreaterole THEN 'CREATEROLE' END, \
                                   CASE WHEN rolcreatedb THEN 'CREATEDB' END, \
                                   CASE WHEN rolreplication THEN 'REPLICATION' END, \
                                   CASE WHEN rolbypassrls THEN 'BYPASSRLS' END)) FROM me \
   WHERE rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls \
  UNION ALL \
  SELECT 2, format('is a member of %I', rolname) FROM me \
   WHERE rolname IN ('pg_write_all_data', 'pg_write_server_files', 'pg_execute_server_program', \
                     'pg_create_subscription', 'pg_maintain') \
  UNION ALL \
  SELECT 3, format(CASE WHEN rolname = session_user THEN 'owns objects' \
                        ELSE 'is a member of %I, which owns objects' END, rolname) FROM me \
   WHERE EXISTS (SELECT FROM pg_shdepend d \
                  WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = me.oid AND d.deptype = 'o' \
                    AND d.classid <> 'pg_default_acl'::regclass) \
  UNION ALL \
  SELECT 4, format('has %s in the database %I', p.privilege, current_database()) \
    FROM me, (VALUES ('CREATE'), ('TEMPORARY')) AS p (privilege) \
   WHERE has_database_privilege(me.oid, (SELECT oid FROM pg_database WHERE datname = current_database()), p.privilege) \
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
  SELECT 8, 'may change every large object: lo_compat_privileges is on' \
   WHERE current_setting('lo_compat_privileges')::bool \
  UNION ALL \
  SELECT 9, format('may execute %s%s', p.oid::regprocedure, \
                   CASE WHEN p.prosecdef THEN ', which is SECURITY DEFINER' ELSE '' END) FROM me, pg_proc p \
   WHERE (p.prosecdef OR p.pronamespace = 'pg_catalog'::regnamespace \
                         AND p.proname IN ('lo_creat', 'lo_create', 'lo_from_bytea', 'lo_import', 'pg_logical_emit_message')) \
     AND has_function_privilege(me.oid, p.oid, 'EXECUTE') \
  UNION ALL \
  SELECT 9, format('may execute the aggregate %s, whose function %s runs with its owner''s rights', \
                   a.aggfnoid::regprocedure, p.oid::regprocedure) \
    FROM me, pg_aggregate a, pg_proc p \
   WHERE p.prosecdef AND has_function_privilege(me.oid, a.aggfnoid, 'EXECUTE') \
     AND p.oid IN (a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn, a.aggmtransfn, \
                   a.aggminvtransfn, a.aggmfinalfn) \
  UNION ALL \
  SELECT 10, format('may put a trigger on %s', c.oid::regclass) FROM me, pg_class c \
   WHERE c.relkind IN ('r', 'p', 'v', 'f') AND has_table_privilege(me.oid, c.oid, 'TRIGGER') \
  UNION ALL \
  SELECT 11, format('may use the foreign server %I', s.srvname) FROM me, pg_foreign_server s \
   WHERE has_server_privilege(me.oid, s.oid, 'USAGE') \
  UNION ALL \
  SELECT 12, format('may use the foreign-data wrapper %I', w.fdwname) FROM me, pg_foreign_data_wrapper w \
   WHERE has_foreign_data_wrapper_privilege(me.oid, w.oid, 'USAGE') \
  UNION ALL \
  SELECT 13, format('may grant the role %I to others', m.roleid::regrole) FROM me, pg_auth_members m \
   WHERE m.member = me.oid AND m.admin_option \
  UNION ALL \
  SELECT 14, format('may grant rights on %s to others', acls.what) FROM me, acls, aclexplode(acls.acl) a \
   WHERE a.grantee = me.oid AND a.is_grantable \
  UNION ALL \
  SELECT 15, format('has settings (%s), which any of its sessions can make for all: ALTER ROLE %I%s RESET ALL', \
                    (SELECT string_agg(split_part(c, '=', 1), ', ') FROM unnest(s.setconfig) c), me.rolname, \
                    CASE WHEN s.setdatabase = 0 THEN '' ELSE format(' IN DATABASE %I', current_database()) END) \
    FROM pg_db_role_setting s JOIN me ON me.oid = s.setrole AND me.rolname = session_user \
   WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))";

/// Of `PostgreSQL` 15 and later, which has rights on parameters.
const PARAMETERS: &str = " \
  UNION ALL \
  SELECT 16, format('may set the parameter %s', p.parname) FROM me, pg_parameter_acl p, aclexplode(p.paracl) a \
   WHERE a.grantee IN (0, me.oid)";

/// Of `PostgreSQL` 17 and later: REFRESH, REINDEX, CLUSTER, VACUUM FULL.
const MAINTAIN: &str = " \
  UNION ALL \
  SELECT 17, format('may maintain %s', c.oid::regclass) FROM me, pg_class c \
   WHERE c.relkind IN ('r', 'p', 'm') AND has_table_privilege(me.oid, c.oid, 'MAINTAIN')";

const END: &str = ") SELECT why, session_user FROM findings ORDER BY n LIMIT 1; COMMIT";

/// The questions for a server of this major version; for an unknown one, all of them.
fn examination(major: Option<u32>) -> String {
    let has = |since: u32| major.is_none_or(|major| major >= since);
    let mut text = BEGINNING.to_owned();
    if has(15) {
        text.push_str(PARAMETERS);
    }
    if has(17) {
        text.push_str(MAINTAIN);
    }
    text.push_str(END);
    text
}

/// The number that `server_version` begins with: `15.18 (Debian …)`, `19rc1`.
fn major(parameters: &[(Bytes, Bytes)]) -> Option<u32> {
    let (_, version) = parameters
        .iter()
        .find(|(name, _)| name.as_ref() == b"server_version")?;
    let digits = version.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&version[..digits]).ok()?.parse().ok()
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut ServerConnection<S>,
    deadline: Instant,
) -> Result<Vec<query::Row>, ConnectError> {
    let text = examination(major(&connection.parameters));
    let mut tries = 0;
    while let Err(error) = query::simple_query(connection, UNHURRIED, 0, deadline).await {
        tries += 1;
        if tries == TRIES || !error.leaves_usable() {
            return Err(error);
        }
    }
    let rows = query::simple_query(connection, &text, 1, deadline).await?;
    query::simple_query(connection, AS_BEFORE, 0, deadline).await?;
    Ok(rows)
}

/// `Err` says what the role of the connection may write, or that this could not be found out.
pub(crate) async fn writes_nothing<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut ServerConnection<S>,
    deadline: Instant,
) -> Result<(), Unverified> {
    let rows = ask(connection, deadline).await.map_err(|error| {
        Unverified(
            format!("is the leader, and the role of this session could not be examined: {error}").into(),
            "Try again in a moment. The router's log has the details.",
        )
    })?;
    match rows.first() {
        None => Ok(()),
        Some(row) => Err(refusal(row)),
    }
}

/// The error for a row of [`examination`]: the first right that the role must not have, and the
/// role that has it.
fn refusal(row: &query::Row) -> Unverified {
    // Names in it come from the cluster.
    let text = |column: usize, most: usize| -> String {
        let value = row.get(column).and_then(Option::as_deref).unwrap_or_default();
        let value = String::from_utf8_lossy(value);
        value.chars().filter(|c| !is_unsafe(*c)).take(most).collect()
    };
    let (why, role) = (text(0, 300), text(1, 63));
    Unverified(
        format!("is the leader, and role \"{role}\" {why}").into(),
        "Try again when a replica is available. For reading from the leader, the operator has to take this right from the \
         role (docs/configuration.md, \"Reading from the leader\").",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_role_and_says_what_to_do() {
        let row = |why: &str, role: &str| vec![Some(why.as_bytes().to_vec()), Some(role.as_bytes().to_vec())];
        let Unverified(why, hint) = refusal(&row("has CREATEROLE", "rea\nder"));
        assert_eq!(why, "is the leader, and role \"reader\" has CREATEROLE");
        assert!(
            hint.starts_with("Try again when a replica is available."),
            "{hint}"
        );
        assert!(
            hint.contains("the operator has to take this right from the role"),
            "{hint}"
        );
        let Unverified(long, _) = refusal(&row(&"x".repeat(5000), "reader"));
        assert!(long.len() < 400, "{}", long.len());
    }

    #[test]
    fn a_server_is_asked_for_what_its_version_has() {
        let version = |text: &'static str| {
            let name = Bytes::from_static(b"server_version");
            major(&[(name, Bytes::from_static(text.as_bytes()))])
        };
        assert_eq!(version("14.9"), Some(14));
        assert_eq!(version("15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(version("19rc1"), Some(19));
        assert_eq!(version("devel"), None);
        assert_eq!(major(&[]), None);
        let asks = |major, what: &str| examination(major).contains(what);
        for (what, since) in [("pg_parameter_acl", 15), ("MAINTAIN", 17)] {
            assert!(!asks(Some(since - 1), what), "{what}");
            assert!(asks(Some(since), what), "{what}");
            // Rather a refused session than one that was not looked at.
            assert!(asks(None, what), "{what}");
        }
    }
}
