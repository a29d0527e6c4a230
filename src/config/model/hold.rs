//! What happens to a session whose server is lost, and to requests while no server can serve them.

use std::time::Duration;

use super::words::words;

words! {
    /// What happens to a session whose server must be left, or was lost.
    pub enum Resume {
        /// It ends, as on a direct connection.
        Off = "off",
        /// The router knows its state, and gives it another server where it can.
        Tracked = "tracked",
    }
}

/// `routes.NAME.hold`: clients wait while no server can serve the route, or an operator has ordered
/// it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// How long after the last server was lost, 0 to 10 min; 0: not at all. `None`: Patroni's `ttl`
    /// and `loop_wait` together, or 40 s where nobody says them.
    pub timeout: Option<Duration>,
    /// How many clients may be held at once, 0 to 1,000,000. `None`: no limit of its own
    /// (`limits.max_clients` counts them).
    pub max_clients: Option<u32>,
    /// The held requests together, in bytes; beyond it they stay unread.
    pub max_bytes: u64,
    /// Clients that log in are held, too.
    pub logins: bool,
}
