//! A client that sees every frame, so that a test can say what exactly a session was told.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, timeout_at};
use trunkline::backend::{self, ClientReply, ConnectError, Credential, ServerConnection, Target, TlsClient};
use trunkline::config::{Secret, ServerOptions};
use trunkline::wire::startup::ProtocolVersion;

/// What `answer` and `query` wait for at most; nothing in these tests takes longer unless it hangs.
pub const LIMIT: Duration = Duration::from_secs(20);

/// An ErrorResponse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub severity: String,
    pub code: String,
    pub message: String,
    pub hint: String,
}

impl Report {
    fn parse(body: &[u8]) -> Self {
        let mut fields: HashMap<u8, String> = body
            .split(|byte| *byte == 0)
            .filter_map(|field| Some((*field.first()?, String::from_utf8_lossy(&field[1..]).into_owned())))
            .collect();
        let mut field = |tag| fields.remove(&tag).unwrap_or_default();
        Self {
            severity: field(b'V'),
            code: field(b'C'),
            message: field(b'M'),
            hint: field(b'H'),
        }
    }
}

/// One frame from the server.
#[derive(Debug, Clone)]
pub struct Frame {
    pub tag: u8,
    pub body: Bytes,
}

/// What a session came to, or the answer to a query.
#[derive(Debug, Default)]
pub struct Answer {
    pub frames: Vec<Frame>,
    /// The connection was closed.
    pub closed: bool,
}

impl Answer {
    pub fn tags(&self) -> String {
        self.frames.iter().map(|frame| char::from(frame.tag)).collect()
    }

    pub fn errors(&self) -> Vec<Report> {
        let errors = self.frames.iter().filter(|frame| frame.tag == b'E');
        errors.map(|frame| Report::parse(&frame.body)).collect()
    }

    /// First column of the first row.
    pub fn value(&self) -> Option<String> {
        let mut row = self.frames.iter().find(|frame| frame.tag == b'D')?.body.clone();
        row.advance(2);
        let length = usize::try_from(row.get_i32()).ok()?;
        Some(String::from_utf8_lossy(&row[..length]).into_owned())
    }

    /// The session was ended as a server would end it: one FATAL, nothing ready after it, and
    /// closed. A request whose outcome is not known is answered in order first.
    pub fn ended(&self) -> Report {
        let errors = self.errors();
        assert!(self.closed, "not closed: {self:?}");
        assert_eq!(errors.len(), 1, "exactly one error: {errors:?}, {}", self.tags());
        let error = errors.into_iter().next().unwrap();
        if error.code == "08007" {
            assert!(self.tags().ends_with("EZ"), "{}", self.tags());
            assert_eq!(error.severity, "ERROR", "{error:?}");
            return error;
        }
        assert!(!self.tags().contains('Z'), "ready after its end: {}", self.tags());
        assert_eq!(error.severity, "FATAL", "{error:?}");
        error
    }
}

/// A session through a router, as user `app`.
pub struct Session {
    runtime: Runtime,
    connection: ServerConnection,
    buffer: BytesMut,
    /// Errors that came while the session was not waited for long enough to see its end.
    errors: Vec<Frame>,
}

impl Session {
    pub fn open(address: Ipv4Addr, port: u16) -> Result<Self, ConnectError> {
        Self::open_with(address, port, &[])
    }

    pub fn open_with(address: Ipv4Addr, port: u16, extra: &[(&str, &str)]) -> Result<Self, ConnectError> {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let options = ServerOptions {
            connect_timeout: LIMIT,
            keepalive: None,
            tcp_user_timeout: None,
        };
        let mut parameters = vec![
            ("user", "app"),
            ("database", "app"),
            ("application_name", "failover"),
        ];
        parameters.extend_from_slice(extra);
        let parameters: Vec<(Bytes, Bytes)> = parameters
            .into_iter()
            .map(|(name, value)| {
                (
                    Bytes::copy_from_slice(name.as_bytes()),
                    Bytes::copy_from_slice(value.as_bytes()),
                )
            })
            .collect();
        let credential = Credential::Password(Secret::new("app"));
        let target = Target {
            host: &address.to_string(),
            port,
            tls: &TlsClient::disabled(),
            options: &options,
            version: ProtocolVersion::V3_0,
            parameters: &parameters,
            credential: &credential,
        };
        let connection =
            runtime.block_on(async { backend::connect(target, Instant::now() + LIMIT).await })?;
        let buffer = BytesMut::from(connection.leftover.as_ref());
        Ok(Self {
            runtime,
            connection,
            buffer,
            errors: Vec::new(),
        })
    }

    /// What a refused client is told.
    pub fn refused(address: Ipv4Addr, port: u16) -> Report {
        match Self::open(address, port) {
            Ok(_) => panic!("{address}:{port} let a session in"),
            Err(error) => match error.client_reply("the router") {
                ClientReply::Verbatim(frame) => Report::parse(&frame[5..]),
                ClientReply::Own(_) => panic!("no answer of the router's: {error:?}"),
            },
        }
    }

    /// The server's process and the secret, as given to this client.
    pub fn cancel_key(&self) -> (u32, Bytes) {
        let cancel = self.connection.cancel.as_ref().unwrap();
        (cancel.process_id, cancel.key.clone())
    }

    /// Sends a simple query. An error is left for whoever reads.
    pub fn send(&mut self, sql: &str) {
        let mut frame = vec![b'Q'];
        frame.extend_from_slice(&i32::try_from(sql.len() + 5).unwrap().to_be_bytes());
        frame.extend_from_slice(sql.as_bytes());
        frame.push(0);
        self.send_bytes(&frame);
    }

    /// The same with whole messages.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        let stream = &mut self.connection.stream;
        let _ = self.runtime.block_on(async {
            stream.write_all(bytes).await?;
            stream.flush().await
        });
    }

    /// Everything up to ReadyForQuery or the end.
    pub fn answer(&mut self) -> Answer {
        self.read(LIMIT, true)
    }

    /// Everything up to the end of the connection.
    pub fn end(&mut self, limit: Duration) -> Answer {
        self.read(limit, false)
    }

    /// What has come without having been asked for, without waiting for more than a moment of the
    /// runtime's.
    pub fn is_open(&mut self) -> bool {
        !self.read(Duration::from_millis(1), false).closed
    }

    fn read(&mut self, limit: Duration, until_ready: bool) -> Answer {
        let Self {
            runtime,
            connection,
            buffer,
            errors,
        } = self;
        let deadline = Instant::now() + limit;
        let mut answer = Answer {
            frames: std::mem::take(errors),
            ..Answer::default()
        };
        runtime.block_on(async {
            loop {
                while buffer.len() >= 5 {
                    let length =
                        usize::try_from(u32::from_be_bytes(buffer[1..5].try_into().unwrap())).unwrap();
                    if buffer.len() < length + 1 {
                        break;
                    }
                    let tag = buffer.get_u8();
                    buffer.advance(4);
                    let body = buffer.split_to(length - 4).freeze();
                    answer.frames.push(Frame { tag, body });
                    if tag == b'Z' && until_ready {
                        return;
                    }
                }
                match timeout_at(deadline, connection.stream.read_buf(buffer)).await {
                    Ok(Ok(read)) if read > 0 => {}
                    Ok(_) => {
                        answer.closed = true;
                        return;
                    }
                    Err(_) => return,
                }
            }
        });
        if !answer.closed && !until_ready {
            // The end may come with the next look.
            let came = answer.frames.iter().filter(|frame| frame.tag == b'E');
            errors.extend(came.cloned());
        }
        answer
    }

    /// The first column of a query that must succeed.
    pub fn query(&mut self, sql: &str) -> String {
        self.send(sql);
        let answer = self.answer();
        assert!(
            answer.errors().is_empty() && !answer.closed,
            "{sql}: {:?}",
            answer.errors()
        );
        answer.value().unwrap_or_default()
    }

    /// Address of the server it is on.
    pub fn server(&mut self) -> String {
        self.query("SELECT host(inet_server_addr())")
    }
}

/// Opens `count` sessions and tells how many each server got.
pub fn spread(address: Ipv4Addr, port: u16, count: usize) -> (Vec<Session>, HashMap<String, usize>) {
    let mut sessions = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for _ in 0..count {
        let mut session = Session::open(address, port).unwrap();
        *places.entry(session.server()).or_default() += 1;
        sessions.push(session);
    }
    (sessions, places)
}
