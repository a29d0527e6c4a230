//! The client's side of a session. It lives as long as the session, whichever server connection
//! serves it.

use super::direction::{Direction, Look};
use super::registry::{Ticket, Traffic};
use crate::frontend::ClientStream;
use crate::wire::observe::ClientObserver;

/// See the module.
#[derive(Debug)]
pub struct Client<S = ClientStream> {
    pub(super) stream: S,
    pub(super) observer: ClientObserver,
    /// Answers that the client has not taken yet.
    pub(super) answers: Direction,
    /// While the client is not read.
    pub(super) look: Look,
    /// The session is in the registry until its log line is written.
    pub(super) ticket: Ticket,
    pub(super) traffic: Traffic,
}

impl<S> Client<S> {
    /// A client that has just logged in.
    pub fn new(stream: S, ticket: Ticket) -> Self {
        Self {
            stream,
            observer: ClientObserver::default(),
            answers: Direction::default(),
            look: Look::default(),
            ticket,
            traffic: Traffic::default(),
        }
    }

    /// Nothing has been read of a message that is not whole, and nothing waits for the client.
    pub(super) fn is_at_boundary(&self) -> bool {
        self.observer.at_boundary() && self.answers.rest.is_empty()
    }
}
