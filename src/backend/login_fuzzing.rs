//! The login at a server that sends any bytes.

use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use futures_util::FutureExt;

use super::super::connection::Credential;
use super::super::query;
use super::{LoginRequest, login};
use crate::auth::md5::Md5Hash;
use crate::config::{ChannelBinding, Secret};
use crate::fuzzing::choice;
use crate::wire::startup::ProtocolVersion;

pub(crate) fn run(data: &[u8]) {
    let (which, data) = choice(data);
    query::parse_row(data);
    let credential = match which & 3 {
        0 => Credential::None,
        1 => Credential::Md5(Md5Hash::of(b"secret", b"app")),
        _ => Credential::Password(Secret::new(&b"secret"[..])),
    };
    let request = LoginRequest {
        version: if which & 4 == 0 {
            ProtocolVersion::V3_0
        } else {
            ProtocolVersion::V3_2
        },
        parameters: &[(Bytes::from_static(b"user"), Bytes::from_static(b"app"))],
        credential: &credential,
        is_tls: which & 8 != 0,
        channel_binding: ChannelBinding::Prefer,
        end_point: (which & 8 != 0).then(|| vec![7; 32]),
        require_auth: &crate::config::RequireAuth::Safe,
        is_verified: true,
        is_local: false,
        has_answered: AtomicBool::new(false),
    };
    let mut stream = tokio::io::join(data, tokio::io::sink());
    // Everything is there at once.
    match login(&mut stream, &request)
        .now_or_never()
        .expect("nothing to wait for")
    {
        Ok(logged_in) => {
            assert!(logged_in.version <= request.version);
            assert!(logged_in.leftover.len() <= data.len());
        }
        Err(failure) => assert!(!failure.error.to_string().is_empty()),
    }
}
