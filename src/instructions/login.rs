//! A login by SCRAM: the router checks the client, and then logs into a server with the client's
//! key.

use std::num::NonZeroU32;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{frame, measured};
use crate::auth::scram::client::{ClientExchange, ClientSecret};
use crate::auth::scram::server::{Lookup, ServerExchange};
use crate::auth::scram::{ClientKey, MECHANISM, MockSecret, Nonce, Verifier, mechanisms};
use crate::backend::Credential;
use crate::backend::login::{self, LoginRequest};
use crate::config::{ChannelBinding, RequireAuth, Secret};
use crate::session::memory::{self, MemoryStream};
use crate::wire::startup::{self, FirstPacket, ProtocolVersion, StartupPacket};
use crate::wire::{message, settings};

const PASSWORD: &[u8] = b"pencil";

/// What PostgreSQL 17 reports.
const PARAMETERS: [(&[u8], &[u8]); 15] = [
    (b"in_hot_standby", b"off"),
    (b"integer_datetimes", b"on"),
    (b"TimeZone", b"Etc/UTC"),
    (b"IntervalStyle", b"postgres"),
    (b"search_path", b"\"$user\", public"),
    (b"is_superuser", b"off"),
    (b"application_name", b"psql"),
    (b"default_transaction_read_only", b"off"),
    (b"scram_iterations", b"4096"),
    (b"DateStyle", b"ISO, MDY"),
    (b"standard_conforming_strings", b"on"),
    (b"session_authorization", b"app"),
    (b"client_encoding", b"UTF8"),
    (b"server_version", b"17.5"),
    (b"server_encoding", b"UTF8"),
];

pub(super) fn login(count: usize) {
    // The one iteration is the peers' work; it is not counted, and should not take long.
    let verifier = Arc::new(Verifier::from_password(
        PASSWORD,
        b"0123456789abcdef",
        NonZeroU32::MIN,
    ));
    let mock = MockSecret::new(None);
    let mut packet = BytesMut::new();
    let parameters: [(&[u8], &[u8]); 4] = [
        (b"user", b"app"),
        (b"database", b"app"),
        (b"application_name", b"psql"),
        (b"client_encoding", b"UTF8"),
    ];
    message::startup(&mut packet, ProtocolVersion::V3_0, &parameters);
    for _ in 0..count {
        let startup = measured(|| read_startup(&packet));
        let key = check_client(&startup, &verifier, &mock);
        log_into_server(&startup, key, &verifier, &mock);
    }
}

fn read_startup(packet: &[u8]) -> StartupPacket {
    let Ok(Some((FirstPacket::Startup(packet), _))) = startup::parse(packet) else {
        panic!("it is a startup packet")
    };
    assert!(settings::delay(&packet.parameters).is_none());
    packet
}

fn lookup<'a>(verifier: &Arc<Verifier>, mock: &'a MockSecret) -> Lookup<'a> {
    Lookup {
        user: b"app",
        verifier: Some(Arc::clone(verifier)),
        mock,
    }
}

/// The router's side of the exchange with a client that has the password.
fn check_client(startup: &StartupPacket, verifier: &Arc<Verifier>, mock: &MockSecret) -> ClientKey {
    assert_eq!(&startup.user[..], b"app");
    let password = ClientSecret::Password(Secret::new(PASSWORD));
    let (driver, first) = ClientExchange::new(password).first();
    let (exchange, answer) = measured(|| {
        let mut out = BytesMut::new();
        message::authentication_sasl(&mut out, mechanisms(None));
        let exchange = ServerExchange::start(lookup(verifier, mock), None, Nonce::random());
        let answered = exchange.client_first(MECHANISM.as_bytes(), &first);
        let (exchange, answer) = answered.expect("the driver knows the protocol");
        message::authentication_sasl_continue(&mut out, &answer);
        (exchange, answer)
    });
    let (driver, proof) = driver
        .server_first(&answer)
        .expect("the router knows the protocol");
    let (signature, key) = measured(|| {
        let (signature, key) = exchange.client_final(&proof).expect("the password is right");
        let mut out = BytesMut::new();
        message::authentication_sasl_final(&mut out, &signature);
        message::authentication_ok(&mut out);
        (signature, key)
    });
    driver
        .server_final(&signature)
        .expect("the router has the verifier");
    key
}

/// The router's login, and what it says to the client after it.
fn log_into_server(startup: &StartupPacket, key: ClientKey, verifier: &Arc<Verifier>, mock: &MockSecret) {
    let (mut near, mut server) = memory::connection();
    let mut parameters = vec![
        (Bytes::from_static(b"user"), startup.user.clone()),
        (Bytes::from_static(b"database"), startup.database.clone()),
    ];
    parameters.extend(startup.parameters.iter().cloned());
    let credential = Credential::ClientKey(key);
    let request = LoginRequest {
        version: startup.served(),
        parameters: &parameters,
        credential: &credential,
        is_tls: false,
        channel_binding: ChannelBinding::Prefer,
        end_point: None,
        require_auth: &RequireAuth::Safe,
        is_verified: false,
        is_local: true,
        has_answered: AtomicBool::new(false),
    };
    let mut session = pin!(login::login(&mut near, &request));
    let mut step = || {
        let mut context = Context::from_waker(Waker::noop());
        measured(|| session.as_mut().poll(&mut context))
    };
    assert!(step().is_pending());
    // The startup packet has no type.
    assert!(!hear(&mut server).is_empty());
    let mut out = BytesMut::new();
    message::authentication_sasl(&mut out, &[MECHANISM]);
    say(&mut server, &out);
    assert!(step().is_pending());
    let first = hear(&mut server);
    let first = &first[5 + MECHANISM.len() + 1 + 4..];
    let exchange = ServerExchange::start(lookup(verifier, mock), None, Nonce::random());
    let answered = exchange.client_first(MECHANISM.as_bytes(), first);
    let (exchange, answer) = answered.expect("the router knows the protocol");
    out.clear();
    message::authentication_sasl_continue(&mut out, &answer);
    say(&mut server, &out);
    assert!(step().is_pending());
    let (signature, _) = exchange
        .client_final(&hear(&mut server)[5..])
        .expect("the client's key is right");
    out.clear();
    message::authentication_sasl_final(&mut out, &signature);
    message::authentication_ok(&mut out);
    for (name, value) in PARAMETERS {
        message::parameter_status(&mut out, name, value);
    }
    out.extend_from_slice(&frame(b'K', &[7; 8]));
    message::ready_for_query(&mut out, b'I');
    say(&mut server, &out);
    let Poll::Ready(Ok(session)) = step() else {
        panic!("the server has let it in")
    };
    let told = measured(|| {
        let mut out = BytesMut::new();
        for (name, value) in &session.parameters {
            message::parameter_status(&mut out, name, value);
        }
        message::backend_key_data(&mut out, 7, &[7; 4]);
        message::ready_for_query(&mut out, b'I');
        out
    });
    assert!(told.len() > 100);
}

fn say(stream: &mut MemoryStream, data: &[u8]) {
    let mut context = Context::from_waker(Waker::noop());
    let written = Pin::new(stream).poll_write(&mut context, data);
    assert!(matches!(written, Poll::Ready(Ok(written)) if written == data.len()));
}

fn hear(stream: &mut MemoryStream) -> Vec<u8> {
    let mut context = Context::from_waker(Waker::noop());
    let mut buffer = vec![0; 4096];
    let mut read = ReadBuf::new(&mut buffer);
    assert!(matches!(
        Pin::new(stream).poll_read(&mut context, &mut read),
        Poll::Ready(Ok(()))
    ));
    read.filled().to_vec()
}
