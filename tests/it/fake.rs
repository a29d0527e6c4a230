//! A server that only logs in, and then does what the test tells it: for what a real PostgreSQL
//! never does.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use trunkline::wire::message;

use super::raw::{framed, proportional_kib};
use crate::cluster::postgres::Postgres;
use crate::cluster::{self, Options, Router, eventually, fresh_address, secret};

type Play = Pin<Box<dyn Future<Output = ()> + Send>>;
type Script = Arc<dyn Fn(Session) -> Play + Send + Sync>;

/// A client's connection behind its login.
#[derive(Debug)]
pub struct Session {
    pub stream: TcpStream,
    buffer: BytesMut,
}

impl Session {
    /// The next frame's type and body; `None` at the end.
    pub async fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some(&[tag, a, b, c, d]) = self.buffer.first_chunk::<5>() {
                let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap();
                if self.buffer.len() > length {
                    let mut frame = self.buffer.split_to(length + 1);
                    frame.advance(5);
                    let body = frame.to_vec();
                    if self.buffer.is_empty() {
                        // Nine thousand idle ones must not keep theirs.
                        self.buffer = BytesMut::new();
                    }
                    return Some((tag, body));
                }
            }
            if self.stream.readable().await.is_err() {
                return None;
            }
            self.buffer.reserve(512);
            match self.stream.try_read_buf(&mut self.buffer) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
    }

    pub async fn send(&mut self, data: &[u8]) {
        let _ = self.stream.write_all(data).await;
    }

    /// Answers every Query with one row that says 1.
    pub async fn answer_all(mut self) {
        while let Some((tag, _)) = self.frame().await {
            match tag {
                b'Q' => self.send(&one_row("1")).await,
                b'X' => return,
                _ => {}
            }
        }
    }
}

/// `T D C Z` with one text column.
pub fn one_row(value: &str) -> Vec<u8> {
    rows(&[value])
}

fn rows(values: &[&str]) -> Vec<u8> {
    let count = u16::try_from(values.len()).unwrap();
    let (mut fields, mut row) = (count.to_be_bytes().to_vec(), count.to_be_bytes().to_vec());
    for value in values {
        fields.extend(b"c\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
        row.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
        row.extend(value.as_bytes());
    }
    [
        framed(b'T', &fields),
        framed(b'D', &row),
        framed(b'C', b"SELECT 1\0"),
        framed(b'Z', b"I"),
    ]
    .concat()
}

/// A cancel request that has come.
#[derive(Debug)]
pub struct Cancelled {
    pub process_id: u32,
    /// Closed when this is dropped.
    #[allow(dead_code, reason = "kept open")]
    pub stream: TcpStream,
}

#[derive(Debug)]
pub struct Fake {
    pub address: SocketAddr,
    /// Cancel requests, whose connections stay open until they are taken out and dropped.
    pub cancels: Arc<Mutex<Vec<Cancelled>>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Fake {
    /// `script` plays with each session but the router's own.
    pub fn start<F, R>(script: F) -> Self
    where
        F: Fn(Session) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        Self::saying(b"", script)
    }

    /// As [`Self::start`]; `more` comes in one piece with the end of the login.
    pub fn saying<F, R>(more: &'static [u8], script: F) -> Self
    where
        F: Fn(Session) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        Self::serving(true, more, script)
    }

    /// As [`Self::start`], without `BackendKeyData`.
    pub fn keyless<F, R>(script: F) -> Self
    where
        F: Fn(Session) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        Self::serving(false, b"", script)
    }

    fn serving<F, R>(with_key: bool, more: &'static [u8], script: F) -> Self
    where
        F: Fn(Session) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind((fresh_address(), 5432)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let script: Script = Arc::new(move |session| Box::pin(script(session)));
        let cancels = Arc::new(Mutex::default());
        let waiting = Arc::clone(&cancels);
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(
                    stream,
                    Arc::clone(&script),
                    Arc::clone(&waiting),
                    with_key,
                    more,
                ));
            }
        });
        Self {
            address,
            cancels,
            runtime: Some(runtime),
        }
    }

    /// A router before this server alone, with user `app`, password `app`, whose verifier is cheap
    /// to check.
    pub fn router(&self, extra: &str) -> Router {
        router_before(
            self.address.ip().to_string().as_str(),
            self.address.port(),
            "trunkline",
            extra,
        )
    }
}

impl Fake {
    /// As [`Self::router`], with these keys of `auth` beside the users.
    pub fn router_with_auth(&self, auth: &str, extra: &str) -> Router {
        let dir = tempfile::tempdir().unwrap();
        let (host, port) = (self.address.ip().to_string(), self.address.port());
        launch(dir.path(), (&host, port, "trunkline"), auth, extra, None)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A router before one server that trusts everybody.
pub fn router_before(host: &str, port: u16, service_user: &str, extra: &str) -> Router {
    let dir = tempfile::tempdir().unwrap();
    router_in(dir.path(), host, port, service_user, extra, None)
}

pub fn router_in(
    dir: &std::path::Path,
    host: &str,
    port: u16,
    service_user: &str,
    extra: &str,
    address: Option<Ipv4Addr>,
) -> Router {
    launch(dir, (host, port, service_user), "", extra, address)
}

fn launch(
    dir: &std::path::Path,
    (host, port, service_user): (&str, u16, &str),
    auth: &str,
    extra: &str,
    address: Option<Ipv4Addr>,
) -> Router {
    let users = secret(dir, "users", &format!("\"app\" \"{}\"", cheap_verifier()));
    let options = Options {
        clusters: Some(format!(
            "clusters:\n  main:\n    servers: [{{name: one, host: \"{host}\", port: {port}}}]\n    \
             service_account: {{user: {service_user}, dbname: postgres}}\n    server_tls: {{sslmode: disable}}\n"
        )),
        extra: format!("auth: {{users_file: {}, {auth}}}\n{extra}", users.display()),
        address,
        ..Options::default()
    };
    let router = Router::launch(None, options);
    await_leader(&router);
    router
}

/// Waits until the read-write port serves.
pub fn await_leader(router: &Router) {
    eventually("the leader is verified", super::raw::PATIENCE, || {
        router
            .http("/connection/is-ready-rw?strict=1")
            .is_some_and(|(status, _)| status == 200)
    });
}

/// Of the password `app`, with one iteration.
pub fn cheap_verifier() -> String {
    let iterations = std::num::NonZeroU32::MIN;
    trunkline::auth::scram::Verifier::from_password(b"app", b"0123456789abcdef", iterations)
        .to_text()
        .to_string()
}

async fn serve(
    mut stream: TcpStream,
    script: Script,
    cancels: Arc<Mutex<Vec<Cancelled>>>,
    with_key: bool,
    more: &[u8],
) {
    static NEXT: AtomicU32 = AtomicU32::new(1000);
    let Ok(length) = stream.read_u32().await else {
        return;
    };
    let mut packet = vec![0; usize::try_from(length).unwrap() - 4];
    if stream.read_exact(&mut packet).await.is_err() {
        return;
    }
    if packet.starts_with(&[4, 210, 22, 46]) {
        let process_id = u32::from_be_bytes(packet[4..8].try_into().unwrap());
        cancels.lock().unwrap().push(Cancelled { process_id, stream });
        return;
    }
    let is_own = packet.windows(14).any(|part| part == b"user\0trunkline");
    let process_id = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut out = BytesMut::new();
    message::authentication_ok(&mut out);
    for (name, value) in [
        ("server_version", "15.20"),
        ("client_encoding", "UTF8"),
        ("in_hot_standby", "off"),
        ("default_transaction_read_only", "off"),
    ] {
        message::parameter_status(&mut out, name.as_bytes(), value.as_bytes());
    }
    if with_key {
        message::backend_key_data(&mut out, process_id, &process_id.to_be_bytes());
    }
    message::ready_for_query(&mut out, b'I');
    if !is_own {
        out.extend_from_slice(more);
    }
    let mut session = Session {
        stream,
        buffer: BytesMut::new(),
    };
    session.send(&out).await;
    drop((out, packet));
    if !is_own {
        script(session).await;
        return;
    }
    while let Some((tag, _)) = session.frame().await {
        if tag == b'Q' {
            session
                .send(&rows(&["false", "77", "1", "1000", "0", "false", "150020"]))
                .await;
        }
    }
}

/// Memory a client costs, KiB, from the process's before and after.
pub fn kib_per_client(before: u64, router: &Router, clients: u64) -> f64 {
    let after = proportional_kib(router.process_id());
    #[allow(clippy::cast_precision_loss, reason = "a figure to print")]
    let each = after.saturating_sub(before) as f64 / clients as f64;
    each
}

/// A real server that trusts everybody, for [`router_before`].
pub fn trusting(version_18: bool) -> Postgres {
    Postgres::start(&cluster::postgres::Options {
        hba: Some("host all all 127.0.0.0/8 trust".to_owned()),
        version_18,
        ..cluster::postgres::Options::default()
    })
}
