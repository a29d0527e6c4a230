//! Before a reload puts another password of the service account in service: does a server accept
//! it?
//!
//! Connections of probes and look-ups outlive a change of the password. A wrong one would show only
//! when they are opened again: after the next restart of a server, as a member that is down.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::ClusterHandle;
use super::service_account::{Purpose, ServiceAccount};
use super::snapshot::{AdminState, Member};
use crate::backend::{ConnectError, TlsClient};
use crate::config::{self, Secret};
use crate::wire::sqlstate::SqlState;

/// How many members are asked. A change of a role reaches all of them.
const MOST: usize = 8;
/// How long a reload waits for them.
const PATIENCE: Duration = Duration::from_secs(5);

impl ClusterHandle {
    /// What a member says that refuses `password` for the service account, if none accepts it.
    /// `None` also for the password in use, and if no member answers within `connect_timeout` (at
    /// most 5 s): nothing is known of the password then. A replica may not have replayed the change
    /// of the role yet, so one member that accepts it is enough.
    pub async fn refusal(&self, password: Option<&Secret>, tls: Arc<TlsClient>) -> Option<String> {
        if self.shared.tasks.load().account.has_password(password) {
            return None;
        }
        let config = self.config();
        let account = ServiceAccount::new(Arc::clone(&config), tls);
        account.replace_password(password);
        let deadline = Instant::now() + config.server.connect_timeout.min(PATIENCE);
        let snapshot = self.snapshot();
        let mut logins: FuturesUnordered<_> = asked(&snapshot.members)
            .into_iter()
            .map(|member| {
                let login = account.connect(&member.host, member.port, Purpose::Probe, deadline);
                async move { (member, login.await) }
            })
            .collect();
        let mut refused: Option<(&Member, ConnectError)> = None;
        while let Some((member, login)) = logins.next().await {
            match login {
                Ok(connection) => {
                    connection.close().await;
                    return None;
                }
                // Always the same one is told, so that a fault that stays is the same fault.
                Err(error)
                    if is_of_password(&error)
                        && refused.as_ref().is_none_or(|(first, _)| member.name < first.name) =>
                {
                    refused = Some((member, error));
                }
                Err(_) => {}
            }
        }
        refused.map(|(member, error)| told(&config, &member.name.to_string(), &error))
    }
}

/// Those that are up come first. A member in maintenance is left alone.
fn asked(members: &[Member]) -> Vec<&Member> {
    let mut asked: Vec<&Member> = members
        .iter()
        .filter(|member| !member.host.is_empty() && member.admin != AdminState::Maint)
        .collect();
    asked.sort_by_key(|member| !member.health.up);
    asked.truncate(MOST);
    asked
}

/// Whether another password could have been accepted.
fn is_of_password(error: &ConnectError) -> bool {
    match error {
        ConnectError::Server(error) => error.code == SqlState::INVALID_PASSWORD,
        ConnectError::NoCredential { .. } => true,
        _ => false,
    }
}

fn told(config: &config::Cluster, member: &str, error: &ConnectError) -> String {
    let user = &config.service_account.user;
    match error {
        ConnectError::NoCredential { .. } => {
            format!("{member} refuses {user} without a password: {error} (name a `password_file`)")
        }
        _ => format!(
            "{member} refuses the new password: {error} (set it there first, as with `\\password {user}` in psql on the \
             leader, or correct the file)"
        ),
    }
}
