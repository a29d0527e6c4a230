//! An order to stop the server of a member: who gave it, and for how long it holds clients.

use std::fmt;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::wire::text::is_unsafe;

/// The longest name of a router, and of an operator, in bytes.
pub const MAX_ORDERED_BY: usize = 100;

/// Who ordered that clients are held. Both come from outside: they are printable and short.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderedBy {
    /// Its name among this router's peers, or the name of its host.
    pub router: String,
    /// Where the order came from: an address, or a user of the console.
    pub operator: String,
}

impl OrderedBy {
    pub fn new(router: &str, operator: &str) -> Self {
        Self {
            router: short(router),
            operator: short(operator),
        }
    }

    /// For those who may not know the operator. `None`: nothing else is known.
    pub fn without_operator(mut self) -> Option<Self> {
        self.operator.clear();
        Some(self).filter(|by| !by.router.is_empty())
    }
}

fn short(text: &str) -> String {
    let text = &text[..text.floor_char_boundary(MAX_ORDERED_BY)];
    let shown = |letter: char| if is_unsafe(letter) { '?' } else { letter };
    // A control character that is replaced is not longer than before.
    text.chars().map(shown).collect()
}

impl fmt::Display for OrderedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.router.as_str(), self.operator.as_str()) {
            ("", operator) => f.write_str(operator),
            (router, "") => f.write_str(router),
            (router, operator) => write!(f, "{router} ({operator})"),
        }
    }
}

/// The server of a member is about to be stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopOrder {
    /// By a router's switchover; otherwise `before-stop` ordered it.
    pub is_switchover: bool,
    /// `None`: the release of the router that ordered it does not say.
    pub by: Option<OrderedBy>,
    /// Since when this process knows of it.
    pub since: Instant,
    /// When it is over at the latest; `None` as for `by`.
    pub ends: Option<Instant>,
}

impl StopOrder {
    /// One of which nothing else is known.
    pub fn unnamed(since: Instant) -> Self {
        Self {
            is_switchover: false,
            by: None,
            since,
            ends: None,
        }
    }

    /// The command that gave it.
    pub fn command(&self) -> &'static str {
        if self.is_switchover {
            "switchover"
        } else {
            "before-stop"
        }
    }
}

/// Completes "is about to be stopped: ". Everybody may read it, so it does not name the operator.
impl fmt::Display for StopOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.by {
            Some(OrderedBy { router, .. }) if !router.is_empty() => {
                write!(f, "ordered by {} of {router}", self.command())
            }
            _ => write!(f, "ordered by {}", self.command()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_says_who_gave_it() {
        let mut order = StopOrder::unnamed(Instant::now());
        assert_eq!(order.to_string(), "ordered by before-stop");
        order.is_switchover = true;
        order.by = Some(OrderedBy::new("router2", "admin from 10.0.0.9:4711\n"));
        assert_eq!(order.to_string(), "ordered by switchover of router2");
        let by = order.by.map(|by| by.to_string());
        assert_eq!(by.as_deref(), Some("router2 (admin from 10.0.0.9:4711?)"));
        let everybody = OrderedBy::new("router2", "admin").without_operator();
        assert_eq!(everybody, Some(OrderedBy::new("router2", "")));
        assert_eq!(OrderedBy::new("", "admin").without_operator(), None);
        let long = OrderedBy::new(&"ß".repeat(80), "");
        assert_eq!((long.router.len(), long.to_string()), (100, "ß".repeat(50)));
    }
}
