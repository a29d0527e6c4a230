//! What an idle session costs in memory: the future that its task holds, and the parts of it. Raise
//! a ceiling only where the bytes buy something, and say what.

use std::future::Ready;

use super::arrival::Arrival;
use super::direction::Direction;
use super::pool::session::PooledSession;
use super::record::Record;
use super::registry::{Placement, SessionEntry};
use super::relay::Relay;
use super::{forward, life, tcp};

/// The future that a function returns.
fn future<A, B, F>(_: impl FnOnce(A, B) -> F) -> usize {
    size_of::<F>()
}

fn of_run<'a, R: 'a, F>(_: impl FnOnce(&'a mut R) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn an_idle_session_is_no_larger_than_it_was() {
    let sizes = [
        (
            "a session's task",
            future(life::serve::<Ready<Option<Arrival>>>),
            208,
        ),
        ("its task, mode: tcp", future(tcp::serve), 624),
        ("the relay's future", of_run(<Relay>::run), 80),
        ("the forwarder's future", of_run(<forward::Forward>::run), 24),
        ("Relay", size_of::<Relay>(), 504),
        // 8 bytes for what is left of a transaction whose server connection was lost.
        ("PooledSession", size_of::<PooledSession>(), 912),
        ("the pooled session's future", of_run(<PooledSession>::run), 120),
        ("Direction", size_of::<Direction>(), 48),
        // One for both modes: 8 bytes more than one for each would have.
        ("Record", size_of::<Record>(), 120),
        // 8 bytes for the beginning of a transaction that is measured.
        ("SessionEntry", size_of::<SessionEntry>(), 248),
        ("Placement", size_of::<Placement>(), 192),
    ];
    let grown: Vec<_> = sizes.iter().filter(|(_, size, most)| size > most).collect();
    assert!(grown.is_empty(), "larger than it was, now and before: {grown:?}");
}
