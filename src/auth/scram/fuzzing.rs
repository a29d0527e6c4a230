//! Both sides of an exchange against any bytes. Nonces are fixed, so that messages with a good
//! proof can be among the seeds.

#![allow(clippy::unwrap_used, reason = "of what is made here")]

use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};

use super::{
    ClientBinding, ClientExchange, ClientSecret, Lookup, MECHANISM, MECHANISM_PLUS, MockSecret, Nonce,
    ServerExchange, Verifier,
};
use crate::config::Secret;
use crate::fuzzing::choice;

const PASSWORD: &[u8] = b"pencil";
const SALT: &[u8] = b"0123456789abcdef";
const END_POINT: &[u8] = &[7; 32];

fn verifier() -> &'static Arc<Verifier> {
    static VERIFIER: OnceLock<Arc<Verifier>> = OnceLock::new();
    VERIFIER.get_or_init(|| {
        let iterations = NonZeroU32::new(2).unwrap();
        Arc::new(Verifier::from_password(PASSWORD, SALT, iterations))
    })
}

/// The first byte chooses side, mechanism and what the other one knows; the rest are two messages
/// with a zero byte between them.
pub(crate) fn run(data: &[u8]) {
    let (which, data) = choice(data);
    let mut messages = data.splitn(2, |&byte| byte == 0);
    let first = messages.next().unwrap_or_default();
    let last = messages.next().unwrap_or_default();
    if which & 1 == 0 {
        server(which, first, last);
    } else {
        client(which, first, last);
    }
}

fn server(which: u8, first: &[u8], last: &[u8]) {
    let mock = MockSecret::new(None);
    let binding = (which & 2 != 0).then_some(END_POINT);
    let lookup = Lookup {
        user: b"app",
        verifier: (which & 4 == 0).then(|| Arc::clone(verifier())),
        mock: &mock,
    };
    let mechanism = if which & 8 == 0 { MECHANISM } else { MECHANISM_PLUS };
    let exchange = ServerExchange::start(lookup, binding, Nonce::fixed("server"));
    let Ok((exchange, answer)) = exchange.client_first(mechanism.as_bytes(), first) else {
        return;
    };
    assert!(answer.starts_with(b"r="));
    let is_bound = exchange.is_bound();
    assert_eq!(is_bound, mechanism == MECHANISM_PLUS);
    if let Ok((_, key)) = exchange.client_final(last) {
        // Only with the password, and over the connection that it is bound to.
        assert!(which & 4 == 0 && (!is_bound || binding.is_some()));
        assert!(key.verifier.is_of(PASSWORD));
    }
}

fn client(which: u8, first: &[u8], last: &[u8]) {
    // The iterations that a server asks for are computed, up to a limit that is too slow here.
    let is_dear = first
        .windows(4)
        .any(|digits| digits.iter().all(u8::is_ascii_digit));
    let secret = if which & 2 == 0 && !is_dear {
        ClientSecret::Password(Secret::new(PASSWORD))
    } else {
        ClientSecret::Key(super::ClientKey {
            key: zeroize::Zeroizing::new([1; 32]),
            verifier: Arc::clone(verifier()),
        })
    };
    let mut exchange = ClientExchange::with_nonce(secret, "", Nonce::fixed("client"));
    if which & 4 != 0 {
        exchange.binding = ClientBinding::EndPoint(END_POINT.to_vec());
    }
    let (exchange, _) = exchange.first();
    if let Ok((exchange, answer)) = exchange.server_first(first) {
        assert!(answer.starts_with(b"c="));
        let is_bound = exchange.is_bound();
        assert_eq!(is_bound, which & 4 != 0);
        if let Ok(proven) = exchange.server_final(last) {
            assert_eq!(proven.is_bound(), is_bound);
        }
    }
}
