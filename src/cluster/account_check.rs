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

use super::service_account::{Purpose, ServiceAccount};
use super::snapshot::{AdminState, Leader, Member, Snapshot};
use super::{ClusterHandle, PreparedCluster};
use crate::backend::{ConnectError, TlsClient};
use crate::config::{self, Secret};
use crate::wire::sqlstate::SqlState;

/// How many members are asked while there is no leader.
const MOST: usize = 8;
/// How long a reload waits for them.
const PATIENCE: Duration = Duration::from_secs(5);

impl ClusterHandle {
    /// Whether new connections log in as this account says.
    pub fn has_account(&self, account: &config::ServiceAccount) -> bool {
        let tasks = self.shared.tasks.load();
        let own = &tasks.account.config.service_account;
        (&own.user, &own.dbname) == (&account.user, &account.dbname)
            && tasks.account.has_password(account.password.as_ref())
    }

    /// Why the servers refuse `password` for the service account. `None` for the password in use,
    /// and as long as nothing is known of it: nobody answers within `connect_timeout` (at most 5
    /// s), or with another error, as for a wrong password with `ldap` and `pam`.
    ///
    /// The leader decides. While there is none, it takes one member that refuses the password and
    /// none that accepts it, since a replica may not have replayed the change of the role.
    pub async fn refusal(&self, password: Option<&Secret>, tls: Arc<TlsClient>) -> Option<String> {
        if self.shared.tasks.load().account.has_password(password) {
            return None;
        }
        let account = ServiceAccount::new(self.config(), tls);
        account.replace_password(password);
        refusal(&account, &self.snapshot()).await
    }
}

impl PreparedCluster {
    /// As [`ClusterHandle::refusal`], of the account of these tasks.
    pub async fn refusal(&self) -> Option<String> {
        let snapshot = Arc::clone(&self.tasks.own.borrow());
        refusal(&self.tasks.account, &snapshot).await
    }
}

async fn refusal(account: &ServiceAccount, snapshot: &Snapshot) -> Option<String> {
    let deadline = Instant::now() + account.config.server.connect_timeout.min(PATIENCE);
    let mut logins: FuturesUnordered<_> = asked(snapshot)
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
    refused.map(|(member, error)| told(&account.config, &member.name.to_string(), &error))
}

/// The leader, or those that are up, and then the others. A member in maintenance is left alone.
fn asked(snapshot: &Snapshot) -> Vec<&Member> {
    if let Leader::Verified { member, .. } = &snapshot.leader {
        return snapshot.member(member).into_iter().collect();
    }
    let is_asked = |member: &&Member| !member.host.is_empty() && member.admin != AdminState::Maint;
    let mut asked: Vec<&Member> = snapshot.members.iter().filter(is_asked).collect();
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
