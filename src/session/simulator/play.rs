//! Plays a conversation up to a position, where a test then does something else.

use super::conversation::{Conversation, Known, Side, Step, conversations};
use super::{Simulation, short};
use crate::cluster::snapshot::MemberName;
use crate::routing::EndReason;
use crate::session::end::Reason;

/// A message of a conversation, and how much of it was sent.
pub(super) type Position = (usize, usize);

impl Simulation {
    pub(super) async fn say(&mut self, side: Side, bytes: &[u8]) {
        let peer = match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        };
        assert_eq!(peer.say(bytes), bytes.len(), "there is room");
        self.settle().await;
    }

    /// Plays a conversation up to a position. Whatever is said is heard at once, and nothing else.
    pub(super) async fn play(&mut self, conversation: &Conversation, position: Position) {
        let (step, sent) = position;
        for Step { side, bytes, .. } in &conversation.steps[..step] {
            self.say(*side, bytes).await;
        }
        if sent > 0 {
            let Step { side, bytes, .. } = &conversation.steps[step];
            self.say(*side, &bytes[..sent]).await;
        }
        self.has_forwarded(conversation, position);
    }

    pub(super) fn has_forwarded(&self, conversation: &Conversation, position: Position) {
        let at = || format!("{} at {position:?}: {:?}", conversation.name, self.end);
        let [asked, said] = [Side::Client, Side::Server].map(|side| conversation.said(side, position));
        assert!(
            self.server.heard == asked,
            "the server hears the client: {}",
            at()
        );
        assert!(self.client.heard == said, "the client hears the server: {}", at());
    }

    /// What the client has heard from there on.
    pub(super) fn words_after(&self, conversation: &Conversation, position: Position) -> String {
        let said = conversation.said(Side::Server, position);
        let words = self.client.heard.strip_prefix(&said[..]);
        short(words.expect("what the server said comes first"))
    }
}

pub(super) fn demoted() -> Reason {
    Reason::Role(EndReason::Demoted(MemberName::new("db1")))
}

/// Every position of every conversation, with a session of its own that has come there.
pub(super) async fn at_every_position<F>(session: impl Fn() -> Simulation, mut then: F)
where
    F: AsyncFnMut(&mut Simulation, &Conversation, Position, Known),
{
    for conversation in conversations() {
        for position in conversation.positions() {
            let mut session = session();
            session.play(&conversation, position).await;
            assert!(session.end.is_none(), "{} at {position:?}", conversation.name);
            let known = conversation.known_at(position);
            then(&mut session, &conversation, position, known).await;
        }
    }
}
