#![allow(clippy::unwrap_used)]

mod require_auth;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::login::{LoggedIn, LoginRequest, ServerLoginFailure, login};
use super::*;
use crate::auth::md5::Md5Hash;
use crate::auth::scram::{ClientKey, Lookup, MAX_PASSWORD, MockSecret, Nonce, ServerExchange, Verifier};
use crate::config::{
    AuthMethod, ChannelBinding, RequireAuth, Secret, ServerOptions, ServerTls, SslMode, SslNegotiation,
};
use crate::wire::message;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::ProtocolVersion;

fn options() -> ServerOptions {
    ServerOptions {
        connect_timeout: Duration::from_secs(3),
        keepalive: Some(Duration::from_secs(15)),
        tcp_user_timeout: Some(Duration::from_secs(30)),
    }
}

fn parameters() -> Vec<(Bytes, Bytes)> {
    vec![
        (Bytes::from_static(b"user"), Bytes::from_static(b"app")),
        (Bytes::from_static(b"database"), Bytes::from_static(b"shop")),
    ]
}

fn tls(sslmode: SslMode) -> Arc<TlsClient> {
    TlsClient::new(&ServerTls {
        sslmode,
        sslnegotiation: SslNegotiation::Postgres,
        channel_binding: ChannelBinding::Prefer,
        roots: None,
        client_certificate: None,
        server_name: None,
        require_auth: RequireAuth::Safe,
    })
    .unwrap()
}

/// A server that plays `script` with every connection.
async fn server<F, R>(script: F) -> SocketAddr
where
    F: Fn(TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(script(stream));
        }
    });
    address
}

async fn connect_with(
    address: SocketAddr,
    tls: &Arc<TlsClient>,
    credential: &Credential,
    time: Duration,
) -> Result<ServerConnection, ConnectError> {
    let target = Target {
        host: "127.0.0.1",
        port: address.port(),
        tls,
        options: &options(),
        version: ProtocolVersion::V3_0,
        parameters: &parameters(),
        credential,
    };
    connect(target, Instant::now() + time).await
}

async fn connect_to(address: SocketAddr, sslmode: SslMode) -> Result<ServerConnection, ConnectError> {
    connect_with(address, &tls(sslmode), &Credential::None, Duration::from_secs(20)).await
}

/// Answers `SSLRequest` with `answer`, then stays until the other side leaves.
async fn answering(answer: &'static [u8]) -> SocketAddr {
    server(move |mut stream| async move {
        let mut request = [0; 8];
        stream.read_exact(&mut request).await.unwrap();
        assert_eq!(request, [0, 0, 0, 8, 4, 210, 22, 47]);
        stream.write_all(answer).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await
}

#[tokio::test]
async fn bytes_behind_the_answer_to_the_tls_request_are_refused() {
    let address = answering(b"SR\0\0\0\x08\0\0\0\0").await;
    let error = connect_to(address, SslMode::Require).await.unwrap_err();
    assert!(
        matches!(
            &error,
            ConnectError::Protocol {
                step: Step::TlsRequest,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.is_temporary_or_elsewhere());
}

#[tokio::test]
async fn an_error_before_tls_reaches_the_log_escaped_and_never_the_client() {
    let address = server(|mut stream| async move {
        stream.read_exact(&mut [0; 8]).await.unwrap();
        let mut answer = b"Etrust me:\x1b[31m\npay up".to_vec();
        answer.resize(100_000, b'x');
        let _ = stream.write_all(&answer).await;
    })
    .await;
    for mode in [SslMode::Prefer, SslMode::Require] {
        let error = connect_to(address, mode).await.unwrap_err();
        let ConnectError::ErrorBeforeTls { text } = &error else {
            panic!("{error}")
        };
        assert!(text.starts_with("trust me:\\x1b[31m\\npay up"));
        assert!(text.len() < 1200);
        let ClientReply::Own(reply) = error.client_reply("db1") else {
            panic!()
        };
        assert!(!format!("{reply:?}").contains("pay up"));
    }
}

#[tokio::test]
async fn any_other_answer_to_the_tls_request_is_an_error() {
    let address = answering(b"X").await;
    let error = connect_to(address, SslMode::Prefer).await.unwrap_err();
    assert!(
        matches!(
            error,
            ConnectError::Protocol {
                step: Step::TlsRequest,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn require_does_not_go_on_without_tls() {
    let address = answering(b"N").await;
    assert!(matches!(
        connect_to(address, SslMode::Require).await,
        Err(ConnectError::TlsRefused)
    ));
}

#[tokio::test]
async fn silence_ends_at_the_deadline_and_names_the_step() {
    let silent = server(|mut stream| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    for (mode, expected) in [
        (SslMode::Disable, Step::Login),
        (SslMode::Prefer, Step::TlsRequest),
    ] {
        let error = connect_with(silent, &tls(mode), &Credential::None, Duration::from_millis(150))
            .await
            .unwrap_err();
        assert!(
            matches!(error, ConnectError::Timeout { step } if step == expected),
            "{error}"
        );
        assert!(error.counts_against_member());
    }
    let mute = answering(b"S").await;
    let error = connect_with(
        mute,
        &tls(SslMode::Prefer),
        &Credential::None,
        Duration::from_millis(150),
    )
    .await
    .unwrap_err();
    assert!(
        matches!(
            error,
            ConnectError::Timeout {
                step: Step::TlsHandshake
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_closed_port_is_refused_and_counts() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = connect_to(address, SslMode::Disable).await.unwrap_err();
    assert!(
        matches!(error, ConnectError::Refused { address: refused } if refused == address),
        "{error}"
    );
    assert!(error.counts_against_member() && error.is_temporary_or_elsewhere());
}

#[tokio::test]
async fn the_next_address_is_tried_and_a_black_hole_leaves_time_for_it() {
    // An accept queue that is full drops SYNs: a black hole on loopback.
    let hole = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    hole.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into())
        .unwrap();
    hole.listen(0).unwrap();
    let hole_address = hole.local_addr().unwrap().as_socket().unwrap();
    let mut fillers = Vec::new();
    while let Ok(Ok(filler)) =
        tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(hole_address)).await
    {
        fillers.push(filler);
    }
    let good = server(|stream| async move { drop(stream) }).await;
    let deadline = Instant::now() + Duration::from_secs(1);
    let (_, address) = socket::dial(&[hole_address, good], &options(), deadline)
        .await
        .unwrap();
    assert_eq!(address, good);
    assert!(Instant::now() < deadline);
}

#[tokio::test]
async fn an_unknown_host_is_a_resolve_error() {
    let tls = TlsClient::disabled();
    let target = Target {
        host: "no-such-host.invalid",
        port: 5432,
        tls: &tls,
        options: &options(),
        version: ProtocolVersion::V3_0,
        parameters: &parameters(),
        credential: &Credential::None,
    };
    let error = connect(target, Instant::now() + Duration::from_secs(20))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            ConnectError::Resolve { .. } | ConnectError::Timeout { step: Step::Resolve }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn accepted_sockets_have_the_options_of_the_listening_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = async || {
        let client = TcpStream::connect(address).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    };
    tune_listener(&listener, &options()).unwrap();
    let (_client, stream) = accepted().await;
    let socket = socket2::SockRef::from(&stream);
    assert!(socket.tcp_nodelay().unwrap());
    assert!(socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(15));
    assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(15));
    assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(30)));

    // As after a reload.
    let none = ServerOptions {
        keepalive: None,
        tcp_user_timeout: None,
        ..options()
    };
    tune_listener(&listener, &none).unwrap();
    let (_client, stream) = accepted().await;
    let socket = socket2::SockRef::from(&stream);
    assert!(socket.tcp_nodelay().unwrap());
    assert!(!socket.keepalive().unwrap());
    assert_eq!(socket.tcp_user_timeout().unwrap(), None);
}

// Login, over memory.

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.put_u32(u32::try_from(body.len() + 4).unwrap());
    out.extend_from_slice(body);
    out
}

fn r(code: u32, data: &[u8]) -> Vec<u8> {
    frame(b'R', &[&code.to_be_bytes(), data].concat())
}

fn error_frame(code: &str, message: &str) -> Vec<u8> {
    frame(
        b'E',
        format!("SFATAL\0VFATAL\0C{code}\0M{message}\0\0").as_bytes(),
    )
}

fn good_login() -> Vec<u8> {
    let mut out = BytesMut::new();
    out.extend_from_slice(&frame(b'N', b"SNOTICE\0Mhello\0\0"));
    message::authentication_ok(&mut out);
    message::parameter_status(&mut out, b"in_hot_standby", b"on");
    message::parameter_status(&mut out, b"server_version", b"15.20");
    message::backend_key_data(&mut out, 4711, b"abcd");
    message::parameter_status(&mut out, b"in_hot_standby", b"off");
    message::ready_for_query(&mut out, b'I');
    out.to_vec()
}

async fn login_against(
    answer: &[u8],
    credential: &Credential,
    version: ProtocolVersion,
    is_tls: bool,
) -> Result<LoggedIn, ServerLoginFailure> {
    let (mut near, mut far) = duplex(1 << 20);
    far.write_all(answer).await.unwrap();
    far.shutdown().await.unwrap();
    let parameters = parameters();
    let request = LoginRequest {
        version,
        parameters: &parameters,
        credential,
        is_tls,
        channel_binding: ChannelBinding::Prefer,
        end_point: None,
        require_auth: &RequireAuth::Safe,
        is_verified: true,
        is_local: false,
        has_answered: false.into(),
    };
    let result = login(&mut near, &request).await;
    drop(far);
    result
}

async fn trusting(answer: &[u8]) -> Result<LoggedIn, ServerLoginFailure> {
    login_against(answer, &Credential::None, ProtocolVersion::V3_0, false).await
}

async fn refused(answer: &[u8]) -> ConnectError {
    trusting(answer).await.unwrap_err().error
}

#[tokio::test]
async fn a_login_yields_everything_the_server_said() {
    let answer = [good_login(), b"behind".to_vec()].concat();
    let login = trusting(&answer).await.unwrap();
    assert_eq!(login.role, SeenRole::Writable);
    assert_eq!(login.key, Some((4711, Bytes::from_static(b"abcd"))));
    assert_eq!(
        login.notices,
        vec![Bytes::from(frame(b'N', b"SNOTICE\0Mhello\0\0"))]
    );
    assert_eq!(login.leftover.as_ref(), b"behind");
    let names: Vec<&[u8]> = login.parameters.iter().map(|(name, _)| name.as_ref()).collect();
    assert_eq!(
        names,
        [&b"in_hot_standby"[..], b"server_version", b"in_hot_standby"]
    );
    assert_eq!(login.parameters[1].1.as_ref(), b"15.20");
}

#[tokio::test]
async fn a_login_may_arrive_in_any_pieces() {
    let answer = good_login();
    for cut in 0..answer.len() {
        let (mut near, mut far) = duplex(1 << 16);
        let parameters = parameters();
        let request = LoginRequest {
            version: ProtocolVersion::V3_0,
            parameters: &parameters,
            credential: &Credential::None,
            is_tls: false,
            channel_binding: ChannelBinding::Prefer,
            end_point: None,
            require_auth: &RequireAuth::Safe,
            is_verified: true,
            is_local: false,
            has_answered: false.into(),
        };
        far.write_all(&answer[..cut]).await.unwrap();
        let (result, ()) = tokio::join!(login(&mut near, &request), async {
            // Only once the first part was taken.
            tokio::task::yield_now().await;
            far.write_all(&answer[cut..]).await.unwrap();
        });
        assert_eq!(
            result.unwrap().key,
            Some((4711, Bytes::from_static(b"abcd"))),
            "cut at {cut}"
        );
    }
}

#[tokio::test]
async fn a_login_cut_off_anywhere_is_a_closed_connection() {
    let answer = good_login();
    for cut in 0..answer.len() {
        let error = refused(&answer[..cut]).await;
        assert!(
            matches!(error, ConnectError::Closed { step: Step::Login }),
            "cut at {cut}: {error}"
        );
    }
}

#[tokio::test]
async fn lengths_out_of_bounds_are_refused_at_the_header() {
    for (tag, length) in [
        (b'R', 3),
        (b'R', 0),
        (b'R', u32::MAX),
        (b'R', 20_000),
        (b'S', 30_001),
        (b'E', 100_000),
        (b'N', 0x7fff_ffff),
        (b'D', 100_000),
    ] {
        let mut header = vec![tag];
        header.put_u32(length);
        let error = refused(&header).await;
        assert!(
            matches!(
                error,
                ConnectError::Protocol {
                    step: Step::Login,
                    ..
                }
            ),
            "{tag} {length}: {error}"
        );
    }
}

#[tokio::test]
async fn floods_are_bounded() {
    let ok = r(0, b"");
    let parameters: Vec<u8> = (0..500)
        .flat_map(|i| frame(b'S', format!("p{i}\0v\0").as_bytes()))
        .collect();
    let error = refused(&[ok.clone(), parameters].concat()).await;
    assert!(matches!(error, ConnectError::Protocol { .. }), "{error}");

    let wide: Vec<u8> = (0..20)
        .flat_map(|_| frame(b'S', &[b"p\0", &[b'v'; 9000][..], b"\0"].concat()))
        .collect();
    let error = refused(&[ok.clone(), wide].concat()).await;
    assert!(matches!(error, ConnectError::Protocol { .. }), "{error}");

    let notices: Vec<u8> = (0..300).flat_map(|_| frame(b'N', b"SNOTICE\0Mx\0\0")).collect();
    let login = trusting(&[ok, notices, frame(b'Z', b"I")].concat())
        .await
        .unwrap();
    assert_eq!(login.notices.len(), 100);
}

#[tokio::test]
async fn messages_out_of_turn_are_violations() {
    let ok = r(0, b"");
    for answer in [
        frame(b'Z', b"I"),
        [ok.clone(), ok.clone()].concat(),
        [ok.clone(), frame(b'Z', b"T")].concat(),
        [ok.clone(), frame(b'Z', b"II")].concat(),
        [ok.clone(), frame(b'D', b"\0\0")].concat(),
        frame(b'K', b"\0\0\0\x01abcd"),
        [ok.clone(), frame(b'K', b"\0\0\0\x01abc")].concat(),
        [ok.clone(), frame(b'S', b"no terminator")].concat(),
        [ok.clone(), frame(b'S', b"a\0b\0c")].concat(),
        r(11, b"r=x"),
        r(12, b"v=x"),
        r(5, b"sal"),
        r(5, b"salty"),
        r(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"),
        r(4711, b""),
        frame(b'R', b"\0"),
        frame(b'E', b"Mno end"),
        frame(b'E', b"SFATAL\0\0behind"),
        frame(b'v', b"\0\x03\0\x02\0\0\0\0"),
        frame(b'v', b"\0\x03\0\0\0\0\0\x01"),
        b"HTTP/1.1 400 Bad Request\r\n".to_vec(),
    ] {
        let error = refused(&answer).await;
        assert!(
            matches!(error, ConnectError::Protocol { .. }),
            "{}: {error}",
            answer.escape_ascii()
        );
        assert!(error.counts_against_member());
    }
}

#[tokio::test]
async fn an_older_protocol_version_is_accepted_once() {
    let v = frame(b'v', b"\0\x03\0\0\0\0\0\x01_pq_.x\0");
    let answer = [v.clone(), good_login()].concat();
    let login = login_against(&answer, &Credential::None, ProtocolVersion::V3_2, false)
        .await
        .unwrap();
    assert_eq!(login.version, ProtocolVersion::V3_0);
    let answer = [v.clone(), v, good_login()].concat();
    assert!(
        login_against(&answer, &Credential::None, ProtocolVersion::V3_2, false)
            .await
            .is_err()
    );
}

fn client_key() -> Credential {
    let verifier = Verifier {
        iterations: 4096,
        salt: vec![1; 16],
        stored_key: [2; 32],
        server_key: [3; 32],
    };
    Credential::ClientKey(ClientKey {
        key: [4; 32].into(),
        verifier: Arc::new(verifier),
    })
}

fn md5_hash() -> Credential {
    Credential::Md5(Md5Hash::of(b"secret", b"app"))
}

#[tokio::test]
async fn methods_that_cannot_be_answered_say_which() {
    let password = Credential::Password(Secret::new("secret"));
    for (answer, credential, expected) in [
        (r(5, b"salt"), &client_key(), "md5"),
        (r(10, b"SCRAM-SHA-256\0\0"), &md5_hash(), "SCRAM"),
        (r(3, b""), &md5_hash(), "password"),
        (r(7, b""), &password, "GSSAPI"),
        (r(9, b""), &password, "SSPI"),
        (r(3, b""), &client_key(), "password"),
        (r(10, b"SCRAM-SHA-256-PLUS\0OAUTHBEARER\0\0"), &password, "SASL"),
    ] {
        let failure = login_against(&answer, credential, ProtocolVersion::V3_0, true)
            .await
            .unwrap_err();
        let ConnectError::UnsupportedMethod { method } = failure.error else {
            panic!("{}", failure.error)
        };
        assert!(method.starts_with(expected));
        assert!(!failure.authenticated);
    }
    let error = refused(&r(10, b"SCRAM-SHA-256\0\0")).await;
    assert!(matches!(error, ConnectError::NoCredential { .. }), "{error}");
}

#[tokio::test]
async fn a_password_goes_in_clear_only_over_tls() {
    let password = Credential::Password(Secret::new("secret"));
    let answer = [r(3, b""), good_login()].concat();
    let failure = login_against(&answer, &password, ProtocolVersion::V3_0, false)
        .await
        .unwrap_err();
    assert!(
        matches!(failure.error, ConnectError::CleartextRefused),
        "{}",
        failure.error
    );
    assert!(
        login_against(&answer, &password, ProtocolVersion::V3_0, true)
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_server_that_skips_scram_is_trusted_but_one_that_breaks_it_off_is_not() {
    assert!(
        login_against(&good_login(), &client_key(), ProtocolVersion::V3_0, false)
            .await
            .is_ok()
    );
    let answer = [r(10, b"OTHER\0SCRAM-SHA-256\0\0"), good_login()].concat();
    let failure = login_against(&answer, &client_key(), ProtocolVersion::V3_0, false)
        .await
        .unwrap_err();
    assert!(
        matches!(failure.error, ConnectError::NotProven { .. }),
        "{}",
        failure.error
    );
}

/// A server that begins SCRAM and answers the client's nonce with what `answer` makes of it.
async fn scram_server(
    credential: &Credential,
    server_first: impl Fn(&str) -> String,
    then: Vec<u8>,
) -> ConnectError {
    let (mut near, mut far) = duplex(1 << 16);
    let parameters = parameters();
    let request = LoginRequest {
        version: ProtocolVersion::V3_0,
        parameters: &parameters,
        credential,
        is_tls: false,
        channel_binding: ChannelBinding::Prefer,
        end_point: None,
        require_auth: &RequireAuth::Safe,
        is_verified: true,
        is_local: false,
        has_answered: false.into(),
    };
    let (result, ()) = tokio::join!(login(&mut near, &request), async {
        let length = far.read_u32().await.unwrap() as usize;
        far.read_exact(&mut vec![0; length - 4]).await.unwrap();
        far.write_all(&r(10, b"SCRAM-SHA-256\0\0")).await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'p');
        let length = far.read_u32().await.unwrap() as usize;
        let mut body = vec![0; length - 4];
        far.read_exact(&mut body).await.unwrap();
        let text = String::from_utf8(body).unwrap();
        let nonce = text.rsplit("r=").next().unwrap();
        far.write_all(&r(11, server_first(nonce).as_bytes()))
            .await
            .unwrap();
        far.write_all(&then).await.unwrap();
        far.shutdown().await.unwrap();
    });
    result.unwrap_err().error
}

#[tokio::test]
async fn hostile_scram_servers_get_no_work_and_no_trust() {
    let password = Credential::Password(Secret::new("secret"));
    let salt = "AQEBAQEBAQEBAQEBAQEBAQ==";
    let bomb = scram_server(
        &password,
        |nonce| format!("r={nonce}x,s={salt},i=4000000000"),
        vec![],
    )
    .await;
    assert!(matches!(bomb, ConnectError::NotProven { .. }), "{bomb}");
    let replay = scram_server(&password, |_| format!("r=other,s={salt},i=4096"), vec![]).await;
    assert!(matches!(replay, ConnectError::NotProven { .. }), "{replay}");
    let honest = |nonce: &str| format!("r={nonce}x,s={salt},i=4096");
    let forged = r(12, b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let forged = scram_server(&password, honest, forged).await;
    assert!(matches!(forged, ConnectError::NotProven { .. }), "{forged}");
    let skipped = scram_server(&password, honest, good_login()).await;
    assert!(matches!(skipped, ConnectError::NotProven { .. }), "{skipped}");
}

/// What is known of the connection the login runs on.
struct Bound {
    channel_binding: ChannelBinding,
    end_point: Option<&'static [u8]>,
}

const REQUIRED: Bound = Bound {
    channel_binding: ChannelBinding::Require,
    end_point: Some(b"certificate"),
};
const PREFERRED: Bound = Bound {
    channel_binding: ChannelBinding::Prefer,
    ..REQUIRED
};
const DISABLED: Bound = Bound {
    channel_binding: ChannelBinding::Disable,
    ..REQUIRED
};

/// The verifier of "secret".
fn stored() -> Arc<Verifier> {
    let iterations = std::num::NonZeroU32::new(2).unwrap();
    Arc::new(Verifier::from_password(
        b"secret",
        b"0123456789abcdef",
        iterations,
    ))
}

/// Whatever the server says, over TLS.
async fn bound_login(
    answer: &[u8],
    credential: &Credential,
    bound: &Bound,
) -> Result<LoggedIn, ServerLoginFailure> {
    let (mut near, mut far) = duplex(1 << 20);
    far.write_all(answer).await.unwrap();
    far.shutdown().await.unwrap();
    let parameters = parameters();
    login(&mut near, &bound_request(&parameters, credential, bound)).await
}

fn bound_request<'a>(
    parameters: &'a [(Bytes, Bytes)],
    credential: &'a Credential,
    bound: &Bound,
) -> LoginRequest<'a> {
    LoginRequest {
        version: ProtocolVersion::V3_0,
        parameters,
        credential,
        is_tls: true,
        channel_binding: bound.channel_binding,
        end_point: bound.end_point.map(<[u8]>::to_vec),
        require_auth: &RequireAuth::Safe,
        is_verified: true,
        is_local: false,
        has_answered: false.into(),
    }
}

/// A server that knows the password, has a certificate that hashes to `theirs`, and whose list of
/// mechanisms arrives as `list`. Returns the mechanism and the gs2 flag it saw, if any, and how the
/// login ended.
async fn honest_server(
    credential: &Credential,
    bound: &Bound,
    theirs: Option<&[u8]>,
    list: &[u8],
) -> (Option<(String, u8)>, Result<LoggedIn, ServerLoginFailure>) {
    let (mut near, mut far) = duplex(1 << 16);
    let parameters = parameters();
    let request = bound_request(&parameters, credential, bound);
    let played = async {
        let length = far.read_u32().await? as usize;
        far.read_exact(&mut vec![0; length - 4]).await?;
        far.write_all(&r(10, list)).await?;
        let first = password_message(&mut far).await?;
        let end = first.iter().position(|&byte| byte == 0).unwrap();
        let (mechanism, data) = (&first[..end], &first[end + 5..]);
        let seen = (String::from_utf8(mechanism.to_vec()).unwrap(), data[0]);
        let mock = MockSecret::new(None);
        let lookup = Lookup {
            user: b"app",
            verifier: Some(stored()),
            mock: &mock,
        };
        let mut out = BytesMut::new();
        match ServerExchange::start(lookup, theirs, Nonce::random()).client_first(mechanism, data) {
            Err(error) => message::error(&mut out, &error.reply(b"app")),
            Ok((exchange, data)) => {
                far.write_all(&r(11, &data)).await?;
                match exchange.client_final(&password_message(&mut far).await?) {
                    Err(error) => message::error(&mut out, &error.reply(b"app")),
                    Ok((data, _)) => {
                        out.extend_from_slice(&r(12, &data));
                        out.extend_from_slice(&good_login());
                    }
                }
            }
        }
        far.write_all(&out).await?;
        std::io::Result::Ok(seen)
    };
    let (result, seen) = tokio::join!(
        async {
            let result = login(&mut near, &request).await;
            drop(near);
            result
        },
        played
    );
    (seen.ok(), result)
}

async fn password_message(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    assert_eq!(stream.read_u8().await?, b'p');
    let mut body = vec![0; stream.read_u32().await? as usize - 4];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

const BOTH: &[u8] = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
const BOTH_TURNED_ROUND: &[u8] = b"OTHER\0SCRAM-SHA-256\0SCRAM-SHA-256-PLUS\0\0";
const PLAIN: &[u8] = b"SCRAM-SHA-256\0\0";
const PLUS: &[u8] = b"SCRAM-SHA-256-PLUS\0\0";

#[tokio::test]
async fn the_mechanism_follows_from_list_certificate_and_setting() {
    let password = Credential::Password(Secret::new("secret"));
    let certificate = Some(&b"certificate"[..]);
    let no_hash = |bound: Bound| Bound {
        end_point: None,
        ..bound
    };
    for (bound, list, theirs, mechanism, flag) in [
        (PREFERRED, BOTH, certificate, "SCRAM-SHA-256-PLUS", b'p'),
        (
            PREFERRED,
            BOTH_TURNED_ROUND,
            certificate,
            "SCRAM-SHA-256-PLUS",
            b'p',
        ),
        (PREFERRED, PLUS, certificate, "SCRAM-SHA-256-PLUS", b'p'),
        (PREFERRED, PLAIN, None, "SCRAM-SHA-256", b'y'),
        (REQUIRED, BOTH, certificate, "SCRAM-SHA-256-PLUS", b'p'),
        (DISABLED, BOTH, certificate, "SCRAM-SHA-256", b'n'),
        (DISABLED, PLAIN, None, "SCRAM-SHA-256", b'n'),
        // As with Ed25519, where PostgreSQL offers what it cannot do.
        (no_hash(PREFERRED), BOTH, certificate, "SCRAM-SHA-256", b'n'),
        (no_hash(PREFERRED), PLAIN, None, "SCRAM-SHA-256", b'n'),
    ] {
        let (seen, result) = honest_server(&password, &bound, theirs, list).await;
        assert!(
            result.is_ok(),
            "{mechanism} {flag} {:?}",
            result.unwrap_err().error
        );
        assert_eq!(
            seen,
            Some((mechanism.to_owned(), flag)),
            "{}",
            list.escape_ascii()
        );
    }
}

fn assert_not_bound(failure: &ServerLoginFailure, what: &str) {
    let error = &failure.error;
    assert!(
        matches!(error, ConnectError::ChannelBinding { .. }),
        "{what}: {error}"
    );
    assert!(error.is_temporary_or_elsewhere() && !error.counts_against_member());
    assert_eq!(error.metrics_label(), "channel_binding");
    assert!(!failure.authenticated);
    let ClientReply::Own(reply) = error.client_reply("db1") else {
        panic!("{what}: not our own reply")
    };
    assert_eq!(reply.code.as_str(), "08006");
    assert!(reply.hint.unwrap().contains("server_tls.channel_binding"));
}

#[tokio::test]
async fn a_list_without_plus_is_refused_where_it_is_required_and_noticed_where_it_was_stripped() {
    let password = Credential::Password(Secret::new("secret"));
    let certificate = Some(&b"certificate"[..]);
    let (seen, result) = honest_server(&password, &REQUIRED, certificate, PLAIN).await;
    assert_eq!(seen, None, "nothing was sent");
    assert_not_bound(&result.unwrap_err(), "required");
    // The server offered it and sees our `y`.
    let (seen, result) = honest_server(&password, &PREFERRED, certificate, PLAIN).await;
    assert_eq!(seen, Some(("SCRAM-SHA-256".to_owned(), b'y')));
    assert_not_bound(&result.unwrap_err(), "stripped");
    let unhashable = Bound {
        end_point: None,
        ..REQUIRED
    };
    let (seen, result) = honest_server(&password, &unhashable, certificate, BOTH).await;
    assert_eq!(seen, None, "nothing was sent");
    assert_not_bound(&result.unwrap_err(), "no hash");
}

#[tokio::test]
async fn a_server_behind_another_certificate_is_refused() {
    let password = Credential::Password(Secret::new("secret"));
    for bound in [PREFERRED, REQUIRED] {
        let (seen, result) = honest_server(&password, &bound, Some(b"its own"), BOTH).await;
        assert_eq!(seen, Some(("SCRAM-SHA-256-PLUS".to_owned(), b'p')));
        assert_not_bound(&result.unwrap_err(), "another certificate");
    }
}

#[tokio::test]
async fn where_binding_is_required_nothing_else_will_do() {
    let password = Credential::Password(Secret::new("secret"));
    for (what, answer) in [
        ("trust", good_login()),
        ("password", [r(3, b""), good_login()].concat()),
        ("md5", [r(5, b"salt"), good_login()].concat()),
        ("GSSAPI", r(7, b"")),
        ("OAUTHBEARER only", r(10, b"OAUTHBEARER\0\0")),
    ] {
        let failure = bound_login(&answer, &password, &REQUIRED).await.unwrap_err();
        assert_not_bound(&failure, what);
    }
    // Begun, and broken off.
    let failure = bound_login(&[r(10, BOTH), good_login()].concat(), &password, &REQUIRED)
        .await
        .unwrap_err();
    assert!(
        matches!(failure.error, ConnectError::NotProven { .. }),
        "{}",
        failure.error
    );
    // An error of the server's own stays its own.
    let failure = bound_login(
        &error_frame("28000", "no pg_hba.conf entry"),
        &password,
        &REQUIRED,
    )
    .await
    .unwrap_err();
    assert!(
        matches!(failure.error, ConnectError::Server(_)),
        "{}",
        failure.error
    );
}

#[tokio::test]
async fn where_binding_is_required_nothing_is_sent_without_tls() {
    let settings = |sslmode| ServerTls {
        sslmode,
        sslnegotiation: SslNegotiation::Postgres,
        channel_binding: ChannelBinding::Require,
        roots: None,
        client_certificate: None,
        server_name: None,
        require_auth: RequireAuth::Safe,
    };
    for mode in [SslMode::Allow, SslMode::Prefer] {
        let (sender, mut sent) = tokio::sync::mpsc::unbounded_channel();
        let address = server(move |mut stream| {
            let sender = sender.clone();
            async move {
                stream.read_exact(&mut [0; 8]).await.unwrap();
                stream.write_all(b"N").await.unwrap();
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
                sender.send(rest).unwrap();
            }
        })
        .await;
        let tls = TlsClient::new(&settings(mode)).unwrap();
        let error = connect_with(address, &tls, &Credential::None, Duration::from_secs(20))
            .await
            .unwrap_err();
        assert!(
            matches!(error, ConnectError::ChannelBinding { .. }),
            "{mode:?}: {error}"
        );
        assert_eq!(sent.recv().await.unwrap(), b"", "{mode:?}");
    }
}

#[tokio::test]
async fn passwords_of_any_length_by_any_method() {
    let long = vec![b'x'; MAX_PASSWORD];
    let credential = Credential::Password(Secret::new(long.clone()));
    // What follows the startup packet, byte for byte.
    let sent = async |answer: Vec<u8>, credential: &Credential| {
        let (mut near, mut far) = duplex(1 << 20);
        far.write_all(&[answer, good_login()].concat()).await.unwrap();
        let parameters = parameters();
        login(&mut near, &bound_request(&parameters, credential, &PREFERRED))
            .await
            .unwrap();
        drop(near);
        let length = far.read_u32().await.unwrap() as usize;
        far.read_exact(&mut vec![0; length - 4]).await.unwrap();
        let body = password_message(&mut far).await.unwrap();
        assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0);
        body
    };
    assert_eq!(
        sent(r(3, b""), &credential).await,
        [&long[..], b"\0"].concat(),
        "in clear, over TLS"
    );
    // md5 over hexadecimal digits and the salt; computed with Python's hashlib.
    assert_eq!(sent(r(5, b"salt"), &credential).await, LONG_MD5);
    for credential in [Credential::Password(Secret::new("secret")), md5_hash()] {
        assert_eq!(sent(r(5, b"salt"), &credential).await, SHORT_MD5);
    }
}

/// Of the longest password and of "secret", for the user `app` and the salt "salt".
const LONG_MD5: &[u8] = b"md54c507f113f5e73f8c34d3c7db1444b8b\0";
const SHORT_MD5: &[u8] = b"md57f097e06031b34893c20e25a0e68242c\0";

#[tokio::test]
async fn direct_tls_speaks_to_servers_that_name_the_protocol_only() {
    let settings = ServerTls {
        sslmode: SslMode::Require,
        sslnegotiation: SslNegotiation::Direct,
        channel_binding: ChannelBinding::Prefer,
        roots: None,
        client_certificate: None,
        server_name: None,
        require_auth: RequireAuth::Safe,
    };
    let tls = TlsClient::new(&settings).unwrap();
    // Older servers take the ClientHello for a startup packet; other services speak TLS without the
    // protocol's name.
    let closing = server(|mut stream| async move {
        assert_eq!(stream.read_u8().await.unwrap(), 0x16, "a TLS handshake, at once");
    })
    .await;
    let certificate = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let nameless = server(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let mut sent = Vec::new();
                let _ = stream.read_to_end(&mut sent).await;
                assert_eq!(sent, b"");
            }
        }
    })
    .await;
    for (address, reason) in [(closing, "closed the connection"), (nameless, "ALPN")] {
        let error = connect_with(address, &tls, &Credential::None, Duration::from_secs(20))
            .await
            .unwrap_err();
        assert!(matches!(error, ConnectError::DirectTls { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(reason) && text.contains("sslnegotiation: postgres"),
            "{text}"
        );
        let ClientReply::Own(reply) = error.client_reply("db1") else {
            panic!("not our own reply")
        };
        assert!(reply.hint.unwrap().contains("server_tls.sslnegotiation"));
    }
}

#[tokio::test]
async fn another_verifier_on_the_server_is_not_the_clients_fault() {
    let key = client_key();
    let salt = scram_server(&key, |nonce| format!("r={nonce}x,s=AAAA,i=4096"), vec![]).await;
    let iterations = scram_server(
        &key,
        |nonce| format!("r={nonce}x,s=AQEBAQEBAQEBAQEBAQEBAQ==,i=8192"),
        vec![],
    )
    .await;
    let honest = |nonce: &str| format!("r={nonce}x,s=AQEBAQEBAQEBAQEBAQEBAQ==,i=4096");
    let stored_key = scram_server(
        &key,
        honest,
        error_frame("28P01", "password authentication failed"),
    )
    .await;
    for error in [salt, iterations, stored_key] {
        assert!(matches!(error, ConnectError::VerifierDiffers { .. }), "{error}");
        assert!(error.is_temporary_or_elsewhere() && !error.counts_against_member());
        let ClientReply::Own(reply) = error.client_reply("db2") else {
            panic!()
        };
        assert_eq!(reply.code.as_str(), "57P03");
    }
    let password = Credential::Password(Secret::new("secret"));
    let own = scram_server(
        &password,
        honest,
        error_frame("28P01", "password authentication failed"),
    )
    .await;
    assert!(
        matches!(&own, ConnectError::Server(error) if error.code == "28P01"),
        "{own}"
    );
}

#[tokio::test]
async fn the_servers_error_is_forwarded_as_it_is_and_judged_by_its_code() {
    for (code, elsewhere, counts) in [
        ("57P01", true, true),
        ("57P02", true, true),
        ("57P03", true, true),
        ("53300", true, false),
        ("28P01", false, false),
        ("3D000", false, false),
        ("42704", false, false),
    ] {
        let raw = error_frame(code, "no \u{1F418}");
        let error = refused(&raw).await;
        assert_eq!(error.is_temporary_or_elsewhere(), elsewhere, "{code}");
        assert_eq!(error.counts_against_member(), counts, "{code}");
        assert_eq!(error.client_reply("db1"), ClientReply::Verbatim(Bytes::from(raw)));
    }
    let bare = refused(&frame(b'E', b"Mno code\0\0")).await;
    assert!(
        matches!(&bare, ConnectError::Server(error) if error.code == SqlState::MISSING),
        "{bare}"
    );
    let after = [
        r(0, b""),
        error_frame("42704", "unrecognized configuration parameter"),
    ]
    .concat();
    assert!(trusting(&after).await.unwrap_err().authenticated);
}

#[test]
fn local_limits_are_not_the_servers_failure() {
    let error = ConnectError::io(Step::Connect, rustix::io::Errno::MFILE.into());
    assert!(matches!(error, ConnectError::LocalResources { .. }));
    assert!(!error.counts_against_member() && !error.is_temporary_or_elsewhere());
}

#[test]
fn the_line_pg_hba_conf_needs() {
    let body = Bytes::from_static(b"SFATAL\0C28000\0Mkein pg_hba.conf-Eintrag\0\0");
    let refusal = ServerError::parse(&body, body.clone()).unwrap();
    let line = |parameters: &[(&'static str, &'static str)], router: &str, is_tls| {
        let parameters: Vec<(Bytes, Bytes)> = parameters
            .iter()
            .map(|(name, value)| (Bytes::from(*name), Bytes::from(*value)))
            .collect();
        hba_line::needed(&refusal, &parameters, router.parse().unwrap(), is_tls).unwrap()
    };
    let app = [("user", "app"), ("database", "shop")];
    assert_eq!(
        line(&app, "10.0.0.7", true),
        "hostssl shop app 10.0.0.7/32 scram-sha-256"
    );
    assert_eq!(
        line(&app, "::ffff:10.0.0.7", false),
        "host shop app 10.0.0.7/32 scram-sha-256"
    );
    assert_eq!(
        line(&[("user", "app")], "fe80::1", false),
        "host app app fe80::1/128 scram-sha-256"
    );
    let odd = [("user", "a \"b\"\n"), ("database", "all")];
    assert_eq!(
        line(&odd, "10.0.0.7", false),
        "host \"all\" \"a \"\"b\"\"\" 10.0.0.7/32 scram-sha-256"
    );
    let replication = [("user", "rep"), ("replication", "true")];
    assert_eq!(
        line(&replication, "10.0.0.7", false),
        "host replication rep 10.0.0.7/32 scram-sha-256"
    );
    let logical = [("user", "rep"), ("replication", "database"), ("database", "shop")];
    assert_eq!(
        line(&logical, "10.0.0.7", false),
        "host shop rep 10.0.0.7/32 scram-sha-256"
    );
}

// Queries.

/// A connection whose server answers the first query with `answer` and closes.
async fn querying(answer: Vec<u8>) -> (ServerConnection, Instant) {
    let address = server(move |mut stream| {
        let answer = answer.clone();
        async move {
            let length = stream.read_u32().await.unwrap() as usize;
            stream.read_exact(&mut vec![0; length - 4]).await.unwrap();
            stream.write_all(&good_login()).await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'Q');
            let length = stream.read_u32().await.unwrap() as usize;
            stream.read_exact(&mut vec![0; length - 4]).await.unwrap();
            let _ = stream.write_all(&answer).await;
        }
    })
    .await;
    (
        connect_to(address, SslMode::Disable).await.unwrap(),
        Instant::now() + Duration::from_secs(20),
    )
}

fn answer(rows: &[&[u8]]) -> Vec<u8> {
    let rows = rows.iter().flat_map(|row| frame(b'D', row));
    let mut out = frame(b'T', b"\0\0");
    out.extend(rows);
    out.extend(frame(b'N', b"SNOTICE\0Mx\0\0"));
    out.extend(frame(b'S', b"in_hot_standby\0on\0"));
    out.extend(frame(b'C', b"SELECT\0"));
    out.extend(frame(b'Z', b"I"));
    out
}

#[tokio::test]
async fn a_query_yields_rows_and_sees_a_change_of_role() {
    let (mut connection, deadline) = querying(answer(&[
        b"\0\x02\0\0\0\x02hi\xff\xff\xff\xff",
        b"\0\x01\0\0\0\0",
    ]))
    .await;
    let rows = query::simple_query(&mut connection, "SELECT 1", 10, deadline)
        .await
        .unwrap();
    assert_eq!(rows, vec![vec![Some(b"hi".to_vec()), None], vec![Some(vec![])]]);
    assert_eq!(connection.role, SeenRole::Standby);
}

#[tokio::test]
async fn answers_out_of_bounds_end_the_query() {
    for rows in [
        &[b"\0\x01\0\0\0\x05hi".as_slice()][..],
        &[b"\xff\xff".as_slice()],
        &[b"\0\x01\x80\0\0\0".as_slice()],
        &[b"\0\x01\0\0\0\0x".as_slice()],
        &[b"\0\0".as_slice(), b"\0\0", b"\0\0"],
        &[vec![0; 2_000_000].as_slice()],
    ] {
        let (mut connection, deadline) = querying(answer(rows)).await;
        let error = query::simple_query(&mut connection, "SELECT 1", 2, deadline)
            .await
            .unwrap_err();
        assert!(
            matches!(
                error,
                ConnectError::Protocol { .. } | ConnectError::AnswerTooLarge
            ),
            "{error}"
        );
        assert!(!error.leaves_usable());
    }
    let (mut connection, deadline) = querying(frame(b'G', b"\0\0\0")).await;
    let error = query::simple_query(&mut connection, "COPY t FROM STDIN", 2, deadline)
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Protocol { .. }), "{error}");
}

#[tokio::test]
async fn an_error_leaves_the_connection_usable_and_a_fatal_one_does_not() {
    let error = frame(b'E', b"SFEHLER\0VERROR\0C42P01\0Mno table\0\0");
    let (mut connection, deadline) = querying([error, frame(b'Z', b"I")].concat()).await;
    let error = query::simple_query(&mut connection, "SELECT 1", 2, deadline)
        .await
        .unwrap_err();
    assert!(error.leaves_usable(), "{error}");
    let (mut connection, deadline) = querying(error_frame("57P01", "terminating")).await;
    let error = query::simple_query(&mut connection, "SELECT 1", 2, deadline)
        .await
        .unwrap_err();
    assert!(!error.leaves_usable() && error.counts_against_member(), "{error}");
}

#[tokio::test]
async fn a_cancel_waits_for_the_server_to_close_and_not_for_ever() {
    let target = |address| CancelTarget {
        address,
        tls: None,
        host: Arc::from("db1"),
        process_id: 4711,
        key: Bytes::from_static(b"abcd"),
    };
    let closing = server(|mut stream| async move {
        let mut request = [0; 16];
        stream.read_exact(&mut request).await.unwrap();
        assert_eq!(request, *b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\x12\x67abcd");
    })
    .await;
    target(closing).send(Duration::from_secs(20)).await.unwrap();
    let silent = server(|mut stream| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let error = target(silent).send(Duration::from_millis(150)).await.unwrap_err();
    assert!(
        matches!(error, ConnectError::Timeout { step: Step::Cancel }),
        "{error}"
    );
    let mut encrypted = target(answering(b"N").await);
    encrypted.tls = Some(tls(SslMode::Prefer));
    let error = encrypted.send(Duration::from_secs(20)).await.unwrap_err();
    assert!(matches!(error, ConnectError::TlsRefused), "{error}");
}
