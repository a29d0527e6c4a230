//! What a server may ask for, by `require_auth` and by what is known of it.

use super::*;

/// What the router knows of the server.
#[derive(Clone, Copy)]
struct Known {
    is_tls: bool,
    is_verified: bool,
    is_local: bool,
}

const STRANGER: Known = Known {
    is_tls: true,
    is_verified: false,
    is_local: false,
};
const VERIFIED: Known = Known {
    is_verified: true,
    ..STRANGER
};
const HERE: Known = Known {
    is_tls: false,
    is_local: true,
    ..STRANGER
};

/// What the server hears after the startup packet, and how the login ends.
async fn answered(
    answer: &[u8],
    credential: &Credential,
    required: &RequireAuth,
    known: Known,
) -> (Vec<u8>, Result<(), ConnectError>) {
    let (mut near, mut far) = duplex(1 << 16);
    far.write_all(answer).await.unwrap();
    let parameters = parameters();
    let request = LoginRequest {
        version: ProtocolVersion::V3_0,
        parameters: &parameters,
        credential,
        is_tls: known.is_tls,
        channel_binding: ChannelBinding::Prefer,
        end_point: None,
        require_auth: required,
        is_verified: known.is_verified,
        is_local: known.is_local,
        has_answered: false.into(),
    };
    let result = login(&mut near, &request).await;
    drop(near);
    let length = far.read_u32().await.unwrap() as usize;
    far.read_exact(&mut vec![0; length - 4]).await.unwrap();
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).await.unwrap();
    (heard, result.map(|_| ()).map_err(|failure| failure.error))
}

fn password() -> Credential {
    Credential::Password(Secret::new("secret"))
}

fn client_key() -> Credential {
    let verifier = Verifier::from_password(b"secret", b"salt", std::num::NonZeroU32::MIN);
    Credential::ClientKey(ClientKey {
        key: [7; 32].into(),
        verifier: Arc::new(verifier),
    })
}

/// The kinds of authentication a server can ask for without proving anything.
fn asks() -> [(AuthMethod, Vec<u8>); 3] {
    [
        (AuthMethod::None, good_login()),
        (AuthMethod::Password, [r(3, b""), good_login()].concat()),
        (AuthMethod::Md5, [r(5, b"salt"), good_login()].concat()),
    ]
}

async fn refused(
    answer: &[u8],
    credential: &Credential,
    required: &RequireAuth,
    known: Known,
) -> ConnectError {
    let (heard, result) = answered(answer, credential, required, known).await;
    assert_eq!(heard, b"", "nothing was given away");
    let error = result.unwrap_err();
    assert!(matches!(error, ConnectError::MethodRefused { .. }), "{error}");
    error
}

#[tokio::test]
async fn by_default_a_stranger_gets_no_password_and_is_not_believed() {
    let safe = RequireAuth::Safe;
    for (method, answer) in asks() {
        let error = refused(&answer, &password(), &safe, STRANGER).await;
        assert!(
            error
                .to_string()
                .contains("nothing has shown that it is the right server")
        );
        let ClientReply::Own(reply) = error.client_reply("db1") else {
            panic!("our own words");
        };
        let mut text = BytesMut::new();
        message::error(&mut text, &reply);
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(
            text.contains("server \"db1\" asks for") && text.contains("server_tls.require_auth"),
            "{text}"
        );
        // Another server may be asked; this one is not worse for it.
        assert!(error.is_temporary_or_elsewhere() && error.suspicion() == Suspicion::None);
        let (_, result) = answered(&answer, &password(), &safe, VERIFIED).await;
        assert!(result.is_ok(), "{method:?}: {result:?}");
    }
    // A client that the router has verified expects the server to know the verifier as well.
    refused(&good_login(), &client_key(), &safe, STRANGER).await;
    refused(&good_login(), &md5_hash(), &safe, STRANGER).await;
}

#[tokio::test]
async fn by_default_trust_works_where_there_is_nothing_to_prove_and_on_this_host() {
    let safe = RequireAuth::Safe;
    // No password: `trust`, or a certificate, is what the operator has set up.
    for known in [STRANGER, HERE, VERIFIED] {
        let (heard, result) = answered(&good_login(), &Credential::None, &safe, known).await;
        assert!(result.is_ok() && heard.is_empty(), "{result:?}");
    }
    for credential in [client_key(), md5_hash()] {
        let (_, result) = answered(&good_login(), &credential, &safe, HERE).await;
        assert!(result.is_ok(), "{result:?}");
    }
    // The service account's own password is there to be asked for.
    refused(&good_login(), &password(), &safe, HERE).await;
    // A role that is stored as md5 has nothing else.
    let (heard, result) = answered(&asks()[2].1, &md5_hash(), &safe, STRANGER).await;
    assert!(result.is_ok() && heard.starts_with(b"p"), "{result:?}");
}

#[tokio::test]
async fn what_is_listed_is_allowed_and_nothing_else() {
    let methods = [AuthMethod::None, AuthMethod::Password, AuthMethod::Md5];
    for (method, answer) in asks() {
        for listed in methods {
            let only = RequireAuth::Only(vec![listed]);
            let without = RequireAuth::Without(vec![listed]);
            if listed == method {
                let (_, result) = answered(&answer, &password(), &only, STRANGER).await;
                assert!(result.is_ok(), "{method:?}: {result:?}");
                let error = refused(&answer, &password(), &without, VERIFIED).await;
                assert!(error.to_string().contains("server_tls.require_auth leaves out"));
            } else {
                refused(&answer, &password(), &only, VERIFIED).await;
                let (_, result) = answered(&answer, &password(), &without, VERIFIED).await;
                assert!(result.is_ok(), "{method:?}: {result:?}");
                // What is not spoken of is as by default.
                refused(&answer, &password(), &without, STRANGER).await;
            }
        }
    }
    let only = RequireAuth::Only(vec![AuthMethod::Password]);
    refused(&r(10, b"SCRAM-SHA-256\0\0"), &password(), &only, VERIFIED).await;
    // Never without TLS.
    let clear = Known {
        is_tls: false,
        ..STRANGER
    };
    let (heard, result) = answered(&asks()[1].1, &password(), &only, clear).await;
    assert!(heard.is_empty() && matches!(result, Err(ConnectError::CleartextRefused)));
}

/// What PostgreSQL 19 with `ssl_sni = on` does with a client that asks for no name, or one it does
/// not know.
#[tokio::test]
async fn a_server_that_wants_another_name_is_explained() {
    for (host, alert, words) in [
        ("127.0.0.1", 40, "it was asked for no name"),
        ("localhost", 112, "it knows no such name"),
    ] {
        let address = server(move |mut stream| async move {
            stream.read_exact(&mut [0; 8]).await.unwrap();
            stream.write_all(b"S").await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            stream.write_all(&[21, 3, 3, 0, 2, 2, alert]).await.unwrap();
        })
        .await;
        let target = Target {
            host,
            port: address.port(),
            tls: &tls(SslMode::Require),
            options: &options(),
            version: ProtocolVersion::V3_0,
            parameters: &parameters(),
            credential: &Credential::None,
        };
        let error = connect(target, Instant::now() + Duration::from_secs(20))
            .await
            .unwrap_err()
            .to_string();
        for word in [words, "pg_hosts.conf", "server_tls.server_name"] {
            assert!(error.contains(word), "{error}");
        }
    }
}
