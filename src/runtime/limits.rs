//! The open-file limit.

use tracing::{info, warn};

use crate::config::Limits;

/// Descriptors besides those of sessions: listeners, runtimes, pools, HTTP, log, and a reserve.
const RESERVE: u64 = 256;

/// Raises the soft limit as far as possible, and logs if it is too low for the configuration.
pub(super) fn raise_open_files(limits: &Limits) {
    let raised = rlimit::increase_nofile_limit(u64::MAX);
    let limit = match raised {
        Ok(limit) => limit,
        Err(error) => {
            warn!(%error, "the open-file limit cannot be read or raised");
            return;
        }
    };
    let needed = needed(limits);
    if limits.max_clients == 0 {
        info!(
            open_files = limit,
            clients = limit.saturating_sub(RESERVE) / 2,
            "limits.max_clients is 0: the open-file limit decides"
        );
    } else if limit < needed {
        warn!(
            open_files = limit,
            needed,
            max_clients = limits.max_clients,
            "the open-file limit is too low for limits.max_clients: raise it (LimitNOFILE=, ulimit -Hn) or lower limits.max_clients"
        );
    }
}

/// Two descriptors for each session, one for each pending login, and as many for logins that are
/// delayed after failures.
pub(crate) fn needed(limits: &Limits) -> u64 {
    (u64::from(limits.max_clients) + u64::from(limits.max_pending_logins)) * 2 + RESERVE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_session_takes_two_descriptors() {
        assert_eq!(
            needed(&Limits {
                max_clients: 5000,
                max_pending_logins: 200,
                per_user: 0,
                per_database: 0,
                per_address: 0,
                connection_rate: None,
            }),
            10_656
        );
    }
}
