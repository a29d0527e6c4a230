//! Attach: give a session a server connection of a verified role whose session state equals the client's. One path,
//! for login now and for whatever takes a connection away later.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tracing::debug;

use super::linger;
use super::queue::{self, QueueError, Waiting};
use super::quota::Share;
use super::registry::{Registry, Seat};
use super::whereabouts::{self, Question};
use crate::auth::credentials::{ServerLogin, ServerProof};
use crate::backend::Unverified;
use crate::backend::role_audit;
use crate::backend::{
    self, ClientReply, ConnectError, Credential, SeenRole, ServerConnection, Suspicion, Target,
    TlsSettingsError,
};
use crate::cluster::sight::Whereabouts;
use crate::cluster::snapshot::{Leader, MemberName, NoLeader, Snapshot};
use crate::cluster::{ClusterHandle, Evidence};
use crate::config::{Access, OnLeader, Route, Source};
use crate::routing::{self, Candidate, GrantedRole, Preference};
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::{MAX_LENGTH, ProtocolVersion, Replication};

/// Candidates tried for one attach; more would only make the client wait longer for the same news.
pub(super) const MOST_TRIES: u32 = 4;

/// What a connection must have in common with the client. Settings confirmed later and prepared statements join the
/// startup parameters here when sessions can be rebuilt elsewhere.
#[derive(Debug, Clone)]
pub(super) struct SessionState {
    pub version: ProtocolVersion,
    /// In order, `user` and `database` among them.
    pub parameters: Vec<(Bytes, Bytes)>,
}

impl SessionState {
    /// With what the router adds, a startup packet may be longer than a server reads. It would close without a word, as
    /// if it were the server's fault, and so would every other.
    pub(super) fn fits(&self) -> bool {
        let parameters = self.parameters.iter();
        let length: usize = parameters.map(|(name, value)| name.len() + value.len() + 2).sum();
        // Length and version before them, a terminator behind them.
        length + 9 <= MAX_LENGTH
    }
}

/// A server connection whose role was verified on that very connection. Only [`attach`] makes one.
#[derive(Debug)]
pub(super) struct Attachable {
    pub connection: ServerConnection,
    pub member: MemberName,
    pub seat: Seat,
    pub granted: GrantedRole,
    /// Where it was seen to be.
    pub whereabouts: Whereabouts,
    /// How long it waited for a place on a server.
    pub queued: Duration,
    _verified: (),
}

/// Why there is no server for the session.
#[derive(Debug)]
pub(super) enum AttachError {
    /// No server would read the startup packet.
    TooLong(ErrorReply),
    /// Nobody may serve the route, or everybody who may could not be reached.
    NoCandidate(ErrorReply),
    /// Everybody who may is full, and waiting came to nothing.
    Busy(&'static str, ErrorReply),
    /// It waited for a place, and the router closes.
    Closing,
    /// It waited for a place, and left.
    HungUp,
    /// A server refused, and its own words go to the client.
    Server {
        frame: Bytes,
        /// The same for the log.
        said: String,
        member: MemberName,
    },
    /// A server refused for a reason that we put into words.
    Refused { reply: ErrorReply, member: MemberName },
    /// A server refused what the operator gave us to log in with. What it `said` is for the log: there it names a role
    /// and a method that are not the client's.
    Credential {
        reply: ErrorReply,
        said: String,
        member: MemberName,
    },
}

/// What the sessions of one route ask for.
#[derive(Debug)]
pub(super) struct AttachRequest<'a> {
    pub cluster: &'a ClusterHandle,
    pub registry: &'a Arc<Registry>,
    pub route: &'a Route,
    pub state: &'a SessionState,
    pub login: &'a ServerLogin,
    pub replication: Replication,
    /// `None` on a Unix socket.
    pub client: Option<IpAddr>,
    pub waiting: &'a Waiting<'a>,
    /// Counted for as long as a server is busy with it.
    pub share: &'a Arc<Share>,
}

/// Is there anybody who may serve the route? Asked before authentication, so that a balancer's check sees an error.
pub(super) fn anybody(cluster: &ClusterHandle, route: &Route) -> Result<(), ErrorReply> {
    let snapshot = cluster.snapshot();
    routing::anybody(&snapshot, route).map_err(|choice| unavailable(&snapshot, route, &choice))
}

/// Who may serve a session of `client` now, in order of preference. A turn of the route is used up.
pub(super) fn choose(
    cluster: &ClusterHandle,
    registry: &Registry,
    route: &Route,
    client: Option<IpAddr>,
    snapshot: &Snapshot,
) -> routing::Choice {
    let config = cluster.config();
    registry.with_turns(&route.name, |turns| {
        let mut asked = routing::Asked {
            client,
            zone: config.placement.zone.as_deref(),
            listed: match &config.source {
                Source::Servers(servers) => servers,
                Source::Patroni(_) => &[],
            },
            sessions_on: &|member| registry.load(&config.name, member),
            is_backing_off: &|member| registry.backoff.is_backing_off(&config.name, member),
            chance: &mut routing::chance,
            turns,
        };
        routing::candidates(snapshot, route, &mut asked)
    })
}

/// The candidates, with a seat on the first of them that is not full; none where there is no candidate.
pub(super) struct Chosen {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) choice: routing::Choice,
    seat: Option<Seat>,
}

/// `None`: every candidate is full.
pub(super) fn take(
    cluster: &ClusterHandle,
    registry: &Arc<Registry>,
    route: &Route,
    client: Option<IpAddr>,
) -> Option<Chosen> {
    let snapshot = cluster.snapshot();
    let choice = choose(cluster, registry, route, client, &snapshot);
    let config = cluster.config();
    let seats = |candidate: &Candidate| {
        registry.reserve_within(&config.name, &candidate.member, config.max_connections)
    };
    let seat = choice.candidates.iter().find_map(seats);
    (seat.is_some() || choice.candidates.is_empty()).then_some(Chosen {
        snapshot,
        choice,
        seat,
    })
}

impl Chosen {
    /// The candidates to be tried, in order, each with a seat; who is full is passed over.
    pub(super) fn seated<'a>(
        &'a mut self,
        cluster: &'a ClusterHandle,
        registry: &'a Arc<Registry>,
    ) -> impl Iterator<Item = (&'a Candidate, Seat)> {
        let config = cluster.config();
        let Self { choice, seat, .. } = self;
        let seated = choice.candidates.iter().filter_map(move |candidate| {
            // The first seat is taken already; who comes before it is full.
            let seat = match seat.take_if(|seat| *seat.member() == candidate.member) {
                Some(seat) => seat,
                None if seat.is_some() => return None,
                None => registry.reserve_within(&config.name, &candidate.member, config.max_connections)?,
            };
            Some((candidate, seat))
        });
        seated.take(MOST_TRIES as usize)
    }
}

fn busy(request: &AttachRequest<'_>, fault: QueueError) -> AttachError {
    let label = match fault {
        QueueError::HungUp => return AttachError::HungUp,
        QueueError::Closing => return AttachError::Closing,
        QueueError::Full => "queue_full",
        QueueError::Timeout => "queue_timeout",
    };
    AttachError::Busy(
        label,
        queue::busy(&request.cluster.config(), request.route, fault),
    )
}

pub(super) fn unavailable(snapshot: &Snapshot, route: &Route, choice: &routing::Choice) -> ErrorReply {
    let (message, hint) = routing::unavailable(snapshot, route, choice);
    ErrorReply::fatal(SqlState::CANNOT_CONNECT_NOW, message).hint(hint)
}

/// Tries the candidates in order until one is connected, logged into and verified. No byte of the client's has been
/// forwarded before, so the next one may always be tried.
pub(super) async fn attach(request: &AttachRequest<'_>) -> Result<Attachable, AttachError> {
    let AttachRequest {
        cluster,
        registry,
        route,
        ..
    } = *request;
    if !request.state.fits() {
        return Err(AttachError::TooLong(
            ErrorReply::fatal(SqlState::PROGRAM_LIMIT_EXCEEDED, "startup packet too long").hint(format!(
                "With what the connection manager adds, it may have {MAX_LENGTH} bytes; give fewer or shorter parameters."
            )),
        ));
    }
    let attempt = || take(cluster, registry, route, request.client);
    let (mut chosen, queued) = match request.waiting.until(attempt).await {
        Ok(done) => done,
        Err(fault) => return Err(busy(request, fault)),
    };
    let config = cluster.config();
    let (name, options) = (&config.name, &config.server);
    let give_up = Instant::now() + options.connect_timeout * MOST_TRIES;
    let credential = credential(request.login);
    let mut last = None;
    for (candidate, seat) in chosen.seated(cluster, registry) {
        registry.backoff.trying(name, &candidate.member);
        let deadline = give_up.min(Instant::now() + options.connect_timeout);
        let tls = match &request.login.with {
            ServerProof::Certificate(pair) => match cluster.tls().with_certificate(pair) {
                Ok(tls) => tls,
                Err(error) => return Err(unusable(&candidate.member, &error)),
            },
            _ => cluster.tls(),
        };
        let target = Target {
            host: &candidate.host,
            port: candidate.port,
            tls: &tls,
            options,
            version: request.state.version,
            parameters: &request.state.parameters,
            credential: &credential,
        };
        let mut left = None;
        let connected = backend::connect_leaving(target, deadline, &mut left).await;
        let question = Question {
            cluster,
            candidate,
            replication: request.replication,
            begun: Instant::now(),
            deadline,
        };
        let error = match connected {
            Ok(connection) => match verify(&question, route, connection).await {
                Ok((connection, granted, whereabouts)) => {
                    registry.backoff.answered(name, &candidate.member);
                    return Ok(Attachable {
                        connection,
                        member: candidate.member.clone(),
                        seat,
                        granted,
                        whereabouts,
                        queued,
                        _verified: (),
                    });
                }
                Err(why) => {
                    registry.backoff.answered(name, &candidate.member);
                    debug!(member = %candidate.member, why = %why.0, "passed over");
                    last = Some(not_verified(&candidate.member, why));
                    continue;
                }
            },
            Err(error) => error,
        };
        if let Some(server) = left {
            // Its process may wait for a lock, or sleep, and hold a place there.
            let held = (seat, Arc::clone(request.share));
            let closing = request.waiting.closing;
            linger::hold(server.into_tcp(), options.keepalive.is_some(), closing, held);
        }
        let has_certificate = matches!(request.login.with, ServerProof::Certificate(_));
        report(cluster, registry, &candidate.member, &error, has_certificate);
        let refusal = refusal(request.login, &candidate.member, &error);
        if !error.is_temporary_or_elsewhere() {
            return Err(refusal);
        }
        last = Some(refusal);
    }
    Err(last
        .unwrap_or_else(|| AttachError::NoCandidate(unavailable(&chosen.snapshot, route, &chosen.choice))))
}

fn credential(login: &ServerLogin) -> Credential {
    match &login.with {
        ServerProof::Key(key) => Credential::ClientKey(key.clone()),
        ServerProof::Password(password) => Credential::Password(password.clone()),
        ServerProof::Md5(hash) => Credential::Md5(hash.clone()),
        ServerProof::Certificate(_) | ServerProof::Nothing => Credential::None,
    }
}

/// It was tried when the file was read, so this does not happen.
fn unusable(member: &MemberName, error: &TlsSettingsError) -> AttachError {
    AttachError::Refused {
        reply: ErrorReply::fatal(SqlState::CANNOT_CONNECT_NOW, error.to_string())
            .hint("The connection manager's operator has to mend auth.server_credentials."),
        member: member.clone(),
    }
}

/// What others should know of a failed attempt: nothing that a client can cause for itself, except that a probe should
/// look (docs/security.md). `has_certificate`: it had a certificate of the user's own, which TLS may have failed by.
pub(super) fn report(
    cluster: &ClusterHandle,
    registry: &Registry,
    member: &MemberName,
    error: &ConnectError,
    has_certificate: bool,
) {
    debug!(%member, %error, "no connection");
    let config = cluster.config();
    let name = &config.name;
    let suspicion = match error.suspicion() {
        Suspicion::Likely if has_certificate => Suspicion::Possible,
        suspicion => suspicion,
    };
    match suspicion {
        // Whether others would be answered, this host being out of something, is not known.
        Suspicion::None if matches!(error, ConnectError::LocalResources { .. }) => {}
        Suspicion::None => registry.backoff.answered(name, member),
        Suspicion::Possible => {
            // It took the connection; what came of the login may be this client's affair.
            registry.backoff.answered(name, member);
            cluster.evidence(member, Evidence::ConnectFailed);
        }
        Suspicion::Likely => {
            registry.backoff.failed(name, member);
            cluster.evidence(member, Evidence::ConnectFailed);
        }
        Suspicion::Certain => {
            registry.backoff.failed(name, member);
            cluster.evidence(member, Evidence::ConnectRefused);
        }
    }
}

fn refusal(login: &ServerLogin, member: &MemberName, error: &ConnectError) -> AttachError {
    if let ConnectError::Server(server) = error
        && login.is_operators
        && server.code.starts_with("28")
        && server.hba_line.is_none()
    {
        let message =
            format!("server \"{member}\" does not accept the connection manager's login for this user");
        return AttachError::Credential {
            reply: ErrorReply::fatal(SqlState::INVALID_AUTHORIZATION, message).hint(
                "The operator of the connection manager has to correct the credential for this user \
                       (auth.server_credentials); its log has the details.",
            ),
            said: server.to_string(),
            member: member.clone(),
        };
    }
    match error.client_reply(member.as_str()) {
        ClientReply::Verbatim(frame) => AttachError::Server {
            frame,
            said: error.to_string(),
            member: member.clone(),
        },
        ClientReply::Own(reply) => AttachError::Refused {
            reply,
            member: member.clone(),
        },
    }
}

fn not_verified(member: &MemberName, Unverified(why, hint): Unverified) -> AttachError {
    AttachError::Refused {
        reply: ErrorReply::fatal(SqlState::CANNOT_CONNECT_NOW, format!("server \"{member}\" {why}"))
            .hint(hint),
        member: member.clone(),
    }
}

/// Promise 1: writable on this very connection, of this cluster and on the leader's timeline, and named now. Promise 2: a
/// standby of this cluster, or the leader where the route puts up with that; `candidate` says as which of them it was
/// chosen.
async fn verify(
    question: &Question<'_>,
    route: &Route,
    mut connection: ServerConnection,
) -> Result<(ServerConnection, GrantedRole, Whereabouts), Unverified> {
    let Question {
        cluster, candidate, ..
    } = *question;
    let member = &candidate.member;
    let role = match connection.role {
        SeenRole::Unknown => ask_role(&mut connection, cluster.config().server.connect_timeout).await,
        client_address => client_address,
    };
    match (candidate.reason == Preference::Leader, role) {
        (true, SeenRole::Writable) => {
            let whereabouts = whereabouts::confirm(question, &mut connection).await?;
            let granted = match (route.access, route.read_only_on_leader) {
                (Access::ReadWrite, _) => GrantedRole::ReadWrite,
                (Access::ReadOnly, OnLeader::Unenforced) => GrantedRole::Unenforced,
                // `refused` does not come here; if it did, nothing less would do.
                (Access::ReadOnly, OnLeader::Enforced | OnLeader::Refused) => {
                    role_audit::writes_nothing(&mut connection, question.deadline).await?;
                    GrantedRole::Enforced
                }
            };
            // The leader may have changed while we were logging in.
            let snapshot = cluster.snapshot();
            match &snapshot.leader {
                Leader::Verified { member: leader, .. }
                | Leader::None(NoLeader::Full { member: leader, .. })
                    if leader == member =>
                {
                    Ok((connection, granted, whereabouts))
                }
                Leader::Verified { .. } | Leader::None(_) => Err("is no longer the verified leader".into()),
            }
        }
        (false, SeenRole::Standby) => {
            let whereabouts = whereabouts::confirm(question, &mut connection).await?;
            Ok((connection, GrantedRole::ReadOnly, whereabouts))
        }
        (true, SeenRole::Standby) => {
            cluster.evidence(member, Evidence::Demoted);
            Err("does not accept writes".into())
        }
        (false, SeenRole::Writable) => {
            cluster.evidence(member, Evidence::Promoted);
            Err("is not a standby".into())
        }
        (_, SeenRole::Unknown) => Err("did not say whether it is in recovery".into()),
    }
}

/// For servers that do not report `in_hot_standby` (before PostgreSQL 14).
async fn ask_role(connection: &mut ServerConnection, timeout: Duration) -> SeenRole {
    let deadline = Instant::now() + timeout;
    let rows =
        backend::query::simple_query(connection, "SELECT pg_catalog.pg_is_in_recovery()", 1, deadline).await;
    match rows
        .ok()
        .and_then(|rows| rows.into_iter().next())
        .and_then(|row| row.into_iter().next())
        .flatten()
        .as_deref()
    {
        Some(b"t") => SeenRole::Standby,
        Some(b"f") => SeenRole::Writable,
        _ => SeenRole::Unknown,
    }
}
