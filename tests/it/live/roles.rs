//! Roles that are altered on the server.

use super::*;
use crate::cluster::eventually;
use crate::cluster::postgres;

#[test]
fn roles_that_are_altered_count_at_once_by_every_method() {
    for version_18 in [false, true] {
        let server = Postgres::start(&postgres::Options {
            hba: Some(SERVER_HBA.to_owned()),
            version_18,
            ..postgres::Options::default()
        });
        roles_that_are_altered_count_at_once(&server);
    }
}

fn roles_that_are_altered_count_at_once(server: &Postgres) {
    let dir = tempfile::tempdir().unwrap();
    let hba = write(dir.path(), "pg_hba.conf", RULES);
    let router = router(server, &[UNLIMITED, &format!("hba_file: {}", hba.display())]);
    for_each_kind(
        server,
        "CREATE ROLE KIND_changed LOGIN PASSWORD 'old'; CREATE ROLE KIND_dropped LOGIN PASSWORD 'old';
         CREATE ROLE KIND_shut LOGIN PASSWORD 'old'; CREATE ROLE KIND_expired LOGIN PASSWORD 'old';
         CREATE ROLE KIND_renamed LOGIN PASSWORD 'old'",
    );
    let users: Vec<String> = KINDS
        .iter()
        .flat_map(|kind| {
            ["changed", "dropped", "shut", "expired", "renamed"].map(|what| format!("{kind}_{what}"))
        })
        .collect();
    let sessions: Vec<Session> = users.iter().map(|user| open(&router, user, "old")).collect();
    for kind in KINDS {
        // Remembered as unknown.
        for new in ["new", "created"] {
            let user = format!("{kind}_{new}");
            assert_told(&log_in(&router, &user, "old"), "28P01", &user);
        }
    }

    for_each_kind(
        server,
        "ALTER ROLE KIND_changed PASSWORD 'new'; DROP ROLE KIND_dropped; ALTER ROLE KIND_shut NOLOGIN;
         ALTER ROLE KIND_expired VALID UNTIL '2020-01-01'; ALTER ROLE KIND_renamed RENAME TO KIND_new;
         CREATE ROLE KIND_created LOGIN PASSWORD 'old'",
    );
    // Not even with what is remembered: the server decides as well.
    for user in &users {
        assert!(log_in(&router, user, "old").is_err(), "{user} got in");
    }
    for user in &users {
        eventually("the router itself knows better", AT_ONCE, || {
            is(&log_in(&router, user, "old"), "28P01")
        });
    }
    for kind in KINDS {
        // A server forgets the md5 hash of a role that is renamed, since the name is in it.
        let (renamed, by_new_name) = (format!("{kind}_new"), kind != "hash");
        for (user, password, gets_in) in [
            (format!("{kind}_changed"), "new", true),
            (format!("{kind}_created"), "old", true),
            (renamed, "old", by_new_name),
        ] {
            if gets_in {
                eventually("what is new opens", AT_ONCE, || {
                    log_in(&router, &user, password).as_deref() == Ok(&*user)
                });
            } else {
                assert_told(&log_in(&router, &user, password), "28P01", &user);
            }
        }
        let changed = format!("{kind}_changed");
        assert_told(&log_in(&router, &changed, "old"), "28P01", &changed);
    }
    for session in &sessions {
        session.goes_on();
    }
}

/// Nothing happens at that moment but that it passes.
#[test]
fn a_password_is_good_until_its_time_is_over() {
    let server = Postgres::start(&postgres::Options {
        hba: Some(SERVER_HBA.to_owned()),
        ..postgres::Options::default()
    });
    let dir = tempfile::tempdir().unwrap();
    let hba = write(dir.path(), "pg_hba.conf", RULES);
    let router = router(&server, &[UNLIMITED, &format!("hba_file: {}", hba.display())]);
    let is_good = |user: &str| {
        let sql = format!("SELECT rolvaliduntil > clock_timestamp() FROM pg_roles WHERE rolname = '{user}'");
        server.sql(&sql) == "t"
    };
    for kind in KINDS {
        let user = format!("{kind}_brief");
        server.sql(&format!(
            "SET password_encryption = '{}';
             DO $$ BEGIN EXECUTE format('CREATE ROLE {user} LOGIN PASSWORD ''x'' VALID UNTIL %L',
                                        clock_timestamp() + interval '3 s'); END $$",
            encryption(kind)
        ));
        let session = open(&router, &user, "x");
        eventually("its time is over", AT_ONCE, || {
            let told = log_in(&router, &user, "x");
            let is_good = is_good(&user);
            assert!(told.is_ok() || !is_good, "{user} is still good: {told:?}");
            told.is_err()
        });
        // For a second only the server knows.
        eventually("the router knows as well", AT_ONCE, || {
            is(&log_in(&router, &user, "x"), "28P01")
        });
        session.goes_on();
        server.sql(&format!("ALTER ROLE {user} VALID UNTIL 'infinity'"));
        eventually("it is good again", AT_ONCE, || {
            log_in(&router, &user, "x").is_ok()
        });
    }
}

/// Rules by memberships follow GRANT and REVOKE as passwords follow ALTER ROLE.
#[test]
fn who_is_granted_or_revoked_a_role_of_a_rule_is_let_in_or_kept_out_at_once() {
    let server = Postgres::start(&postgres::Options {
        hba: Some(SERVER_HBA.to_owned()),
        ..postgres::Options::default()
    });
    server.sql(
        "CREATE ROLE scram_staff; CREATE ROLE clear_staff; CREATE ROLE either_staff; CREATE ROLE between;
         CREATE ROLE barred; CREATE ROLE scram_member LOGIN PASSWORD 'x'; CREATE ROLE clear_member LOGIN PASSWORD 'x';
         CREATE ROLE either_member LOGIN PASSWORD 'x'",
    );
    let dir = tempfile::tempdir().unwrap();
    let rules = "host all +barred all reject\nhost all +scram_staff all scram-sha-256\n\
                 host all +clear_staff all password\nhost all +either_staff all md5\nhost all all all reject\n";
    let hba = write(dir.path(), "pg_hba.conf", rules);
    let router = router(&server, &[UNLIMITED, &format!("hba_file: {}", hba.display())]);
    for kind in ["scram", "clear", "either"] {
        let (user, staff) = (format!("{kind}_member"), format!("{kind}_staff"));
        let refused = || is(&log_in(&router, &user, "x"), "28000");
        let let_in = || log_in(&router, &user, "x").as_deref() == Ok(&*user);
        assert!(refused(), "{user} is no member");
        server.sql(&format!("GRANT {staff} TO {user}"));
        eventually("granted", AT_ONCE, let_in);
        let session = open(&router, &user, "x");
        server.sql(&format!("REVOKE {staff} FROM {user}"));
        eventually("revoked", AT_ONCE, refused);
        session.goes_on();
        // By way of another role, which then goes.
        server.sql(&format!("GRANT {staff} TO between; GRANT between TO {user}"));
        eventually("granted indirectly", AT_ONCE, let_in);
        server.sql("DROP ROLE between; CREATE ROLE between");
        eventually("dropped", AT_ONCE, refused);
        // A rule that keeps its members out.
        server.sql(&format!("GRANT {staff} TO {user}"));
        eventually("granted once more", AT_ONCE, let_in);
        server.sql(&format!("GRANT barred TO {user}"));
        eventually("barred", AT_ONCE, refused);
        session.goes_on();
    }
}
