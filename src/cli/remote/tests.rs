use super::*;

#[test]
fn a_token_is_for_this_host_or_for_https() {
    for here in [
        "http://127.0.0.1:6434",
        "http://[::1]:6434",
        "http://localhost:6434",
    ] {
        assert!(is_here(here), "{here}");
    }
    for elsewhere in [
        "http://db1:6434",
        "http://10.0.0.1:6434",
        "http://127.0.0.1.example:1",
        "nonsense",
    ] {
        assert!(!is_here(elsewhere), "{elsewhere}");
    }
}

fn asking(url: String) -> String {
    let remote = Remote {
        config: None,
        url: Some(url),
        token_file: None,
        ca_file: None,
        cluster: None,
        json: false,
    };
    remote
        .router()
        .and_then(|router| router.look("/api/v1/members"))
        .expect_err("nobody answers as a router does")
}

/// What is asked there is answered with this, whatever it was.
fn answering(with: &'static [u8]) -> std::net::SocketAddr {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.read(&mut [0; 1024]);
            let _ = client.write_all(with);
        }
    });
    address
}

#[test]
fn another_port_or_scheme_is_named_as_that() {
    for with in [&b""[..], b"ready drain\n"] {
        let told = asking(format!("http://{}", answering(with)));
        assert!(told.contains("does not answer in HTTP"), "{told}");
        assert!(told.contains("http.address (6434 by default)"), "{told}");
    }
    let told = asking(format!(
        "https://{}",
        answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    ));
    assert!(told.contains("the other side does not speak TLS"), "{told}");
    assert!(told.contains("write http://"), "{told}");
    let told = asking("127.0.0.1:6434".to_owned());
    assert!(told.contains("begin the URL with http://"), "{told}");
}

#[test]
fn what_another_side_says_gives_a_terminal_no_orders() {
    let hostile = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n\
        {\"error\":\"\\u001b[2J\\nFAKE\",\"hint\":\"\\u0007\\u009b\\u202e\"}";
    let told = asking(format!("http://{}", answering(hostile)));
    assert!(
        told.contains("\\u{1b}[2J\\nFAKE (\\u{7}\\u{9b}\\u{202e})"),
        "{told}"
    );
    assert!(!told.contains(crate::wire::text::is_unsafe), "{told}");
}

#[test]
fn an_answer_without_end_is_read_no_further() {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let sender = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("it connects");
        let _ = client.read(&mut [0; 1024]);
        let mut sent = client.write(b"HTTP/1.1 200 OK\r\n\r\n[").unwrap_or_default();
        while let Ok(count) = client.write(&[b'['; 16_384]) {
            sent += count;
        }
        sent
    });
    let told = asking(format!("http://{address}"));
    let expected = format!("http://{address} sends more than 64 MiB, and no more is read");
    assert!(told.starts_with(&expected), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    // What is more was in the buffers of the two sockets.
    let sent = sender.join().expect("it has ended");
    assert!(sent < MAX_ANSWER + 32 * 1024 * 1024, "{sent}");
}

#[test]
fn what_is_not_asked_is_told_apart_from_silence() {
    let remote = Remote::by_configuration(Path::new("/nowhere/trunkline.yaml"));
    assert!(remote.router().is_err());
    let (directory, _) = by_configuration("");
    let token = directory.path().join("token");
    std::fs::write(&token, "a-token-of-24-characters").expect("written");
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("set");
    let remote = Remote {
        config: None,
        url: Some("http://router.example:6434".to_owned()),
        token_file: Some(token),
        ..remote
    };
    let router = remote.router().expect("it can be asked");
    let fault = router.look_closely("/api/v1/members").expect_err("in clear");
    assert!(matches!(fault, Fault::Unasked(_)), "{fault:?}");
}

fn by_configuration(text: &str) -> (tempfile::TempDir, Remote) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("trunkline.yaml");
    std::fs::write(&path, text).expect("written");
    let remote = Remote {
        config: Some(path),
        url: None,
        token_file: None,
        ca_file: None,
        cluster: None,
        json: false,
    };
    (directory, remote)
}

#[test]
fn faults_elsewhere_in_the_file_do_not_hide_the_router() {
    let address = answering(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n[]",
    );
    let text = format!(
        "clusters: {{main: {{patroni: {{endpoints: [nonsense]}}, pool: 1}}}}\nlistenres: 7\n\
         tls: {{certificates: [{{cert_file: gone.crt, key_file: gone.key}}]}}\n\
         http: {{address: \"{address}\", token_file: gone.token, agent_check: 3}}\n"
    );
    let (directory, remote) = by_configuration(&text);
    let router = remote.router().expect("found");
    assert_eq!(router.look("/api/v1/members"), Ok(serde_json::json!([])));
    let told = router.change("/api/v1/router/drain", None).expect_err("no token");
    assert!(
        told.contains("http.token_file") && told.contains(OTHER_WAY),
        "{told}"
    );
    // A token that every user can read.
    let token = directory.path().join("gone.token");
    std::fs::write(&token, "0123456789abcdef").expect("written");
    let told = remote
        .router()
        .and_then(|router| router.change("/api/v1/router/drain", None))
        .expect_err("a token that is open");
    assert!(told.contains("is open to every user"), "{told}");
}

#[test]
fn a_file_that_does_not_lead_to_the_router_is_told_with_another_way() {
    for (text, fault) in [
        ("http:\n\taddress: 1\n", "use spaces, not tabs"),
        ("http: {address: 6434}\n", "as in `\"*:6434\"`"),
        ("http: [1]\n", "expected a map"),
    ] {
        let (_directory, remote) = by_configuration(text);
        let told = remote.router().err().expect("a fault");
        assert!(
            told.contains(fault) && told.contains("--url http://HOST:6434"),
            "{told}"
        );
    }
}

#[test]
fn a_router_that_does_not_run_is_asked_about() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port");
    let (_directory, remote) = by_configuration(&format!("http: {{address: \"{free}\"}}\n"));
    let told = remote
        .router()
        .and_then(|router| router.look("/api/v1/members"))
        .expect_err("nothing listens");
    assert!(told.contains("is the router running on this host?"), "{told}");
}

#[test]
fn names_are_encoded() {
    assert_eq!(encoded("db-1_a.b~"), "db-1_a.b~");
    assert_eq!(encoded("a/b c?ü"), "a%2Fb%20c%3F%C3%BC");
}

/// A key that leads to the router and is misspelt asks nobody, rather than the default address; a
/// fault elsewhere hides nothing.
#[test]
fn what_leads_to_the_router_is_known_or_said() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("trunkline.yaml");
    let told = |text: &str| {
        std::fs::write(&file, text).expect("written");
        Remote::by_configuration(&file)
            .router()
            .map(|router| router.base.clone())
    };
    for (text, key) in [
        ("http: {adress: \"127.0.0.1:7434\"}", "http.adress"),
        (
            "http: {address: \"127.0.0.1:7434\", tsl: {cert_file: c}}",
            "http.tsl",
        ),
        ("http: {tls: {crt_file: c}}", "http.tls.crt_file"),
        ("htpp: {address: \"127.0.0.1:7434\"}", "htpp"),
        ("groups: [{name: node}]", "groups"),
        ("http: 7434", "http"),
    ] {
        let fault = told(text).expect_err(text);
        assert!(fault.contains(&format!("{key}: ")), "{text}: {fault}");
        assert!(fault.contains("--url"), "{text}: {fault}");
    }
    for (text, base) in [
        (
            "http: {address: \"127.0.0.1:7434\"}\nlimts: {}",
            "http://127.0.0.1:7434",
        ),
        (
            "http: {address: \"127.0.0.1:7434\"}\nlimits: {max_clients: many}",
            "http://127.0.0.1:7434",
        ),
        ("limits: {max_clients: many}", "http://127.0.0.1:6434"),
    ] {
        assert_eq!(told(text).as_deref(), Ok(base), "{text}");
    }
}
