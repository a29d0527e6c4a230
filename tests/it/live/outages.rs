//! Nobody can be asked: no wrong password, no way in, and nobody is locked out by what others try
//! meanwhile.

use tokio::time::Instant;

use super::*;
use crate::cluster::{eventually, pause, postgres};

/// The account's connections for look-ups; those of the probe are others.
const CUT: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE application_name = 'trunkline look-up'";
const HIDE: &str = "ALTER FUNCTION trunkline.user_lookup(text) RENAME TO hidden";
const SHOW: &str = "ALTER FUNCTION trunkline.hidden(text) RENAME TO user_lookup";
const CONFIRMED: Duration = Duration::from_secs(1);

fn start() -> Postgres {
    let server = Postgres::start(&postgres::Options {
        hba: Some(SERVER_HBA.to_owned()),
        ..postgres::Options::default()
    });
    for_each_kind(&server, "CREATE ROLE KIND_user LOGIN PASSWORD 'right'");
    server.sql("CREATE ROLE staff; CREATE ROLE member LOGIN PASSWORD 'right'; GRANT staff TO member");
    server
}

fn before(server: &Postgres, dir: &Path, auth: &[&str]) -> Router {
    let rules = format!("{RULES}host all +staff all scram-sha-256\nhost all all all reject\n");
    let hba = format!("hba_file: {}", write(dir, "pg_hba.conf", &rules).display());
    router(server, &[&[&*hba], auth].concat())
}

fn users() -> Vec<String> {
    let kinds = KINDS.iter().map(|kind| format!("{kind}_user"));
    kinds.chain(["member".to_owned()]).collect()
}

/// Waits until an answer asked at `asked` at the latest has to be confirmed: the clock is the
/// condition here.
fn older(asked: Instant, age: Duration) {
    pause((asked + age + Duration::from_millis(20)).saturating_duration_since(Instant::now()));
}

#[test]
fn a_look_up_that_fails_is_no_wrong_password_and_no_way_in() {
    let server = start();
    let dir = tempfile::tempdir().unwrap();
    let router = before(&server, dir.path(), &[UNLIMITED, "cache_ttl: 0s"]);
    let sessions: Vec<Session> = users().iter().map(|user| open(&router, user, "right")).collect();
    let shut = format!("host all trunkline all reject\n{SERVER_HBA}");
    let outages = [
        ("no function", HIDE, SHOW, SERVER_HBA),
        (
            "no right to it",
            "REVOKE EXECUTE ON FUNCTION trunkline.user_lookup(text) FROM trunkline",
            "GRANT EXECUTE ON FUNCTION trunkline.user_lookup(text) TO trunkline",
            SERVER_HBA,
        ),
        (
            "no right to connect",
            "REVOKE CONNECT ON DATABASE postgres FROM PUBLIC",
            "GRANT CONNECT ON DATABASE postgres TO PUBLIC",
            SERVER_HBA,
        ),
        ("not by pg_hba.conf", "", "", &shut),
    ];
    for (what, begin, end, hba) in outages {
        server.sql(begin);
        server.set_hba(hba);
        eventually("the server has noticed", AT_ONCE, || {
            server.sql(CUT);
            is(&log_in(&router, "scram_user", "right"), "57P03")
        });
        let mut all = users();
        all.extend(KINDS.iter().map(|kind| format!("{kind}_nobody")));
        for user in &all {
            for password in ["right", "wrong"] {
                assert_told(
                    &log_in(&router, user, password),
                    "57P03",
                    &format!("{what}: {user}"),
                );
            }
        }
        for session in &sessions {
            session.goes_on();
        }
        server.sql(end);
        server.set_hba(SERVER_HBA);
        for user in users() {
            eventually("it is over", AT_ONCE, || log_in(&router, &user, "right").is_ok());
            assert_told(&log_in(&router, &user, "wrong"), "28P01", &user);
        }
    }
    router.await_log(&["a verifier could not be looked up"]);
    router.await_log(&["memberships could not be looked up"]);
}

/// Only who needs them is kept waiting.
#[test]
fn memberships_that_cannot_be_looked_up_neither_let_in_nor_pass_a_rule_over() {
    let server = start();
    let dir = tempfile::tempdir().unwrap();
    let router = before(&server, dir.path(), &[UNLIMITED, "cache_ttl: 0s"]);
    server.sql("CREATE ROLE outsider LOGIN PASSWORD 'right'");
    assert!(log_in(&router, "member", "right").is_ok());
    assert_told(&log_in(&router, "outsider", "right"), "28000", "outsider");
    server.sql("REVOKE SELECT ON pg_auth_members FROM PUBLIC");
    for user in ["member", "outsider", "nobody"] {
        for password in ["right", "wrong"] {
            assert_told(&log_in(&router, user, password), "57P03", user);
        }
    }
    assert!(
        log_in(&router, "scram_user", "right").is_ok(),
        "a rule before it decides"
    );
    assert_told(&log_in(&router, "scram_user", "wrong"), "28P01", "scram_user");
    server.sql("GRANT SELECT ON pg_auth_members TO PUBLIC");
    assert!(log_in(&router, "member", "right").is_ok());
    assert_told(&log_in(&router, "outsider", "right"), "28000", "outsider");
}

#[test]
fn what_is_remembered_lets_in_whom_it_fits_and_makes_nobodys_password_wrong() {
    let server = start();
    let dir = tempfile::tempdir().unwrap();
    let limit = "rate_limit: {failures: 60, refuse_after: 60}";
    let router = before(&server, dir.path(), &[limit]);
    let sessions: Vec<Session> = users().iter().map(|user| open(&router, user, "right")).collect();
    server.sql("CREATE ROLE outsider LOGIN PASSWORD 'right'");
    assert_told(&log_in(&router, "outsider", "right"), "28000", "no member");
    assert_told(
        &log_in(&router, "scram_nobody", "x"),
        "28P01",
        "remembered as unknown",
    );
    let known = Instant::now();
    server.sql(HIDE);
    server.sql("REVOKE SELECT ON pg_auth_members FROM PUBLIC");
    older(known, CONFIRMED);
    for user in users() {
        // Whoever tries wrong ones keeps nobody out.
        for _ in 0..3 {
            assert_told(&log_in(&router, &user, "wrong"), "57P03", &user);
            assert_eq!(log_in(&router, &user, "right").as_deref(), Ok(&*user));
        }
    }
    for user in [
        "scram_nobody",
        "scram_unheard_of",
        "hash_unheard_of",
        "unheard_of",
    ] {
        assert_told(&log_in(&router, user, "right"), "57P03", user);
    }
    // As it may be: the role is granted, the password changed just now.
    server.sql("GRANT staff TO outsider");
    assert_told(&log_in(&router, "outsider", "right"), "57P03", "outsider");
    for_each_kind(&server, "ALTER ROLE KIND_user PASSWORD 'changed'");
    for kind in KINDS {
        let user = format!("{kind}_user");
        assert_told(&log_in(&router, &user, "changed"), "57P03", &user);
        assert!(
            log_in(&router, &user, "right").is_err(),
            "{user}: the server decides as well"
        );
    }
    router.await_log(&[
        "login refused",
        "the password does not match a remembered answer, and no server could confirm that answer",
    ]);
    server.sql(SHOW);
    server.sql("GRANT SELECT ON pg_auth_members TO PUBLIC");
    for kind in KINDS {
        let user = format!("{kind}_user");
        eventually("it is over", AT_ONCE, || {
            log_in(&router, &user, "changed").is_ok()
        });
    }
    eventually("it is over", AT_ONCE, || {
        log_in(&router, "outsider", "right").is_ok()
    });
    eventually("it is over", AT_ONCE, || {
        is(&log_in(&router, "scram_user", "right"), "28P01")
    });
    for session in &sessions {
        session.goes_on();
    }
}

#[test]
fn what_is_remembered_serves_for_cache_ttl_and_no_longer() {
    let server = start();
    let dir = tempfile::tempdir().unwrap();
    let ttl = Duration::from_secs(6);
    let router = before(&server, dir.path(), &[UNLIMITED, "cache_ttl: 6s"]);
    let begun = Instant::now();
    for user in users() {
        assert!(log_in(&router, &user, "right").is_ok(), "{user}");
    }
    server.sql(HIDE);
    server.sql("REVOKE SELECT ON pg_auth_members FROM PUBLIC");
    let known = Instant::now();
    while begun.elapsed() + CONFIRMED < ttl {
        for user in users() {
            let asked = begun.elapsed();
            let told = log_in(&router, &user, "right");
            assert!(
                told.is_ok() || asked.max(begun.elapsed()) >= ttl,
                "{user}: {told:?}"
            );
        }
    }
    older(known, ttl);
    for user in users() {
        for password in ["right", "wrong"] {
            assert_told(&log_in(&router, &user, password), "57P03", &user);
        }
    }
    server.sql(SHOW);
    server.sql("GRANT SELECT ON pg_auth_members TO PUBLIC");
    for user in users() {
        assert!(log_in(&router, &user, "right").is_ok(), "{user}");
    }
}

/// Whom the router would let in, it has nowhere to let in to.
#[test]
fn without_a_leader_a_remembered_user_is_told_so() {
    let server = start();
    let dir = tempfile::tempdir().unwrap();
    let router = before(&server, dir.path(), &[UNLIMITED]);
    for user in users() {
        assert!(log_in(&router, &user, "right").is_ok(), "{user}");
    }
    server.stop();
    eventually("no leader", AT_ONCE, || {
        let told = log_in(&router, "scram_user", "right");
        assert_told(&told, "57P03", "scram_user");
        told.is_err_and(|told| told.contains("no server accepts read-write sessions now"))
    });
    for user in users() {
        for password in ["right", "wrong"] {
            assert_told(&log_in(&router, &user, password), "57P03", &user);
        }
    }
    server.start_again();
    for user in users() {
        eventually("the leader is back", AT_ONCE, || {
            log_in(&router, &user, "right").is_ok()
        });
    }
}

/// Whoever can make look-ups fail or late must not be able to guess without a bound; and no user is
/// locked out by it.
#[test]
fn guesses_during_an_outage_count_for_the_address() {
    let server = start();
    let dir = tempfile::tempdir().unwrap();
    let limit = "rate_limit: {failures: 2, delay: 0s, refuse_after: 3}";
    let router = before(&server, dir.path(), &[limit]);
    assert!(log_in(&router, "scram_user", "right").is_ok());
    assert_told(
        &log_in(&router, "scram_nobody", "x"),
        "28P01",
        "remembered as unknown",
    );
    let known = Instant::now();
    server.sql(HIDE);
    older(known, CONFIRMED);
    for _ in 0..2 {
        assert_told(&log_in(&router, "scram_nobody", "x"), "57P03", "not confirmed");
    }
    assert_told(&log_in(&router, "scram_nobody", "x"), "53300", "too many by now");
    assert!(
        log_in(&router, "scram_user", "right").is_ok(),
        "who has logged in from here is not kept out"
    );
}
