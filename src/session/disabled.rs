//! Routes that an operator has disabled at this router: they get no new sessions.
//!
//! The names stay over a reload, whatever the configuration says of the route meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// The names of the disabled routes. Reading takes no lock.
#[derive(Debug, Default)]
pub struct DisabledRoutes(ArcSwap<BTreeSet<String>>);

impl DisabledRoutes {
    pub fn replace(&self, names: BTreeSet<String>) {
        self.0.store(Arc::new(names));
    }

    pub fn has(&self, route: &str) -> bool {
        self.0.load().contains(route)
    }

    /// In the order of their names.
    pub fn names(&self) -> Arc<BTreeSet<String>> {
        self.0.load_full()
    }

    /// Whether the route may have a new session.
    ///
    /// # Errors
    /// It is disabled: 57P03. Clients that know several routers try the next one after this code.
    pub(super) fn admits(&self, route: &str) -> Result<(), ErrorReply> {
        if !self.has(route) {
            return Ok(());
        }
        let text = format!("the route {route} is disabled");
        Err(ErrorReply::fatal(SqlState::CANNOT_CONNECT_NOW, text).hint(format!(
            "An operator has disabled it at this router. The operator can run `trunkline enable {route}`; sessions that \
             exist go on."
        )))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_a_disabled_route_refuses_and_names_the_command() {
        let routes = DisabledRoutes::default();
        assert!(routes.admits("rw").is_ok());
        routes.replace(["rw".to_owned()].into());
        let reply = routes.admits("rw").unwrap_err();
        assert_eq!(reply.code, SqlState::CANNOT_CONNECT_NOW);
        assert_eq!(reply.message, "the route rw is disabled");
        assert!(reply.hint.unwrap().contains("`trunkline enable rw`"));
        assert!(routes.admits("ro").is_ok());
        routes.replace(BTreeSet::new());
        assert!(routes.admits("rw").is_ok());
    }
}
