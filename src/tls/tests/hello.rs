//! Names that are none, as OpenSSL sends them.

use std::process::Stdio;

use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::LazyConfigAcceptor;

use super::*;

/// One connection of `openssl s_client`; the name the server was asked for, and what the client
/// printed.
async fn connect(dir: &Dir, config: Arc<ServerConfig>, arguments: &[&str]) -> (Option<String>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let served = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let hello = LazyConfigAcceptor::new(Acceptor::default(), HelloStream::new(socket))
            .await
            .map_err(|error| error.to_string())?;
        let name = hello.client_hello().server_name().map(str::to_owned);
        let mut stream = hello
            .into_stream(config)
            .await
            .map_err(|error| error.to_string())?;
        let mut said = [0; 5];
        stream
            .read_exact(&mut said)
            .await
            .map_err(|error| error.to_string())?;
        assert_eq!(&said, b"hello");
        stream
            .write_all(b"answered")
            .await
            .map_err(|error| error.to_string())?;
        stream.shutdown().await.map_err(|error| error.to_string())?;
        Ok::<_, String>(name)
    });
    let mut command = tokio::process::Command::new("openssl");
    command
        .current_dir(dir.0.path())
        .args(["s_client", "-quiet", "-connect", &address])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It may have ended.
    let _ = stdin.write_all(b"hello").await;
    let output = child.wait_with_output().await.unwrap();
    drop(stdin);
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    match served.await.unwrap() {
        Ok(name) => (name, text),
        Err(error) => panic!("{arguments:?}: {error}\n{text}"),
    }
}

fn configuration(dir: &Dir, version: &'static SupportedProtocolVersion) -> Arc<ServerConfig> {
    let clients = ClientVerifier::new(
        Authorities::new(&[dir.certificate("ca")]).unwrap(),
        &[],
        &provider(),
    );
    server(
        vec![dir.certificate("ca")],
        &dir.key("ca"),
        version,
        Some(clients.unwrap()),
    )
}

#[tokio::test]
async fn a_name_that_is_none_is_no_name() {
    let dir = Dir::new();
    dir.own("ca", EC, "");
    dir.signed("app", "ca", Some("extendedKeyUsage=clientAuth"));
    let (long, label) = ("a.".repeat(127) + "b", "l".repeat(64));
    for (version, flag) in [(&TLS12, "-tls1_2"), (&TLS13, "-tls1_3")] {
        let config = configuration(&dir, version);
        for (asked, known) in [
            ("db.internal", Some("db.internal")),
            ("under_score.internal", Some("under_score.internal")),
            ("pg.1", None),
            ("db-.internal", None),
            ("-db.internal", None),
            ("db main", None),
            ("a..b", None),
            (".a", None),
            ("é", None),
            (&long, None),
            (&label, None),
        ] {
            let (name, text) = connect(&dir, Arc::clone(&config), &[flag, "-servername", asked]).await;
            assert_eq!(name.as_deref(), known, "{asked}");
            assert!(text.contains("answered"), "{asked}: {text}");
        }
        // The client signs the whole handshake, its name among it.
        let own = [flag, "-servername", "a..b", "-cert", "app.crt", "-key", "app.key"];
        let (_, text) = connect(&dir, Arc::clone(&config), &own).await;
        assert!(text.contains("answered"), "{text}");
    }
    // The server asks for another key share: there are two hellos.
    let again = ["-tls1_3", "-servername", "a..b", "-groups", "P-521:P-256"];
    let (name, text) = connect(&dir, configuration(&dir, &TLS13), &again).await;
    assert_eq!(name, None);
    assert!(text.contains("answered"), "{text}");
}

/// A hello of OpenSSL's, which asks for `name`.
fn hello_of(name: &[u8]) -> Vec<u8> {
    let extension = [
        &[0, 23, 0, 0, 0, 0][..],
        &u16::try_from(name.len() + 5).unwrap().to_be_bytes(),
        &u16::try_from(name.len() + 3).unwrap().to_be_bytes(),
        &[0],
        &u16::try_from(name.len()).unwrap().to_be_bytes(),
        name,
        &[0, 43, 0, 3, 2, 3, 4],
    ]
    .concat();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0, 0, 2, 0x13, 1, 1, 0],
        &u16::try_from(extension.len()).unwrap().to_be_bytes(),
        &extension,
    ]
    .concat();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1], &length[1..], &body].concat()
}

/// In records of this many bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |chunk: &[u8]| {
        let length = u16::try_from(chunk.len()).unwrap().to_be_bytes();
        [&[22, 3, 1], &length[..], chunk].concat()
    };
    message.chunks(size).flat_map(record).collect()
}

async fn through(raw: &[u8], step: usize) -> Vec<u8> {
    let (near, mut far) = tokio::io::duplex(step);
    let mut stream = HelloStream::new(near);
    let raw = raw.to_vec();
    let writing = tokio::spawn(async move {
        far.write_all(&raw).await.unwrap();
    });
    let mut seen = Vec::new();
    stream.read_to_end(&mut seen).await.unwrap();
    writing.await.unwrap();
    seen
}

#[tokio::test]
async fn only_the_number_of_the_extension_changes_however_the_bytes_come() {
    let good = hello_of(b"db.example");
    let bad = hello_of(b"a..b");
    for size in [1, 2, 7, 10_000] {
        for step in [1, 3, 64 * 1024] {
            // What follows is not looked at.
            let raw = [records(&good, size), records(&bad, size)].concat();
            assert_eq!(through(&raw, step).await, raw, "{size} {step}");
            let more = [
                &records(&bad, size)[..],
                &[23, 3, 3, 0, 1, 9],
                &records(&bad, size),
            ]
            .concat();
            let seen = through(&more, step).await;
            let changed: Vec<_> = (0..more.len()).filter(|&at| more[at] != seen[at]).collect();
            assert_eq!(changed.len(), 2, "{size} {step}");
            let fixed: Vec<u8> = changed.iter().map(|&at| seen[at]).collect();
            assert_eq!(fixed, [0xff, 0x74]);
            // The second hello, after the change of ciphers that TLS 1.3 only pretends.
            let twice = [
                &records(&bad, size)[..],
                &[20, 3, 3, 0, 1, 1],
                &records(&bad, size),
            ]
            .concat();
            let seen = through(&twice, step).await;
            let changed = (0..twice.len()).filter(|&at| twice[at] != seen[at]).count();
            assert_eq!(changed, 4, "{size} {step}");
        }
    }
    // Cut off, and nothing of TLS at all.
    for raw in [
        &records(&bad, 10_000)[..40],
        &[22, 3],
        b"GET / HTTP/1.1\r\n",
        b"",
        &[1; 9],
    ] {
        assert_eq!(through(raw, 16).await, raw);
    }
}

#[test]
fn what_is_hashed_is_what_the_client_sent() {
    let original = hello_of(b"a..b");
    let mut hidden = original.clone();
    let at = hidden
        .windows(4)
        .rposition(|window| window == [0, 0, 0, 9])
        .unwrap();
    hidden[at..at + 2].copy_from_slice(&[0xff, 0x74]);
    let more = [&hidden[..], b"and other messages"].concat();
    let provider = server_provider();
    for suite in &provider.cipher_suites {
        let hash = match suite {
            rustls::SupportedCipherSuite::Tls12(suite) => suite.common.hash_provider,
            rustls::SupportedCipherSuite::Tls13(suite) => suite.common.hash_provider,
        };
        let seen = |data: &[u8]| {
            let mut context = hash.start();
            context.update(data);
            let fork = context.fork();
            assert_eq!(context.fork_finish().as_ref(), fork.finish().as_ref());
            assert_eq!(hash.hash(data).as_ref(), context.fork_finish().as_ref());
            context.finish().as_ref().to_vec()
        };
        assert_eq!(seen(&hidden), seen(&original), "{suite:?}");
        let whole = [&original[..], b"and other messages"].concat();
        assert_eq!(seen(&more), seen(&whole), "{suite:?}");
        assert_ne!(seen(&hidden[1..]), seen(&original[1..]), "only a hello");
    }
}
