//! The other processes of this router on this host: those that handed their listeners over and
//! finish their sessions, and the one that took them. Clients and operators reach the process that
//! listens now; it asks the others.
//!
//! Each process answers on an abstract Unix socket whose name it draws at its start, so that
//! nothing is left behind however it ends. Guarantees: a process asks a name only if the user
//! listens there that it was given with the name, because another user can take the name of a
//! process that has ended. A process answers the same user, root and the users of such names. One
//! request a connection, one hop. Every wait and every number has a limit ([`codec`]). A process
//! that does not answer is named, so that nobody takes an answer without it as complete.
//!
//! Refuses: to know what a request means; that is for [`Responder`].

mod answering;
pub(crate) mod codec;
pub mod totals;

use std::fmt;
use std::io;
use std::os::unix::net;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::auth::crypto::random;
use crate::wire::startup::CancelRequest;
pub use answering::{Responder, answer};
pub use codec::{Answer, RequestKind};
use codec::{CodecError, Opening};
use totals::{OtherTotals, Totals};

/// Time limit for a session that was found: its turn at the server, the cancel, and the server's
/// hanging up.
const WORK: Duration = Duration::from_mins(2);
/// Processes remembered. Those that have ended are forgotten first, then the oldest.
const MOST: usize = 32;
/// Answers of version 1, a byte each.
const OLD_FOUND: u8 = b'Y';
const OLD_AT_WORK: u8 = b'W';
const OLD_NOT_FOUND: u8 = b'N';
const OLD_BUSY: u8 = b'B';

/// What the other processes know of a cancel request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelAnswer {
    /// One of them has the session, and has done what was to be done.
    Found,
    NotFound,
    /// This process or another one has too many requests.
    Busy,
    /// One of them could not be asked, and no other has the session.
    Unasked,
}

/// Another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Of its socket.
    pub name: String,
    /// Of its user.
    pub uid: u32,
}

/// Why another process did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It has no sessions any more, so there is nothing to ask.
    #[error("it has ended")]
    Ended,
    #[error("it did not answer within {} s", .0.as_secs())]
    Late(Duration),
    #[error("it hung up without an answer")]
    HungUp,
    #[error("it speaks version {0} of the protocol between processes, and this one version {own}", own = codec::VERSION)]
    Version(u8),
    #[error("it has too many requests of this kind")]
    Busy,
    #[error("its release does not support the request")]
    Unsupported,
    #[error("its release does not know the request")]
    UnknownKind,
    #[error("it says: {0}")]
    Refused(String),
    #[error("{0}")]
    Codec(CodecError),
}

impl From<CodecError> for AskError {
    fn from(error: CodecError) -> Self {
        match error {
            CodecError::Io(error) => error.into(),
            error => Self::Codec(error),
        }
    }
}

impl From<io::Error> for AskError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{
            BrokenPipe, ConnectionRefused, ConnectionReset, PermissionDenied, UnexpectedEof,
        };
        match error.kind() {
            // Another user has the name: the process that had it has ended.
            ConnectionRefused | PermissionDenied => Self::Ended,
            UnexpectedEof | ConnectionReset | BrokenPipe => Self::HungUp,
            _ => Self::Codec(error.into()),
        }
    }
}

/// What one other process says.
#[derive(Debug)]
pub struct Heard {
    /// Of its socket.
    name: String,
    /// `None`: it could not be connected to.
    pub process_id: Option<u32>,
    pub answer: Result<Answer, AskError>,
}

impl Heard {
    /// Why the answer of this process is missing, in a sentence.
    pub fn missing(&self, error: &dyn fmt::Display) -> String {
        match self.process_id {
            Some(id) => format!("process {id}: {error}"),
            None => format!("a process: {error}"),
        }
    }
}

/// The other processes.
#[derive(Debug)]
pub struct Generations {
    own: String,
    others: Mutex<Vec<Other>>,
    /// What they said of their sessions.
    totals: OtherTotals,
}

#[derive(Debug)]
struct Other {
    generation: Generation,
    /// The version that the log has named.
    version: Option<u8>,
}

impl Default for Generations {
    fn default() -> Self {
        let own = u128::from_be_bytes(random());
        Self {
            own: format!("trunkline-{own:032x}"),
            others: Mutex::default(),
            totals: OtherTotals::default(),
        }
    }
}

impl Generations {
    /// The name under which this process answers.
    pub fn own(&self) -> &str {
        &self.own
    }

    /// This process and the others that live, the oldest first.
    pub fn family(&self) -> Vec<Generation> {
        self.forget_ended();
        let mut family = self.all();
        family.push(Generation {
            name: self.own.clone(),
            uid: geteuid().as_raw(),
        });
        family
    }

    /// Asks these as well from now on.
    pub fn add(&self, generations: impl IntoIterator<Item = Generation>) {
        let mut others = self.others();
        for generation in generations {
            let is_known = others
                .iter()
                .any(|other| other.generation.name == generation.name);
            if generation.name != self.own && !is_known {
                others.push(Other {
                    generation,
                    version: None,
                });
            }
        }
        let is_full = others.len() > MOST;
        drop(others);
        if is_full {
            self.forget_ended();
            let mut others = self.others();
            let excess = others.len().saturating_sub(MOST);
            if excess > 0 {
                warn!(
                    processes = excess,
                    "too many processes of this router live; cancel requests and operators do not reach the oldest"
                );
            }
            others.drain(..excess);
        }
    }

    /// Whether there is no other process.
    pub(super) fn is_alone(&self) -> bool {
        self.others().is_empty()
    }

    /// Asks all other processes at once. Those that have ended are forgotten, and not in the
    /// result.
    pub async fn ask(&self, kind: RequestKind, body: &[u8]) -> Vec<Heard> {
        self.ask_these(self.all(), kind, body).await
    }

    async fn ask_these(&self, these: Vec<Generation>, kind: RequestKind, body: &[u8]) -> Vec<Heard> {
        let mut asked = JoinSet::new();
        for generation in these {
            let body = body.to_vec();
            asked.spawn(async move {
                let heard = ask_one(&generation, kind, &body).await;
                (generation, heard)
            });
        }
        let mut all = Vec::new();
        while let Some(joined) = asked.join_next().await {
            // A panic was logged; the process counts as silent.
            let Ok((generation, heard)) = joined else { continue };
            if self.note(&generation, &heard) {
                all.push(heard);
            }
        }
        // In the order of their starts, as far as numbers of processes tell.
        all.sort_by_key(|heard| heard.process_id);
        all
    }

    /// Asks all of them at once whether one has the session. The caller limits how many requests do
    /// so at a time.
    pub async fn ask_cancel(&self, request: &CancelRequest) -> CancelAnswer {
        let mut asked = JoinSet::new();
        for generation in self.all() {
            let request = request.clone();
            asked.spawn(async move {
                let heard = ask_one_cancel(&generation, &request).await;
                (generation, heard)
            });
        }
        let mut all = CancelAnswer::NotFound;
        while let Some(joined) = asked.join_next().await {
            let Ok((generation, (heard, is_old))) = joined else {
                continue;
            };
            if is_old {
                self.name_version(&generation, 1);
            }
            match &heard.answer {
                Ok(Answer::Done(_)) => return CancelAnswer::Found,
                Ok(Answer::Busy) | Err(AskError::Busy) => all = CancelAnswer::Busy,
                Err(error) if all == CancelAnswer::NotFound && !matches!(error, AskError::Ended) => {
                    all = CancelAnswer::Unasked;
                }
                _ => {}
            }
            self.note(&generation, &heard);
        }
        all
    }

    /// Asks the others for their totals, and returns a sentence for each process whose totals are
    /// missing. Concurrent callers share one round of questions, and there is at most one round a
    /// second.
    pub async fn refresh_totals(&self) -> Vec<String> {
        if self.is_alone() {
            // Some that had sessions may have ended since.
            self.totals.keep_only(&[]);
            return Vec::new();
        }
        let Some(round) = self.totals.begin_round().await else {
            return self.totals.missing();
        };
        self.forget_ended();
        let these = self.all();
        self.totals.keep_only(&these);
        let due: Vec<Generation> = these
            .into_iter()
            .filter(|generation| self.totals.is_due(&generation.name))
            .collect();
        for heard in self.ask_these(due, RequestKind::Totals, b"{}").await {
            let said: Result<Totals, String> = match &heard.answer {
                Ok(Answer::Done(body)) => {
                    serde_json::from_slice(body).map_err(|_| heard.missing(&"its totals make no sense"))
                }
                Ok(_) => Err(heard.missing(&"it has no totals")),
                Err(error) => Err(heard.missing(error)),
            };
            self.totals.take(&heard.name, said);
        }
        drop(round);
        self.totals.missing()
    }

    pub fn totals(&self) -> &OtherTotals {
        &self.totals
    }

    /// Logs what is new about a process, and forgets one that has ended. `false`: it has.
    fn note(&self, generation: &Generation, heard: &Heard) -> bool {
        match &heard.answer {
            // No other process can have its name.
            Err(AskError::Ended) => {
                self.others().retain(|other| other.generation != *generation);
                false
            }
            Err(AskError::Version(version)) => {
                self.name_version(generation, *version);
                true
            }
            Err(error) => {
                debug!(name = generation.name, process_id = heard.process_id, %error, "another process of this router cannot be asked");
                true
            }
            Ok(_) => true,
        }
    }

    /// Once for each process.
    fn name_version(&self, generation: &Generation, version: u8) {
        let mut others = self.others();
        let other = others
            .iter_mut()
            .find(|other| other.generation == *generation && other.version != Some(version));
        let Some(other) = other else { return };
        other.version = Some(version);
        drop(others);
        info!(
            name = generation.name,
            version,
            own_version = codec::VERSION,
            "another process of this router speaks another version of the protocol between processes: operators do not \
             reach its sessions through this process"
        );
    }

    /// Nobody answers by their names any more.
    fn forget_ended(&self) {
        // A connection that is made and closed is a question that was not asked.
        let ended = |other: &Other| {
            knock(&other.generation).is_err_and(|error| matches!(AskError::from(error), AskError::Ended))
        };
        self.others().retain(|other| !ended(other));
    }

    /// Whether this process answers the process at the other end.
    fn knows(&self, stream: &UnixStream) -> bool {
        let own = geteuid().as_raw();
        stream.peer_cred().is_ok_and(|peer| {
            let uid = peer.uid();
            uid == own || uid == 0 || self.others().iter().any(|other| other.generation.uid == uid)
        })
    }

    fn all(&self) -> Vec<Generation> {
        self.others()
            .iter()
            .map(|other| other.generation.clone())
            .collect()
    }

    fn others(&self) -> MutexGuard<'_, Vec<Other>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects, or fails, at once.
fn knock(generation: &Generation) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A full queue is an error then, not a wait.
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(format!("\0{}", generation.name))?)?;
    Ok(socket)
}

/// A connection to a process, and the process's number.
fn connect(generation: &Generation) -> io::Result<(UnixStream, Option<u32>)> {
    let stream = UnixStream::from_std(net::UnixStream::from(knock(generation)?))?;
    let peer = stream.peer_cred()?;
    if peer.uid() != generation.uid {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok((stream, peer.pid().and_then(|id| u32::try_from(id).ok())))
}

async fn ask_one(generation: &Generation, kind: RequestKind, body: &[u8]) -> Heard {
    let mut process_id = None;
    let limit = kind.limits().time;
    let asking = converse(generation, kind, body, &mut process_id);
    let mut answer = timeout(limit, asking).await.unwrap_or(Err(AskError::Late(limit)));
    if matches!(answer, Err(AskError::HungUp)) && is_old(generation).await {
        answer = Err(AskError::Version(1));
    }
    Heard {
        name: generation.name.clone(),
        process_id,
        answer,
    }
}

async fn converse(
    generation: &Generation,
    kind: RequestKind,
    body: &[u8],
    process_id: &mut Option<u32>,
) -> Result<Answer, AskError> {
    let (mut stream, number) = connect(generation)?;
    *process_id = number;
    begin(&mut stream, kind, body).await?;
    said(codec::read_answer(&mut stream, kind).await?)
}

/// Asks, and reads the other one's hello.
async fn begin(stream: &mut UnixStream, kind: RequestKind, body: &[u8]) -> Result<(), AskError> {
    stream.write_all(&codec::request(kind, body)?).await?;
    match codec::read_opening(stream).await? {
        Opening::Hello(codec::VERSION) => Ok(()),
        Opening::Hello(version) => Err(AskError::Version(version)),
        Opening::Old { .. } => Err(CodecError::Foreign.into()),
    }
}

fn said(answer: Answer) -> Result<Answer, AskError> {
    match answer {
        Answer::Done(_) | Answer::AtWork | Answer::NotFound => Ok(answer),
        Answer::Busy => Err(AskError::Busy),
        Answer::Unsupported => Err(AskError::Unsupported),
        Answer::UnknownKind => Err(AskError::UnknownKind),
        Answer::Malformed => Err(CodecError::Malformed.into()),
        Answer::Refused(why) => Err(AskError::Refused(why)),
    }
}

/// Asks a process for a cancel, in its version; whether that is version 1.
async fn ask_one_cancel(generation: &Generation, request: &CancelRequest) -> (Heard, bool) {
    let mut process_id = None;
    let mut answer = ask_found(generation, request, &mut process_id).await;
    let mut is_old = false;
    if matches!(answer, Err(AskError::HungUp)) {
        let again = ask_old(generation, request).await;
        is_old = again.is_ok();
        answer = again.or(answer);
    }
    let heard = Heard {
        name: generation.name.clone(),
        process_id,
        answer,
    };
    (heard, is_old)
}

async fn ask_found(
    generation: &Generation,
    request: &CancelRequest,
    process_id: &mut Option<u32>,
) -> Result<Answer, AskError> {
    let kind = RequestKind::Cancel;
    let limit = kind.limits().time;
    let (mut stream, number) = connect(generation)?;
    *process_id = number;
    let asked = async {
        begin(&mut stream, kind, &codec::cancel_body(request)).await?;
        said(codec::read_answer(&mut stream, kind).await?)
    };
    let answer = timeout(limit, asked)
        .await
        .unwrap_or(Err(AskError::Late(limit)))?;
    if answer != Answer::AtWork {
        return Ok(answer);
    }
    let done = timeout(WORK, codec::read_answer(&mut stream, kind)).await;
    said(done.map_err(|_| AskError::Late(WORK))??)
}

/// A question of version 1, and its answer.
async fn ask_old(generation: &Generation, request: &CancelRequest) -> Result<Answer, AskError> {
    let limit = RequestKind::Cancel.limits().time;
    let (mut stream, _) = connect(generation)?;
    let length = u16::try_from(request.key.len()).map_err(|_| CodecError::Malformed)?;
    let mut question = request.process_id.to_be_bytes().to_vec();
    question.extend(length.to_be_bytes());
    question.extend(&request.key);
    let asked = async {
        stream.write_all(&question).await?;
        stream.read_u8().await
    };
    let mut answer = timeout(limit, asked).await.map_err(|_| AskError::Late(limit))??;
    if answer == OLD_AT_WORK {
        let done = timeout(WORK, stream.read_u8()).await;
        answer = done.map_err(|_| AskError::Late(WORK))??;
    }
    match answer {
        OLD_FOUND => Ok(Answer::Done(Vec::new())),
        OLD_NOT_FOUND => Ok(Answer::NotFound),
        OLD_BUSY => Ok(Answer::Busy),
        _ => Err(CodecError::Malformed.into()),
    }
}

/// Whether a process that hung up at the hello answers in version 1. It is asked about a key that
/// no session has.
async fn is_old(generation: &Generation) -> bool {
    let nobody = CancelRequest {
        process_id: 0,
        key: bytes::Bytes::copy_from_slice(&random::<32>()),
    };
    ask_old(generation, &nobody).await.is_ok()
}

#[cfg(test)]
mod tests;
