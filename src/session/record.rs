//! What the log says about a connection: the one line of a session, and the reasons why other
//! connections were refused.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::arrival::login_throttle;
use super::attach::{AttachError, NoServer};
use super::candidates::{NoPass, Wanted};
use super::end::End;
use super::listener_settings::ListenerSettings;
use super::pool::session::LeaseTotals;
use super::pool::wait::Refusal;
use super::registry::{self, Origin};
use super::{Shared, close};
use crate::cluster::snapshot::MemberName;
use crate::frontend::login::LoginError;
use crate::frontend::opening::OpeningError;
use crate::frontend::{ClientAddress, ClientStream, RefuseReason};
use crate::routing::GrantedRole;
use crate::wire::message::ErrorReply;
use crate::wire::proxy::ProxiedTls;
use crate::wire::startup::StartupPacket;
use crate::wire::text::Escaped;

/// What the log line at the end of a session needs.
pub(super) struct Record {
    pub(super) origin: Arc<Origin>,
    pub(super) listener: Arc<ListenerSettings>,
    pub(super) member: Option<MemberName>,
    pub(super) granted: Option<GrantedRole>,
    /// `None` with `mode: tcp`, where the router does not see the login.
    pub(super) login: Option<LoginRecord>,
    pub(super) times: Times,
}

/// What the log line says of a login.
pub(super) struct LoginRecord {
    /// TLS that ended at a balancer, by the balancer's header.
    pub(super) proxied_tls: Option<Box<ProxiedTls>>,
    /// The login was bound to the TLS connection.
    pub(super) is_bound: bool,
}

impl Record {
    pub(super) fn client(&self) -> &registry::Client {
        &self.origin.client
    }

    /// Logs that an authenticated client may not use what it asks for.
    pub(super) fn refused(&self, shared: &Shared, reason: &str) {
        let client = self.client();
        if let Some(skipped) = shared.failures.admit(client.address.ip(), Some(&client.user)) {
            let (user, database) = (Escaped(&client.user), Escaped(&client.database));
            let via = client.address.via().map(tracing::field::display);
            warn!(client = %client.address, via, listener = %self.listener.name, %user, %database, %reason, skipped, "login refused");
        }
    }
}

/// Time spent in each step of the login.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Times {
    pub(super) tls: Duration,
    pub(super) auth: Duration,
    pub(super) queued: Duration,
    pub(super) connect: Duration,
}

pub(super) fn note_opening(
    shared: &Shared,
    listener: &ListenerSettings,
    client: ClientAddress,
    error: &OpeningError,
) {
    if let Some(reply) = error.reply() {
        listener.gate.counts().router_error(reply.code);
    }
    if error.is_refusal() {
        shared.metrics.refuse(RefuseReason::Opening);
    }
    if error.is_offence() {
        login_throttle::garbage(shared, client);
    }
    if error.is_noise() {
        debug!(%client, listener = %listener.name, fault = %error, "connection ended before its startup packet");
        return;
    }
    if let Some(skipped) = shared.failures.admit(client.ip(), None) {
        let via = client.via().map(tracing::field::display);
        warn!(%client, via, listener = %listener.name, fault = %error, skipped, "connection refused");
    }
}

/// How long a log line waits for the reason why a user has no password.
const STANDING_WITHIN: Duration = Duration::from_secs(1);

/// Refuses a login: sends the client the error, counts it and logs it, unless the client just hung
/// up.
pub(super) async fn refuse(
    shared: &Shared,
    listener: &ListenerSettings,
    stream: &mut ClientStream,
    packet: &StartupPacket,
    client: ClientAddress,
    error: LoginError,
) {
    let Some(refused) = error.reason() else {
        debug!(%client, listener = %listener.name, "the client hung up during the login");
        return;
    };
    shared.metrics.refuse(refused);
    login_throttle::failed(shared, listener, packet, client, &error);
    if error.is_of_no_password() {
        // The answer goes first, so that it takes no longer for such a user than for any other.
        send_error(shared, listener, stream, &error, packet).await;
        let skipped = shared.failures.admit(client.ip(), Some(&packet.user));
        let Some(skipped) = skipped else { return };
        let standing = listener
            .cluster
            .standing(&packet.user, Instant::now() + STANDING_WITHIN);
        let reason = match standing.await {
            Some(standing) => format!("password authentication failed: {standing}"),
            None => error.to_string(),
        };
        return log_refusal(listener, packet, client, &reason, skipped);
    }
    let (user, database) = (Escaped(&packet.user), Escaped(&packet.database));
    if matches!(error, LoginError::Unavailable(_) | LoginError::Disabled(_)) {
        // The log lines about the topology, or of the operator's command, say why, once; balancers
        // ask every second.
        debug!(%client, listener = %listener.name, %user, %database, fault = %error, "login refused");
    } else if let Some(skipped) = shared.failures.admit(client.ip(), Some(&packet.user)) {
        log_refusal(listener, packet, client, &error.to_string(), skipped);
    }
    send_error(shared, listener, stream, &error, packet).await;
}

/// The hint for an operator who meets the cluster's outage at the console.
const CONSOLE_WITHOUT_SERVERS: &str = "The servers know the users of the console, too, unless auth.users_file names a file. \
     Until they answer, `trunkline status` on the router's host says what is wrong.";

async fn send_error(
    shared: &Shared,
    listener: &ListenerSettings,
    stream: &mut ClientStream,
    error: &LoginError,
    packet: &StartupPacket,
) {
    let Some(mut reply) = error.reply(&packet.user) else {
        return;
    };
    let console = shared.console.load();
    let is_at_console = console
        .as_ref()
        .as_ref()
        .is_some_and(|console| console.is_meant(packet));
    if is_at_console && matches!(error, LoginError::Lookup(_) | LoginError::Unconfirmed) {
        reply = reply.hint(CONSOLE_WITHOUT_SERVERS);
    }
    let mut out = BytesMut::new();
    listener.gate.counts().error(&mut out, &reply);
    close::say(stream, &out).await;
}

fn log_refusal(
    listener: &ListenerSettings,
    packet: &StartupPacket,
    client: ClientAddress,
    reason: &str,
    skipped: u64,
) {
    let (user, database) = (Escaped(&packet.user), Escaped(&packet.database));
    let via = client.via().map(tracing::field::display);
    warn!(%client, via, listener = %listener.name, %user, %database, %reason, skipped, "login refused");
}

/// Counts and logs why a session got no server.
pub(super) fn note_attach(shared: &Shared, record: &Record, error: &NoServer, wanted: &Wanted<'_>) {
    // With the hint: if a server's pg_hba.conf lacks a line, the hint is that line.
    let with_hint = |reply: &ErrorReply| match &reply.hint {
        Some(hint) => format!("{}. {hint}", reply.message),
        None => reply.message.clone(),
    };
    let error = match error {
        NoServer::Pass(NoPass::Closing) => return shared.metrics.refuse(RefuseReason::Shutdown),
        NoServer::Pass(NoPass::HungUp) => {
            debug!(client = %record.client().address, "the client hung up while it waited for a server");
            return;
        }
        NoServer::Pass(NoPass::Queue(error)) => Err(*error),
        NoServer::Attach(error) => Ok(error),
    };
    let title = match error.ok().and_then(AttachError::refused_by) {
        Some(member) => format!("{member} refused the login"),
        None => "no server for the session".to_owned(),
    };
    let (reason, member, text) = match error {
        Err(queue) => (queue.reason(), None, with_hint(&wanted.busy(queue))),
        Ok(AttachError::TooLong(reply)) => (RefuseReason::TooLong, None, with_hint(reply)),
        Ok(AttachError::NoCandidate(reply)) => (RefuseReason::NoCandidate, None, with_hint(reply)),
        Ok(AttachError::Server { log_text, member, .. }) => {
            (RefuseReason::ServerRefused, Some(member), log_text.clone())
        }
        Ok(AttachError::Refused { reply, member, .. }) => {
            (RefuseReason::ServerConnect, Some(member), with_hint(reply))
        }
        Ok(AttachError::Credential { log_text, member, .. }) => (
            RefuseReason::ServerRefused,
            Some(member),
            format!(
                "the server refused a credential of auth.server_credentials or auth.users_file: {log_text}"
            ),
        ),
    };
    shared.metrics.refuse(reason);
    if let Some(skipped) = shared
        .failures
        .admit(record.client().address.ip(), Some(&record.client().user))
    {
        warn!(
            client = %record.client().address,
            via = record.client().address.via().map(tracing::field::display),
            user = %Escaped(&record.client().user),
            database = %Escaped(&record.client().database),
            route = %record.listener.route.name,
            member = member.map_or("-", |member| member.as_str()),
            // As a quoted string: parts of it may come from a server.
            reason = ?text.chars().take(1000).collect::<String>(),
            skipped,
            "{title}"
        );
    }
}

/// Counts and logs why a session with a pool got no server connection at its login.
pub(super) fn note_refusal(shared: &Shared, record: &Record, refusal: &Refusal, reply: &ErrorReply) {
    shared.metrics.refuse(refusal.reason());
    let client = record.client();
    if let Some(skipped) = shared.failures.admit(client.address.ip(), Some(&client.user)) {
        warn!(
            client = %client.address,
            via = client.address.via().map(tracing::field::display),
            user = %Escaped(&client.user),
            database = %Escaped(&client.database),
            route = %record.listener.route.name,
            // As a quoted string: parts of it may come from a server.
            reason = ?reply.message.chars().take(1000).collect::<String>(),
            hint = reply.hint.as_deref(),
            skipped,
            "no server connection for the session"
        );
    }
}

/// The value of `access` in a session's log line.
fn access_label(granted: GrantedRole) -> &'static str {
    match granted {
        GrantedRole::ReadWrite => "read-write",
        GrantedRole::ReadOnly => "read-only",
        GrantedRole::Unenforced => "unenforced",
        GrantedRole::Enforced => "enforced",
    }
}

/// A duration in milliseconds, as the log shows it.
struct Millis(Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}", self.0.as_secs_f64() * 1e3)
    }
}

/// Writes the one log line of a session. `leases`: of one with a pool.
pub(super) fn log_end(end: &End, record: &Record, traffic: registry::Traffic, leases: Option<LeaseTotals>) {
    let client = record.client();
    let login = record.login.as_ref();
    // A field that a session of its mode does not have is left out.
    macro_rules! line {
        ($level:ident) => {
            $level!(
                client = %client.address,
                via = client.address.via().map(tracing::field::display),
                listener = login.is_none().then(|| tracing::field::display(&record.listener.name)),
                user = login.map(|_| tracing::field::display(Escaped(&client.user))),
                database = login.map(|_| tracing::field::display(Escaped(&client.database))),
                route = %record.listener.route.name,
                member = record.member.as_ref().map(tracing::field::display),
                mode = login.is_none().then_some("tcp"),
                access = %record.granted.map_or("-", access_label),
                tls = login.map(|_| client.tls.unwrap_or("-")),
                via_tls = login.and_then(|login| login.proxied_tls.as_deref()).map(tracing::field::display),
                channel_binding = login.map(|login| if login.is_bound { "yes" } else { "no" }),
                tls_ms = login.map(|_| tracing::field::display(Millis(record.times.tls))),
                auth_ms = login.map(|_| tracing::field::display(Millis(record.times.auth))),
                queue_ms = login.map(|_| tracing::field::display(Millis(record.times.queued))),
                connect_ms = %Millis(record.times.connect),
                leases = leases.map(|leases| leases.leases),
                waited_ms = leases.map(|leases| tracing::field::display(Millis(leases.waited))),
                total_ms = %Millis(client.since.elapsed()),
                bytes_up = traffic.bytes_up,
                bytes_down = traffic.bytes_down,
                transactions = login.map(|_| traffic.transactions),
                cause = %end,
                "session ended"
            )
        };
    }
    if end.is_abnormal() {
        line!(warn);
    } else {
        line!(info);
    }
}
