//! What kept clients out, or proved who a server is, is never lost without a word: it is in what
//! was written, or `trunkline check` rejects what was written until the operator has decided about
//! it.

use super::tests::{errors, haproxy, has, imported, section, settled};
use super::{InputKind, Mode};

/// Its one error is the entry that is to be settled.
#[track_caller]
fn is_refused(yaml: &str) {
    let errors = errors(&settled(yaml)).join("\n");
    has(&errors, "listeners[0].deny[0]: is not an address or a network");
}

#[test]
fn a_listener_whose_rules_cannot_be_written_is_refused_by_check() {
    for rules in [
        "  tcp-request connection reject if { src -f /etc/blocked }\n",
        "  tcp-request connection reject if { src_conn_rate gt 10 }\n",
        "  tcp-request connection silent-drop if { src -f /etc/blocked }\n",
        "  tcp-request session reject unless { ssl_c_used }\n",
        "  tcp-request content reject if { src 10.0.0.0/8 } { dst_port 5001 }\n",
        "  acl office src 10.0.0.0/8\n  tcp-request connection reject if office !nobody\n",
        // Those whom an unknown test lets in are not known either.
        "  tcp-request connection accept if { src -f /etc/friends }\n  tcp-request connection reject\n",
        // `deny` would count before `allow`.
        "  tcp-request connection accept if { src 10.0.0.1 }\n  tcp-request connection reject if { src 10.0.0.0/8 }\n",
        "  tcp-request connection reject\n",
    ] {
        for mode in [Mode::Postgres, Mode::Tcp] {
            let (yaml, notes) = imported(InputKind::Haproxy, &section("/replica", rules), mode);
            has(&yaml, "\"TODO: line ");
            is_refused(&yaml);
            has(&notes.join("\n"), "tcp-request … ");
        }
    }
    // What there are words for needs nobody's attention.
    for rules in [
        "  tcp-request connection silent-drop if { src 10.9.0.0/16 }\n",
        "  tcp-request connection accept if { src ::1 }\n  tcp-request connection reject\n",
        "  tcp-request connection accept if { src -f /etc/friends }\n",
    ] {
        let (yaml, _) = haproxy(&section("/replica", rules));
        assert_eq!(errors(&settled(&yaml)), [""; 0], "{rules}");
    }
    let (yaml, _) = haproxy(&section(
        "/replica",
        "  tcp-request connection silent-drop if { src 10.9.0.0/16 }\n",
    ));
    has(&yaml, "deny: [\"10.9.0.0/16\"]");
}

#[test]
fn a_listener_of_one_interface_is_not_opened_on_all() {
    for bind in ["bind *:5001 interface eth1", "bind *:5001 namespace blue"] {
        let text = section("/replica", "").replace("bind *:5001", bind);
        let (yaml, _) = haproxy(&text);
        has(&yaml, "deny: [\"TODO: line 3, bind … ");
        is_refused(&yaml);
    }
}

#[test]
fn certificates_that_clients_had_to_show_are_not_forgotten() {
    let text = section("/replica", "").replace(
        "bind *:5001",
        "bind *:5001 ssl crt /etc/a.pem ca-file /etc/ca.crt verify required",
    );
    let (yaml, _) = haproxy(&text);
    has(&yaml, "auth: {hba_file: TODO-pg_hba.conf}");
    let (yaml, _) = imported(InputKind::Haproxy, &text, Mode::Tcp);
    has(&yaml, "deny: [\"TODO: line 3, bind … verify required");
    is_refused(&yaml);
    // By choice of the client it is no demand.
    let (yaml, _) = haproxy(&text.replace("verify required", "verify optional"));
    assert!(!yaml.contains("hba_file"), "{yaml}");
}

/// Of checks that ask Patroni.
#[test]
fn tls_of_checks_is_written_or_listed() {
    let checked = |global: &str, a: &str, b: &str| {
        haproxy(&format!(
            "global\n{global}listen reads\n bind *:5001\n option httpchk GET /replica\n server a a1:5432 check port 8008 \
             check-ssl {a}\n server b b1:5432 check port 8008 check-ssl {b}\n"
        ))
    };
    // The client certificate by which Patroni knows the balancer.
    let own = "verify required ca-file /etc/ca.crt crt /etc/patroni-client.pem";
    let (yaml, _) = checked("", own, own);
    has(
        &yaml,
        "      ca_file: /etc/ca.crt\n      # TODO: a certificate and its key, which others must not be able to read\n      \
         cert_file: /etc/patroni-client.pem\n      key_file: /etc/patroni-client.pem\n",
    );
    has(&errors(&settled(&yaml)).join("\n"), "/etc/patroni-client.pem");
    // Nobody was verified: that is said, and has to be settled.
    for (global, of_server) in [
        ("", "verify none"),
        (" ssl-server-verify none\n", ""),
        (" ssl-server-verify none\n", "check-sni a1"),
    ] {
        let (yaml, notes) = checked(global, of_server, of_server);
        has(&yaml, "      ca_file: TODO-patroni-ca.crt\n");
        has(&errors(&settled(&yaml)).join("\n"), "TODO-patroni-ca.crt");
        has(
            &notes.join("\n"),
            "server a … verify none: Patroni's certificates are always verified",
        );
    }
    // A server's own word counts before that of all.
    let (yaml, notes) = checked(" ssl-server-verify none\n", own, own);
    assert!(!notes.join("\n").contains("verify none"), "{notes:?}");
    has(&yaml, "      ca_file: /etc/ca.crt\n");
    // One authority for each server.
    let (yaml, notes) = checked(
        "",
        "ca-file /etc/a.crt check-sni a1",
        "ca-file /etc/b.crt crl-file /etc/crl",
    );
    has(&yaml, "      ca_file: /etc/a.crt\n");
    let notes = notes.join("\n");
    for expected in [
        "server b … ca-file: one file holds for all of Patroni's endpoints; the first server's was written",
        "server a … check-sni: the name asked for is the host of Patroni's endpoint",
        "server b … crl-file: lists of revoked certificates are not read for servers",
    ] {
        has(&notes, expected);
    }
    // The system's authorities are the default.
    let (yaml, _) = checked("", "ca-file @system-ca", "ca-file @system-ca");
    assert!(!yaml.contains("ca_file"), "{yaml}");
}

#[test]
fn tls_to_servers_that_differs_is_listed() {
    let text = "listen rw\n bind :1\n option httpchk GET /primary\n \
                server a a1:5432 check port 8008 ssl verify required ca-file /etc/a.crt verifyhost pg.example\n \
                server b b1:5432 check port 8008 ssl verify required ca-file /etc/b.crt\n";
    let (_, notes) = haproxy(text);
    let notes = notes.join("\n");
    has(
        &notes,
        "server b … ssl: TLS to the servers is one setting for the cluster; that of a was written",
    );
    has(&notes, "server a … verifyhost: `verify-full` compares");
}
