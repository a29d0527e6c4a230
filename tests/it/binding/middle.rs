//! Somebody between two parties of a connection, who ends TLS on both sides and reads, and changes,
//! what goes by.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::cluster::{Certificates, fresh_address};
use crate::hand::{SSL_REQUEST, message};

/// What he does with a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Play {
    Pass,
    /// Takes SCRAM-SHA-256-PLUS from the list.
    Strip,
    /// The same, with this user's logins.
    StripFor(&'static str),
    /// The same, and says in the client's name that it cannot bind.
    StripAndForge,
}

#[derive(Debug)]
pub(super) struct Plan {
    /// What he shows to who connects, read anew each time; without, he denies TLS.
    pub own: Option<Certificates>,
    pub port: u16,
    pub upstream: SocketAddr,
    /// The certificate authority and name of the server, with which he has TLS; without, he speaks
    /// in clear.
    pub peer: Option<(PathBuf, String)>,
    pub play: Play,
}

#[derive(Debug)]
pub(super) struct Middle {
    pub address: Ipv4Addr,
    runtime: Option<tokio::runtime::Runtime>,
}

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

impl Middle {
    pub(super) fn start(plan: Plan) -> Self {
        let address = fresh_address();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind((address, plan.port))).unwrap();
        let plan = Arc::new(plan);
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let plan = Arc::clone(&plan);
                tokio::spawn(async move {
                    // Either party may hang up at any point.
                    let _ = plan.stand_between(socket).await;
                });
            }
        });
        Self {
            address,
            runtime: Some(runtime),
        }
    }
}

impl Drop for Middle {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Plan {
    async fn stand_between(&self, socket: TcpStream) -> std::io::Result<()> {
        let client = self.answer(socket).await?;
        let server = self.connect().await?;
        let (mut from_client, mut to_client) = tokio::io::split(client);
        let (mut from_server, mut to_server) = tokio::io::split(server);
        let mut startup = vec![0; 4];
        from_client.read_exact(&mut startup).await?;
        let length = u32::from_be_bytes([startup[0], startup[1], startup[2], startup[3]]);
        startup.resize(length as usize, 0);
        from_client.read_exact(&mut startup[4..]).await?;
        to_server.write_all(&startup).await?;
        to_server.flush().await?;

        let strips = match self.play {
            Play::Pass => false,
            Play::Strip | Play::StripAndForge => true,
            Play::StripFor(user) => {
                let named = format!("\0user\0{user}\0");
                startup[7..]
                    .windows(named.len())
                    .any(|part| part == named.as_bytes())
            }
        };
        let forges = self.play == Play::StripAndForge;
        let up = pass_on(&mut from_client, &mut to_server, |tag, body| {
            if forges && tag == b'p' {
                forge(body);
            }
        });
        let down = pass_on(&mut from_server, &mut to_client, |tag, body| {
            if strips && tag == b'R' && body.starts_with(&[0, 0, 0, 10]) {
                *body = b"\0\0\0\x0aSCRAM-SHA-256\0\0".to_vec();
            }
        });
        let ((), ()) = tokio::join!(up, down);
        Ok(())
    }

    async fn answer(&self, mut socket: TcpStream) -> std::io::Result<Box<dyn Wire>> {
        let mut request = [0; 8];
        socket.read_exact(&mut request).await?;
        assert_eq!(request, SSL_REQUEST, "TLS is asked for first");
        let Some(own) = &self.own else {
            socket.write_all(b"N").await?;
            return Ok(Box::new(socket));
        };
        socket.write_all(b"S").await?;
        let chain = vec![CertificateDer::from_pem_file(own.file("server.crt")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(own.file("server.key")).unwrap();
        // Whether or not they belong together.
        let key = provider().key_provider.load_private_key(key).unwrap();
        let certified = SingleCertAndKey::from(CertifiedKey::new(chain, key));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(certified));
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        let stream = TlsAcceptor::from(Arc::new(config)).accept(socket).await?;
        Ok(Box::new(stream))
    }

    async fn connect(&self) -> std::io::Result<Box<dyn Wire>> {
        let mut socket = TcpStream::connect(self.upstream).await?;
        let Some((ca, name)) = &self.peer else {
            return Ok(Box::new(socket));
        };
        socket.write_all(SSL_REQUEST).await?;
        assert_eq!(socket.read_u8().await?, b'S');
        let name = ServerName::try_from(name.clone()).unwrap();
        let stream = TlsConnector::from(Arc::new(trusting(ca)))
            .connect(name, socket)
            .await?;
        Ok(Box::new(stream))
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn trusting(ca: &Path) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Message by message to the end, which is passed on as well.
async fn pass_on<R, W>(from: &mut R, to: &mut W, change: impl Fn(u8, &mut Vec<u8>))
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    loop {
        let mut head = [0; 5];
        if from.read_exact(&mut head).await.is_err() {
            break;
        }
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let mut body = vec![0; length as usize - 4];
        if from.read_exact(&mut body).await.is_err() {
            break;
        }
        change(head[0], &mut body);
        if to.write_all(&message(head[0], &body)).await.is_err() || to.flush().await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

/// `y,,` becomes `n,,` in the first message, and in `c=` (base64) of the last.
fn forge(body: &mut [u8]) {
    let changes: [(&[u8], &[u8]); 2] = [(b"y,,n=", b"n,,n="), (b"c=eSws,", b"c=biws,")];
    for (said, forged) in changes {
        if let Some(at) = body.windows(said.len()).position(|part| part == said) {
            body[at..at + said.len()].copy_from_slice(forged);
        }
    }
}
