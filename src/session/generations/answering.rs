//! The answering side: another process of this router asks.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use super::codec::{self, Answer, CodecError, Opening, RequestKind};
use super::{CancelAnswer, Generations, OLD_AT_WORK, OLD_BUSY, OLD_FOUND, OLD_NOT_FOUND};
use crate::wire::startup::CancelRequest;

/// Time limit for a request to arrive, and for an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// Requests that are being read at the same time.
const MOST_READ: usize = 64;

/// Carries out what another process asks for.
pub trait Responder: Send + Sync + 'static {
    /// `None`: no session of this process has the key. Otherwise the future delivers the request.
    fn cancel(&self, request: &CancelRequest) -> Option<BoxFuture<'static, CancelAnswer>>;

    /// Every other kind of request that is in use. Returns at once.
    fn order(&self, kind: RequestKind, body: &[u8]) -> Answer;
}

/// What all connections share.
struct Desk {
    generations: Arc<Generations>,
    responder: Arc<dyn Responder>,
    reading: Arc<Semaphore>,
    /// In the order of [`RequestKind::ALL`].
    working: [Arc<Semaphore>; RequestKind::ALL.len()],
}

/// Answers the other processes until `stop`, on the runtime it is called on.
///
/// # Errors
/// The socket cannot be made.
pub fn answer(
    generations: &Arc<Generations>,
    responder: Arc<dyn Responder>,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> io::Result<()> {
    let address = SocketAddr::from_abstract_name(generations.own())?;
    let listener = net::UnixListener::bind_addr(&address)?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let desk = Arc::new(Desk::new(Arc::clone(generations), responder));
    let accepting = tasks.clone();
    tasks.spawn(async move {
        loop {
            // Connections wait in the socket's queue meanwhile; the process that asks has a time
            // limit of its own.
            let next = async {
                let permit = Arc::clone(&desk.reading).acquire_owned().await;
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                () = stop.cancelled() => return,
                next = next => next,
            };
            let Ok((stream, _unnamed)) = accepted else {
                // Out of descriptors, most likely: nothing reports when there is one again.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            if !desk.generations.knows(&stream) {
                continue;
            }
            let desk = Arc::clone(&desk);
            // Not ended by `stop`: a cancel may be what ends the last session, and its answer is
            // still to be sent.
            accepting.spawn(async move {
                if let Err(error) = desk.converse(stream, permit.ok()).await {
                    // A process that only looks whether this one lives hangs up at once.
                    debug!(%error, "a request of another process of this router was not answered");
                }
            });
        }
    });
    Ok(())
}

impl Desk {
    fn new(generations: Arc<Generations>, responder: Arc<dyn Responder>) -> Self {
        Self {
            generations,
            responder,
            reading: Arc::new(Semaphore::new(MOST_READ)),
            working: RequestKind::ALL.map(|kind| Arc::new(Semaphore::new(kind.limits().at_once))),
        }
    }

    /// One request and its answer. `reading` is given back when the request has been read.
    async fn converse(
        &self,
        mut stream: UnixStream,
        reading: Option<OwnedSemaphorePermit>,
    ) -> Result<(), CodecError> {
        match within(codec::read_opening(&mut stream)).await? {
            Opening::Hello(codec::VERSION) => {
                let (kind, body) = within(codec::read_request(&mut stream)).await?;
                drop(reading);
                send(&mut stream, &codec::hello()).await?;
                self.reply(&mut stream, kind, &body).await
            }
            Opening::Hello(version) => {
                info!(
                    version,
                    own_version = codec::VERSION,
                    "another process of this router speaks another version of the protocol between processes, and is not \
                     answered"
                );
                send(&mut stream, &codec::hello()).await
            }
            Opening::Old {
                process_id,
                key_length,
            } => {
                let mut key = vec![0; key_length];
                within(async { Ok(stream.read_exact(&mut key).await?) }).await?;
                drop(reading);
                let key = key.into();
                self.reply_old(&mut stream, &CancelRequest { process_id, key })
                    .await
            }
        }
    }

    async fn reply(
        &self,
        stream: &mut UnixStream,
        kind: Result<RequestKind, u8>,
        body: &[u8],
    ) -> Result<(), CodecError> {
        let said = match kind {
            Err(code) => {
                debug!(
                    code,
                    "another process of this router made a request of an unknown kind"
                );
                Answer::UnknownKind
            }
            Ok(RequestKind::Cancel) => return self.reply_cancel(stream, body).await,
            Ok(kind) => match self.place(kind) {
                Some(_place) => self.responder.order(kind, body),
                None => Answer::Busy,
            },
        };
        let kind = kind.ok();
        let bytes = match codec::answer(kind, &said) {
            Ok(bytes) => bytes,
            Err(error) => codec::answer(kind, &Answer::Refused(format!("the answer is too long: {error}")))?,
        };
        send(stream, &bytes).await
    }

    async fn reply_cancel(&self, stream: &mut UnixStream, body: &[u8]) -> Result<(), CodecError> {
        let kind = RequestKind::Cancel;
        let found = match codec::parse_cancel(body) {
            Ok(request) => self.responder.cancel(&request),
            Err(_) => return send(stream, &codec::answer(Some(kind), &Answer::Malformed)?).await,
        };
        let said = match found {
            None => Answer::NotFound,
            Some(delivering) => {
                // Those that were found are limited by the sessions: each has few cancel requests
                // at a time.
                send(stream, &codec::answer(Some(kind), &Answer::AtWork)?).await?;
                match delivering.await {
                    CancelAnswer::Found => Answer::Done(Vec::new()),
                    CancelAnswer::NotFound => Answer::NotFound,
                    CancelAnswer::Busy | CancelAnswer::Unasked => Answer::Busy,
                }
            }
        };
        send(stream, &codec::answer(Some(kind), &said)?).await
    }

    async fn reply_old(&self, stream: &mut UnixStream, request: &CancelRequest) -> Result<(), CodecError> {
        let said = match self.responder.cancel(request) {
            None => OLD_NOT_FOUND,
            Some(delivering) => {
                send(stream, &[OLD_AT_WORK]).await?;
                match delivering.await {
                    CancelAnswer::Found => OLD_FOUND,
                    CancelAnswer::NotFound => OLD_NOT_FOUND,
                    CancelAnswer::Busy | CancelAnswer::Unasked => OLD_BUSY,
                }
            }
        };
        send(stream, &[said]).await
    }

    /// A place among the requests of this kind; given back when dropped.
    fn place(&self, kind: RequestKind) -> Option<OwnedSemaphorePermit> {
        let index = RequestKind::ALL.iter().position(|known| *known == kind)?;
        Arc::clone(&self.working[index]).try_acquire_owned().ok()
    }
}

async fn within<T>(reading: impl Future<Output = Result<T, CodecError>>) -> Result<T, CodecError> {
    timeout(PATIENCE, reading)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn send(stream: &mut UnixStream, bytes: &[u8]) -> Result<(), CodecError> {
    within(async { Ok(stream.write_all(bytes).await?) }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Nothing;

    impl Responder for Nothing {
        fn cancel(&self, _: &CancelRequest) -> Option<BoxFuture<'static, CancelAnswer>> {
            None
        }

        fn order(&self, _: RequestKind, _: &[u8]) -> Answer {
            Answer::NotFound
        }
    }

    #[test]
    fn each_kind_has_so_many_places_of_its_own() {
        let desk = Desk::new(Arc::default(), Arc::new(Nothing));
        for kind in RequestKind::ALL {
            let mut places: Vec<_> = (0..kind.limits().at_once).map(|_| desk.place(kind)).collect();
            assert!(places.iter().all(Option::is_some), "{kind:?}");
            assert!(desk.place(kind).is_none(), "{kind:?}");
            places.pop();
            assert!(desk.place(kind).is_some(), "{kind:?}");
        }
    }
}
