//! A Patroni that says what the test wants it to say, counts who asks, and may want to see a
//! certificate.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::cluster::{Certificates, Node, fresh_address};

const PORT: u16 = 8008;

#[derive(Default)]
struct Script {
    answer: Mutex<(u16, String)>,
    /// Requests for `/cluster`.
    asked: AtomicUsize,
    /// What `Authorization` has to say.
    login: Option<String>,
    tls: Option<Arc<ServerConfig>>,
}

pub struct Rest {
    pub address: Ipv4Addr,
    script: Arc<Script>,
}

impl Rest {
    pub fn saying(members: &Value) -> Self {
        let rest = Self::serve(fresh_address(), Script::default());
        rest.say(members);
        rest
    }

    /// Over TLS, for those who have a certificate of the same authority, and `user:password` in
    /// base64.
    pub fn guarded(login: &str, members: &Value) -> (Self, Certificates) {
        let address = fresh_address();
        let certificates = Certificates::make(&[address.to_string()]);
        let mut roots = RootCertStore::empty();
        let read = |name: &str| CertificateDer::from_pem_file(certificates.file(name)).unwrap();
        roots.add(read("ca.crt")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let key = PrivateKeyDer::from_pem_file(certificates.file("server.key")).unwrap();
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(vec![read("server.crt")], key)
            .unwrap();
        let script = Script {
            login: Some(format!("Basic {login}")),
            tls: Some(Arc::new(tls)),
            ..Script::default()
        };
        let rest = Self::serve(address, script);
        rest.say(members);
        (rest, certificates)
    }

    fn serve(address: Ipv4Addr, script: Script) -> Self {
        let listener = TcpListener::bind((address, PORT)).unwrap();
        let script = Arc::new(script);
        let served = Arc::clone(&script);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let script = Arc::clone(&served);
                thread::spawn(move || script.connection(stream));
            }
        });
        Self { address, script }
    }

    pub fn url(&self) -> String {
        let scheme = if self.script.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}:{PORT}", self.address)
    }

    pub fn say(&self, members: &Value) {
        self.answer(200, &json!({ "members": members }));
    }

    pub fn answer(&self, status: u16, body: &Value) {
        *self.script.answer.lock().unwrap() = (status, body.to_string());
    }

    /// How often it has been asked for `/cluster`.
    pub fn asked(&self) -> usize {
        self.script.asked.load(Ordering::SeqCst)
    }
}

impl Script {
    fn connection(&self, stream: TcpStream) {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
        match &self.tls {
            None => self.reply(stream),
            Some(config) => {
                let connection = ServerConnection::new(Arc::clone(config)).unwrap();
                self.reply(StreamOwned::new(connection, stream));
            }
        }
    }

    fn reply(&self, mut stream: impl Read + Write) {
        let mut request = Vec::new();
        while !request.windows(4).any(|end| end == b"\r\n\r\n") {
            let mut part = [0; 1024];
            match stream.read(&mut part) {
                Ok(read) if read > 0 => request.extend_from_slice(&part[..read]),
                // A handshake that failed, or nobody.
                _ => return,
            }
        }
        let request = String::from_utf8_lossy(&request).to_lowercase();
        if request.starts_with("get /cluster ") {
            self.asked.fetch_add(1, Ordering::SeqCst);
        }
        let is_known = self.login.as_ref().is_none_or(|login| {
            request.contains(&format!("\r\nauthorization: {}\r\n", login.to_lowercase()))
        });
        let (status, body) = if is_known {
            self.answer.lock().unwrap().clone()
        } else {
            (401, "no auth header received".to_owned())
        };
        let _ = write!(
            stream,
            "HTTP/1.1 {status} Because\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let _ = stream.flush();
    }
}

/// As Patroni has it in `/cluster`.
pub fn member(node: &Node, role: &str, state: &str) -> Value {
    json!({"name": node.name, "role": role, "state": state, "host": node.address, "port": node.port,
        "api_url": format!("{}/patroni", node.rest), "timeline": 1, "lag": 0})
}
