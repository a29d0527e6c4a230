//! Attach: give a session a server connection of a verified role whose session state equals the client's. One path,
//! for login now and for whatever takes a connection away later.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::arrival::quota::Share;
use super::candidates::{Attempt, Connector, MOST_TRIES, NoPass, Pass, Wanted};
use super::close::closing;
use super::linger;
use super::occupancy::{Occupancy, Seat};
use super::state::SessionState;
use super::whereabouts::{self, Question};
use crate::auth::credentials::{ServerLogin, ServerProof};
use crate::backend::Unverified;
use crate::backend::role_audit;
use crate::backend::{
    self, ClientReply, ConnectError, Credential, SeenRole, ServerConnection, Suspicion, Target,
    TlsSettingsError,
};
use crate::cluster::sight::Whereabouts;
use crate::cluster::snapshot::{Leader, MemberName, NoLeader};
use crate::cluster::{ClusterHandle, Evidence};
use crate::config::{Access, OnLeader, Route};
use crate::routing::{Candidate, GrantedRole, Preference};
use crate::wire::message::{self, ErrorReply};
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::{MAX_LENGTH, Replication};

/// A server connection whose role was verified on that very connection. Only [`attach`] makes one.
#[derive(Debug)]
pub(super) struct Attachable {
    pub connection: ServerConnection,
    pub member: MemberName,
    pub seat: Seat,
    pub granted: GrantedRole,
    /// Where it was seen to be.
    pub whereabouts: Whereabouts,
    _verified: (),
}

/// Why there is no server for the session.
#[derive(Debug)]
pub(super) enum AttachError {
    /// No server would read the startup packet.
    TooLong(ErrorReply),
    /// Nobody may serve the route, or everybody who may could not be reached.
    NoCandidate(ErrorReply),
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

/// Why a session does not begin.
#[derive(Debug)]
pub(super) enum NoServer {
    Pass(NoPass),
    Attach(AttachError),
}

impl From<NoPass> for NoServer {
    fn from(why: NoPass) -> Self {
        Self::Pass(why)
    }
}

impl From<AttachError> for NoServer {
    fn from(error: AttachError) -> Self {
        Self::Attach(error)
    }
}

impl NoServer {
    /// No server would read the startup packet.
    pub(super) fn too_long() -> Self {
        let reply = ErrorReply::fatal(SqlState::PROGRAM_LIMIT_EXCEEDED, "startup packet too long");
        Self::Attach(AttachError::TooLong(reply.hint(format!(
            "With what the router adds, it may have {MAX_LENGTH} bytes; give fewer or shorter parameters."
        ))))
    }

    /// Writes the error that the client gets; `false` where it has left.
    pub(super) fn write(&self, wanted: &Wanted<'_>, out: &mut BytesMut) -> bool {
        match self {
            Self::Pass(NoPass::HungUp) => return false,
            Self::Pass(NoPass::Closing) => message::error(out, &closing()),
            Self::Pass(NoPass::Queue(error)) => message::error(out, &wanted.busy(*error)),
            Self::Attach(AttachError::Server { frame, .. }) => out.extend_from_slice(frame),
            Self::Attach(
                AttachError::TooLong(reply)
                | AttachError::NoCandidate(reply)
                | AttachError::Refused { reply, .. }
                | AttachError::Credential { reply, .. },
            ) => message::error(out, reply),
        }
        true
    }
}

/// What a session needs of a server connection.
#[derive(Debug)]
pub(super) struct AttachRequest<'a> {
    pub cluster: &'a ClusterHandle,
    pub occupancy: &'a Arc<Occupancy>,
    pub route: &'a Route,
    pub state: &'a SessionState,
    pub login: &'a ServerLogin,
    pub replication: Replication,
    /// Counted for as long as a server is busy with it.
    pub share: &'a Arc<Share>,
    /// The router shuts down.
    pub closing: &'a CancellationToken,
}

/// Connects to the candidates of `pass` in order, logs in and verifies, until one serves. It never sees the client.
///
/// # Errors
/// No candidate, or what the last one said.
pub(super) async fn attach(request: &AttachRequest<'_>, mut pass: Pass) -> Result<Attachable, AttachError> {
    let AttachRequest {
        cluster, occupancy, ..
    } = *request;
    let connector = Attacher {
        request,
        credential: credential(request.login),
        give_up: Instant::now() + cluster.config().server.connect_timeout * MOST_TRIES,
    };
    let attached = pass.first_that_serves(occupancy, cluster, &connector).await;
    attached.map_err(|last| last.unwrap_or_else(|| AttachError::NoCandidate(pass.unavailable(request.route))))
}

/// Attaches to one candidate after another, until it gives up.
struct Attacher<'a> {
    request: &'a AttachRequest<'a>,
    credential: Credential,
    give_up: Instant,
}

impl Connector for Attacher<'_> {
    type Served = Attachable;
    type Error = AttachError;

    async fn attempt(&self, candidate: &Candidate, seat: Seat) -> Attempt<Attachable, AttachError> {
        let request = self.request;
        let AttachRequest {
            cluster, occupancy, ..
        } = *request;
        let config = cluster.config();
        let (name, options, member) = (&config.name, &config.server, &candidate.member);
        let deadline = self.give_up.min(Instant::now() + options.connect_timeout);
        let tls = match &request.login.with {
            ServerProof::Certificate(pair) => match cluster.tls().with_certificate(pair) {
                Ok(tls) => tls,
                Err(error) => return Attempt::Stop(unusable(member, &error)),
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
            credential: &self.credential,
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
            Ok(connection) => {
                let verified = verify(&question, request.route, connection).await;
                occupancy.answered(name, member);
                return match verified {
                    Ok((connection, granted, whereabouts)) => Attempt::Serves(Attachable {
                        connection,
                        member: member.clone(),
                        seat,
                        granted,
                        whereabouts,
                        _verified: (),
                    }),
                    Err(why) => {
                        debug!(%member, why = %why.0, "passed over");
                        Attempt::Next(not_verified(member, why))
                    }
                };
            }
            Err(error) => error,
        };
        if let Some(server) = left {
            // Its process may wait for a lock, or sleep, and hold a place there.
            let held = (seat, Arc::clone(request.share));
            linger::hold(
                server.into_tcp(),
                options.keepalive.is_some(),
                request.closing,
                held,
            );
        }
        let has_certificate = matches!(request.login.with, ServerProof::Certificate(_));
        report(cluster, occupancy, member, &error, has_certificate);
        let refusal = refusal(request.login, member, &error);
        if error.is_temporary_or_elsewhere() {
            Attempt::Next(refusal)
        } else {
            Attempt::Stop(refusal)
        }
    }
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
    occupancy: &Occupancy,
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
        Suspicion::None => occupancy.answered(name, member),
        Suspicion::Possible => {
            // It took the connection; what came of the login may be this client's affair.
            occupancy.answered(name, member);
            cluster.evidence(member, Evidence::ConnectFailed);
        }
        Suspicion::Likely => {
            occupancy.failed(name, member);
            cluster.evidence(member, Evidence::ConnectFailed);
        }
        Suspicion::Certain => {
            occupancy.failed(name, member);
            cluster.evidence(member, Evidence::ConnectRefused);
        }
    }
}

fn refusal(login: &ServerLogin, member: &MemberName, error: &ConnectError) -> AttachError {
    if let ConnectError::Server(server) = error
        && login.is_operators
        && server.code.is_in_class(*b"28")
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
