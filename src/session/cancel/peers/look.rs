//! Whether each peer answers now, for people who ask.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::codec::{Answers, Asked, PeerKey, Reply};
use super::line::{Line, described, open};
use super::{Incarnation, Peers};
use crate::wire::startup::CancelRequest;

/// Time limit for a peer's answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// A look that is not older counts for all who ask.
const FRESH: Duration = Duration::from_secs(1);

/// What a peer said at the last look.
#[derive(Debug, Clone)]
pub struct PeerLook {
    pub name: String,
    pub host: String,
    pub port: u16,
    /// It is this router itself.
    pub is_self: bool,
    /// How long the answer took, and the version of the peer protocol; or why there is none.
    pub answer: Result<(Duration, u8), String>,
    /// When it last answered, to whatever question.
    pub seen: Option<Instant>,
}

/// The last look, and when it was.
pub(super) type LastLook = tokio::sync::Mutex<Option<(Instant, Vec<PeerLook>)>>;

impl Peers {
    /// Asks all peers at once. All who ask within a second get the same answers, so that their
    /// number costs the peers nothing.
    pub async fn look(&self) -> Vec<PeerLook> {
        let mut last = self.last_look.lock().await;
        if let Some((at, looks)) = last.as_ref()
            && at.elapsed() < FRESH
        {
            return looks.clone();
        }
        let looks = join_all((0..self.lines.len()).map(|index| self.look_at(index))).await;
        *last = Some((Instant::now(), looks.clone()));
        looks
    }

    async fn look_at(&self, index: usize) -> PeerLook {
        let line = &self.lines[index];
        let began = Instant::now();
        let answer = match timeout(PATIENCE, greet(&self.key, line)).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err("it did not answer in time".to_owned()),
        };
        let now = Instant::now();
        let mut state = self.state();
        if answer.is_ok() {
            state.seen.insert(index, now);
        }
        let peer = line.peer();
        PeerLook {
            name: peer.name.clone(),
            host: peer.host.clone(),
            port: peer.port,
            is_self: matches!(answer, Ok((incarnation, _)) if incarnation == self.incarnation),
            answer: answer.map(|(_, version)| (now - began, version)),
            seen: state.seen.get(&index).copied(),
        }
    }
}

/// Asks for a session that there cannot be: every release answers that it does not have it.
async fn greet(key: &PeerKey, line: &Line) -> Result<(Incarnation, u8), String> {
    let (mut stream, mut asking) = open(key, line.peer()).await.map_err(|error| described(&error))?;
    let nobody = Asked {
        number: 0,
        request: CancelRequest {
            process_id: 0,
            key: Bytes::from_static(&[0; 32]),
        },
    };
    let failed = |error: std::io::Error| described(&error);
    let packet = asking.ask(&[nobody]);
    stream.write_all(&packet).await.map_err(failed)?;
    let mut read = BytesMut::new();
    loop {
        match asking.reply(&mut read).map_err(|fault| fault.to_string())? {
            Some(Reply::Answers(Answers { incarnation, .. })) => {
                return Ok((incarnation, asking.version()));
            }
            Some(Reply::Refused(refusal)) => return Err(refusal.to_string()),
            Some(Reply::Hold { .. }) => return Err("its answer makes no sense".to_owned()),
            None => {}
        }
        if stream.read_buf(&mut read).await.map_err(failed)? == 0 {
            return Err(described(&std::io::ErrorKind::UnexpectedEof.into()));
        }
    }
}
