//! Names in a `ClientHello` that are not DNS names.
//!
//! libpq sends the value of `host=` as SNI, unless it looks like an address. rustls ends the
//! handshake if that is not a DNS name (`db-.internal`, `a..b`), and libpq's `sslmode=prefer` then
//! goes on in clear text. OpenSSL, and so PostgreSQL, treats it as an unknown name.
//!
//! rustls has no setting for this. So [`HelloStream`] gives the extension another number in what
//! rustls reads: it then sees a client that asks for no name. Both sides hash the handshake, and
//! the client's hash is over what it sent: the hash functions of [`server_provider`] put the number
//! back before they hash. No byte of the handshake is trusted more than before, and a change made
//! by an attacker in between still changes the hash.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};

use rustls::crypto::hash::{Context as HashContext, Hash, HashAlgorithm, Output};
use rustls::crypto::{CipherSuiteCommon, CryptoProvider, aws_lc_rs};
use rustls::pki_types::ServerName;
use rustls::{SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const SERVER_NAME: [u8; 2] = [0, 0];
/// Of the numbers for private use (RFC 8446, section 11): no client sends it. One that does cannot
/// finish its handshake.
const HIDDEN: [u8; 2] = [0xff, 0x74];

const CLIENT_HELLO: u8 = 1;
const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
const RECORD_HEADER: usize = 5;
/// The longest payload of a record in clear.
const LONGEST_RECORD: usize = 1 << 14;
/// The longest `ClientHello` that is looked at, as in rustls.
const LONGEST_HELLO: usize = 0xffff;
/// Records may be short; a longer hello than this is left to rustls.
const MOST_BYTES: usize = LONGEST_HELLO * 2;

/// A client's socket, on its way into rustls. Everything but invalid names passes through
/// unchanged.
#[derive(Debug)]
pub struct HelloStream<S> {
    inner: S,
    state: State,
}

#[derive(Debug)]
enum State {
    /// A hello is awaited. Next: `Giving`.
    Awaiting {
        raw: Vec<u8>,
        is_second: bool,
    },
    /// What was held back goes to rustls. Next: `Awaiting` the second hello, or `Passing`.
    Giving {
        raw: Vec<u8>,
        at: usize,
        /// What has come of the second hello, where there may be one.
        next: Option<Vec<u8>>,
    },
    Passing,
}

impl<S> HelloStream<S> {
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            state: State::Awaiting {
                raw: Vec::new(),
                is_second: false,
            },
        }
    }

    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HelloStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.state {
                State::Passing => return Pin::new(&mut this.inner).poll_read(cx, buf),
                State::Giving { raw, at, next } => {
                    let count = buf.remaining().min(raw.len() - *at);
                    buf.put_slice(&raw[*at..*at + count]);
                    *at += count;
                    if *at == raw.len() {
                        this.state = match next.take() {
                            Some(raw) => State::Awaiting { raw, is_second: true },
                            None => State::Passing,
                        };
                    }
                    if count > 0 || buf.remaining() == 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
                State::Awaiting { raw, is_second } => {
                    let mut found = look(raw, *is_second);
                    if found == Look::More && raw.len() <= MOST_BYTES {
                        let mut chunk = [0; 2048];
                        let mut chunk = ReadBuf::new(&mut chunk);
                        ready!(Pin::new(&mut this.inner).poll_read(cx, &mut chunk))?;
                        raw.extend_from_slice(chunk.filled());
                        if !chunk.filled().is_empty() {
                            continue;
                        }
                        // The end: what has come is passed on as it is, and rustls reads the end
                        // once more.
                        found = Look::Leave;
                    }
                    let mut raw = std::mem::take(raw);
                    let mut next = None;
                    if let Look::Hide { places, end } = found {
                        for (at, byte) in places.into_iter().zip(HIDDEN) {
                            raw[at] = byte;
                        }
                        next = (!*is_second).then(|| raw.split_off(end));
                    }
                    this.state = State::Giving { raw, at: 0, next };
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HelloStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// What the bytes so far show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    More,
    Leave,
    /// An invalid name: where the extension's number stands, byte by byte (records may part it),
    /// and where the hello's last record ends.
    Hide {
        places: [usize; 2],
        end: usize,
    },
}

fn look(raw: &[u8], is_second: bool) -> Look {
    // Handshake bytes, and where each stands.
    let (mut message, mut places) = (Vec::new(), Vec::new());
    let mut at = 0;
    loop {
        let Some(header) = raw.get(at..at + RECORD_HEADER) else {
            // Anything that begins differently is passed on at once.
            return match raw.get(at) {
                Some(&HANDSHAKE) | None => Look::More,
                Some(&CHANGE_CIPHER_SPEC) if is_second => Look::More,
                Some(_) => Look::Leave,
            };
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let is_skipped = is_second && header[0] == CHANGE_CIPHER_SPEC;
        if (header[0] != HANDSHAKE && !is_skipped) || header[1] != 3 || length == 0 || length > LONGEST_RECORD
        {
            return Look::Leave;
        }
        let start = at + RECORD_HEADER;
        let here = &raw[start..raw.len().min(start + length)];
        if !is_skipped {
            message.extend_from_slice(here);
            places.extend(start..start + here.len());
        }
        match whole_hello(&message) {
            Whole::No => return Look::Leave,
            Whole::Yes(hello) => {
                let Some(extension) = find(hello, SERVER_NAME) else {
                    return Look::Leave;
                };
                return if names_nobody(extension.body) && find(hello, HIDDEN).is_none() {
                    Look::Hide {
                        places: [places[extension.at], places[extension.at + 1]],
                        end: start + here.len(),
                    }
                } else {
                    Look::Leave
                };
            }
            Whole::NotYet if here.len() < length => return Look::More,
            Whole::NotYet => at = start + length,
        }
    }
}

enum Whole<'a> {
    Yes(&'a [u8]),
    NotYet,
    /// Another message, or too long a one.
    No,
}

fn whole_hello(message: &[u8]) -> Whole<'_> {
    match *message {
        [CLIENT_HELLO, a, b, c, ..] => {
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            match message.get(..4 + length) {
                _ if length > LONGEST_HELLO => Whole::No,
                Some(hello) => Whole::Yes(hello),
                None => Whole::NotYet,
            }
        }
        [] | [CLIENT_HELLO, ..] => Whole::NotYet,
        _ => Whole::No,
    }
}

/// An extension of a hello.
struct Extension<'a> {
    /// Where its number stands in the message.
    at: usize,
    body: &'a [u8],
}

/// The first extension of this number; `None` also where the hello is malformed before it.
fn find(hello: &[u8], number: [u8; 2]) -> Option<Extension<'_>> {
    // Message header, version, random.
    let mut at = 4 + 2 + 32;
    at += 1 + usize::from(*hello.get(at)?);
    at += 2 + usize::from(u16_at(hello, at)?);
    at += 1 + usize::from(*hello.get(at)?);
    let end = at + 2 + usize::from(u16_at(hello, at)?);
    at += 2;
    while at < end {
        let length = usize::from(u16_at(hello, at + 2)?);
        let body = hello.get(at + 4..at + 4 + length)?;
        if hello[at..at + 2] == number {
            return Some(Extension { at, body });
        }
        at += 4 + length;
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let [a, b] = bytes.get(at..at + 2)? else {
        return None;
    };
    Some(u16::from_be_bytes([*a, *b]))
}

/// A list of one name that rustls would refuse. Anything else that is malformed is left to rustls.
fn names_nobody(body: &[u8]) -> bool {
    let Some(list) = body.get(2..) else {
        return false;
    };
    if u16_at(body, 0).map(usize::from) != Some(list.len()) {
        return false;
    }
    match list {
        // One of another kind than `host_name`.
        [0, a, b, name @ ..] => {
            let length = usize::from(u16::from_be_bytes([*a, *b]));
            length == name.len() && length > 0 && ServerName::try_from(name).is_err()
        }
        [kind, _, ..] => *kind != 0,
        _ => false,
    }
}

/// Handshake bytes that begin with a hello whose name is hidden, as the client sent them; `None`
/// for others.
pub(super) fn restored(data: &[u8]) -> Option<Vec<u8>> {
    let Whole::Yes(hello) = whole_hello(data) else {
        return None;
    };
    let at = find(hello, HIDDEN)?.at;
    if find(hello, SERVER_NAME).is_some() {
        return None;
    }
    let mut original = data.to_vec();
    original[at..at + 2].copy_from_slice(&SERVER_NAME);
    Some(original)
}

/// A hash function for transcripts, which hashes what the client sent.
struct Transcript(&'static dyn Hash);

struct TranscriptContext(Box<dyn HashContext>);

impl Hash for Transcript {
    fn start(&self) -> Box<dyn HashContext> {
        Box::new(TranscriptContext(self.0.start()))
    }

    fn hash(&self, data: &[u8]) -> Output {
        match restored(data) {
            Some(original) => self.0.hash(&original),
            None => self.0.hash(data),
        }
    }

    fn output_len(&self) -> usize {
        self.0.output_len()
    }

    fn algorithm(&self) -> HashAlgorithm {
        self.0.algorithm()
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

impl HashContext for TranscriptContext {
    fn fork_finish(&self) -> Output {
        self.0.fork_finish()
    }

    fn fork(&self) -> Box<dyn HashContext> {
        Box::new(Self(self.0.fork()))
    }

    fn finish(self: Box<Self>) -> Output {
        self.0.finish()
    }

    /// rustls gives a message, or the messages from the first on, at a time.
    fn update(&mut self, data: &[u8]) {
        match restored(data) {
            Some(original) => self.0.update(&original),
            None => self.0.update(data),
        }
    }
}

/// rustls wants cipher suites with a static lifetime: they are made once.
static SUITES: LazyLock<Vec<SupportedCipherSuite>> = LazyLock::new(|| {
    let suites = aws_lc_rs::default_provider().cipher_suites;
    suites.into_iter().map(hashing_the_original).collect()
});

fn hashing_the_original(suite: SupportedCipherSuite) -> SupportedCipherSuite {
    let common = |common: &CipherSuiteCommon| CipherSuiteCommon {
        suite: common.suite,
        hash_provider: Box::leak(Box::new(Transcript(common.hash_provider))),
        confidentiality_limit: common.confidentiality_limit,
    };
    match suite {
        SupportedCipherSuite::Tls12(suite) => {
            SupportedCipherSuite::Tls12(Box::leak(Box::new(Tls12CipherSuite {
                common: common(&suite.common),
                prf_provider: suite.prf_provider,
                kx: suite.kx,
                sign: suite.sign,
                aead_alg: suite.aead_alg,
            })))
        }
        SupportedCipherSuite::Tls13(suite) => {
            SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
                common: common(&suite.common),
                hkdf_provider: suite.hkdf_provider,
                aead_alg: suite.aead_alg,
                quic: suite.quic,
            })))
        }
    }
}

/// For servers whose clients' bytes come through a [`HelloStream`].
pub(crate) fn server_provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: SUITES.clone(),
        ..aws_lc_rs::default_provider()
    })
}
