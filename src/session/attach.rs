//! Attach: gives a session a server connection whose role is verified and whose session state
//! equals the client's. It is the only way to a server connection: for a login today, and for every
//! replacement of a connection later.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::arrival::quota::Share;
use super::candidates::{Attempt, Connector, MOST_TRIES, NoPass, Pass, Wanted};
use super::close::closing;
use super::linger;
use super::occupancy::{Occupancy, Seat};
use super::state::SessionState;
use super::stream::SessionStream;
use super::whereabouts::{self, Question};
use crate::auth::credentials::{ServerLogin, ServerProof};
use crate::backend::Unverified;
use crate::backend::role_audit;
use crate::backend::{
    self, ClientReply, ConnectError, Credential, OrderlyStream, SeenRole, ServerConnection, ServerStream,
    Suspicion, Target, TlsSettingsError,
};
use crate::cluster::server_identity::ServerLocation;
use crate::cluster::snapshot::{Leader, MemberName, NoLeader};
use crate::cluster::{ClusterHandle, Evidence};
use crate::config::{Access, OnLeader, Route};
use crate::routing::{Candidate, GrantedRole, Preference};
use crate::wire::frame::ErrorFields;
use crate::wire::message::{ErrorReply, Severity};
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::{MAX_LENGTH, Replication};

/// A server connection whose role was verified on that very connection. Only [`attach`] makes one.
#[derive(Debug)]
pub(super) struct Attachable<S: AsyncWrite + Unpin = ServerStream> {
    pub connection: ServerConnection<S>,
    pub member: MemberName,
    pub seat: Seat,
    pub granted: GrantedRole,
    /// Which server the router has seen at the other end.
    pub whereabouts: ServerLocation,
    _verified: (),
}

/// Why there is no server for the session.
#[derive(Debug)]
pub(super) enum AttachError {
    /// The startup packet is longer than a server reads.
    TooLong(ErrorReply),
    /// No member may serve the route.
    NoCandidate(ErrorReply),
    /// A server refused the login, and the client gets its error unchanged.
    Server {
        frame: Bytes,
        /// The same error as text.
        log_text: String,
        member: MemberName,
        /// The server works; it refused this login.
        refuses_login: bool,
        /// [`ConnectError::may_pass`].
        may_pass: bool,
    },
    /// A server could not be used, and the router made the error.
    Refused {
        reply: ErrorReply,
        member: MemberName,
        /// As in [`Self::Server`].
        refuses_login: bool,
        /// The server has another password of the user than the client has logged in with.
        has_other_password: bool,
        /// As in [`Self::Server`]; also where the server has another role than it had.
        may_pass: bool,
    },
    /// A server refused the credential that the operator configured.
    Credential {
        reply: ErrorReply,
        /// The server's error. It is for the log only: it names a role and a method that are not
        /// the client's.
        log_text: String,
        member: MemberName,
    },
}

/// Why a session got no server.
#[derive(Debug)]
pub(super) enum NoServer {
    Pass(NoPass),
    Attach(AttachError),
}

impl From<NoPass> for NoServer {
    fn from(error: NoPass) -> Self {
        Self::Pass(error)
    }
}

impl From<AttachError> for NoServer {
    fn from(error: AttachError) -> Self {
        Self::Attach(error)
    }
}

impl AttachError {
    /// Whether the reason may be a failover, or a server's stop, that the probes have not seen yet.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::NoCandidate(_) => true,
            Self::Server { may_pass, .. } | Self::Refused { may_pass, .. } => *may_pass,
            Self::TooLong(_) | Self::Credential { .. } => false,
        }
    }

    /// The error for the client.
    pub(super) fn reply(&self) -> ErrorReply {
        match self {
            Self::TooLong(reply)
            | Self::NoCandidate(reply)
            | Self::Refused { reply, .. }
            | Self::Credential { reply, .. } => reply.clone(),
            Self::Server { frame, .. } => {
                let fields = ErrorFields::of_prefix(frame.get(5..).unwrap_or_default());
                ErrorReply {
                    severity: Severity::Fatal,
                    code: fields.code,
                    message: fields.message,
                    detail: fields.detail,
                    hint: fields.hint,
                }
            }
        }
    }

    /// The server that answered and refused this login. Then nothing is wrong with the cluster.
    pub(super) fn refused_by(&self) -> Option<&MemberName> {
        match self {
            Self::Server {
                member,
                refuses_login: true,
                ..
            }
            | Self::Refused {
                member,
                refuses_login: true,
                ..
            }
            | Self::Credential { member, .. } => Some(member),
            Self::TooLong(_) | Self::NoCandidate(_) | Self::Server { .. } | Self::Refused { .. } => None,
        }
    }
}

impl AttachError {
    /// What a server said that has no free connection (53300), of all, for the role or for the
    /// database.
    pub(super) fn server_full(&self) -> Option<String> {
        let Self::Server { frame, .. } = self else {
            return None;
        };
        let fields = ErrorFields::of_prefix(frame.get(5..).unwrap_or_default());
        (fields.code == SqlState::TOO_MANY_CONNECTIONS).then_some(fields.message)
    }

    /// The server does not take the password with which the session's client logged in.
    pub(super) fn refuses_password(&self) -> bool {
        match self {
            Self::Server { frame, .. } => {
                let fields = ErrorFields::of_prefix(frame.get(5..).unwrap_or_default());
                fields.code == SqlState::INVALID_PASSWORD
            }
            Self::Refused {
                has_other_password, ..
            } => *has_other_password,
            Self::TooLong(_) | Self::NoCandidate(_) | Self::Credential { .. } => false,
        }
    }
}

impl NoServer {
    /// The startup packet is longer than a server reads.
    pub(super) fn too_long() -> Self {
        let reply = ErrorReply::fatal(SqlState::PROGRAM_LIMIT_EXCEEDED, "startup packet too long");
        Self::Attach(AttachError::TooLong(reply.hint(format!(
            "With the parameters that the router adds, the packet may have {MAX_LENGTH} bytes. Send fewer or shorter \
             parameters."
        ))))
    }

    /// Writes the error that the client gets; `false` if the client has left.
    pub(super) fn write(&self, wanted: &Wanted<'_>, out: &mut BytesMut) -> bool {
        let counts = wanted.gate.counts();
        match self {
            Self::Pass(NoPass::HungUp) => return false,
            Self::Pass(NoPass::Closing) => counts.error(out, &closing()),
            Self::Pass(NoPass::Queue(error)) => counts.error(out, &wanted.busy(*error)),
            Self::Attach(AttachError::Server { frame, .. }) => {
                let fields = ErrorFields::of_prefix(frame.get(5..).unwrap_or_default());
                counts.server_error(fields.code);
                out.extend_from_slice(frame);
            }
            Self::Attach(
                AttachError::TooLong(reply)
                | AttachError::NoCandidate(reply)
                | AttachError::Refused { reply, .. }
                | AttachError::Credential { reply, .. },
            ) => counts.error(out, reply),
        }
        true
    }
}

/// What a session needs from a server connection.
#[derive(Debug)]
pub(super) struct AttachRequest<'a> {
    pub cluster: &'a ClusterHandle,
    pub occupancy: &'a Arc<Occupancy>,
    pub route: &'a Route,
    pub state: &'a SessionState,
    pub login: &'a ServerLogin,
    pub replication: Replication,
    /// Held as long as a server is busy with the login.
    pub share: Option<&'a Arc<Share>>,
    /// Cancelled when the router shuts down.
    pub closing: &'a CancellationToken,
}

/// Connects to a server and logs in.
pub(super) trait Login: Sync {
    type Stream: SessionStream + Send + 'static;
    /// What is left of a connection on which nothing more is said.
    type Socket: SessionStream + Send + 'static;

    /// As [`backend::connect_leaving`].
    fn connect(
        &self,
        target: Target<'_>,
        deadline: Instant,
        left: &mut Option<OrderlyStream<Self::Stream>>,
    ) -> impl Future<Output = Result<ServerConnection<Self::Stream>, ConnectError>> + Send;

    fn socket(left: Self::Stream) -> Self::Socket;
}

/// Over sockets.
struct Sockets;

impl Login for Sockets {
    type Stream = ServerStream;
    type Socket = TcpStream;

    fn connect(
        &self,
        target: Target<'_>,
        deadline: Instant,
        left: &mut Option<OrderlyStream<ServerStream>>,
    ) -> impl Future<Output = Result<ServerConnection, ConnectError>> + Send {
        backend::connect_leaving(target, deadline, left)
    }

    fn socket(left: ServerStream) -> TcpStream {
        left.into_tcp()
    }
}

/// Connects to the candidates of `pass` in order, logs in and verifies, until one serves. It never
/// sees the client.
///
/// # Errors
/// There is no candidate, or the error of the last one tried.
pub(super) async fn attach(request: &AttachRequest<'_>, pass: Pass) -> Result<Attachable, AttachError> {
    attach_by(&Sockets, request, pass).await
}

/// As [`attach`], to this one member, on which the caller has a seat.
pub(super) async fn attach_to(
    request: &AttachRequest<'_>,
    candidate: &Candidate,
    seat: Seat,
) -> Attempt<Attachable, AttachError> {
    let connector = Attacher {
        login: &Sockets,
        request,
        credential: credential(request.login),
        give_up: Instant::now() + request.cluster.config().server.connect_timeout,
    };
    connector.attempt(candidate, seat).await
}

/// As [`attach`], with logins of this kind.
pub(super) async fn attach_by<L: Login>(
    login: &L,
    request: &AttachRequest<'_>,
    mut pass: Pass,
) -> Result<Attachable<L::Stream>, AttachError> {
    let AttachRequest {
        cluster, occupancy, ..
    } = *request;
    let connector = Attacher {
        login,
        request,
        credential: credential(request.login),
        give_up: Instant::now() + cluster.config().server.connect_timeout * MOST_TRIES,
    };
    let attached = pass.first_that_serves(occupancy, cluster, &connector).await;
    attached.map_err(|last| last.unwrap_or_else(|| AttachError::NoCandidate(pass.unavailable(request.route))))
}

/// Attaches to one candidate after another, until `give_up`.
struct Attacher<'a, L> {
    login: &'a L,
    request: &'a AttachRequest<'a>,
    credential: Credential,
    give_up: Instant,
}

impl<L: Login> Connector for Attacher<'_, L> {
    type Served = Attachable<L::Stream>;
    type Error = AttachError;

    async fn attempt(&self, candidate: &Candidate, seat: Seat) -> Attempt<Self::Served, AttachError> {
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
        let connected = self.login.connect(target, deadline, &mut left).await;
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
                    Err(unverified) => {
                        debug!(%member, why = %unverified.0, "the member is skipped");
                        Attempt::Next(not_verified(member, unverified))
                    }
                };
            }
            Err(error) => error,
        };
        if let Some(server) = left {
            // The server's process may wait for a lock or sleep, and still counts as a connection
            // there.
            let held = (seat, request.share.map(Arc::clone));
            linger::hold(
                L::socket(server.release()),
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

/// The certificate was tried when its file was read, so this does not happen.
fn unusable(member: &MemberName, error: &TlsSettingsError) -> AttachError {
    AttachError::Refused {
        reply: ErrorReply::fatal(SqlState::CANNOT_CONNECT_NOW, error.to_string())
            .hint("Ask the operator to fix auth.server_credentials."),
        member: member.clone(),
        refuses_login: false,
        has_other_password: false,
        may_pass: false,
    }
}

/// Reports a failed attempt, so that other sessions avoid the member. A failure that a client can
/// cause itself only makes a probe check the member (docs/security.md). `has_certificate`: the
/// login used the user's own certificate, because of which TLS may have failed.
pub(super) fn report(
    cluster: &ClusterHandle,
    occupancy: &Occupancy,
    member: &MemberName,
    error: &ConnectError,
    has_certificate: bool,
) {
    debug!(%member, %error, "the connection to the member failed");
    let config = cluster.config();
    let name = &config.name;
    let suspicion = match error.suspicion() {
        Suspicion::Likely if has_certificate => Suspicion::Possible,
        suspicion => suspicion,
    };
    match suspicion {
        // This host lacks a resource: whether the member answers others is not known.
        Suspicion::None if matches!(error, ConnectError::LocalResources { .. }) => {}
        Suspicion::None => occupancy.answered(name, member),
        Suspicion::Possible => {
            // The member accepted the connection; the login may have failed because of this client.
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
        let message = format!("server \"{member}\" does not accept the router's login for this user");
        return AttachError::Credential {
            reply: ErrorReply::fatal(SqlState::INVALID_AUTHORIZATION, message).hint(
                "Ask the operator to fix the credential for this user (auth.server_credentials). The router's log has \
                 the details.",
            ),
            log_text: server.to_string(),
            member: member.clone(),
        };
    }
    let refuses_login = matches!(error, ConnectError::Server(server) if server.refuses_login());
    match error.client_reply(member.as_str()) {
        ClientReply::Verbatim(frame) => AttachError::Server {
            frame,
            log_text: error.to_string(),
            member: member.clone(),
            refuses_login,
            may_pass: error.may_pass(),
        },
        ClientReply::Own(reply) => AttachError::Refused {
            reply,
            member: member.clone(),
            refuses_login,
            // One that the operator has configured is none of the client's.
            has_other_password: !login.is_operators && matches!(error, ConnectError::VerifierDiffers { .. }),
            may_pass: error.may_pass(),
        },
    }
}

fn not_verified(member: &MemberName, Unverified(reason, hint): Unverified) -> AttachError {
    AttachError::Refused {
        reply: ErrorReply::fatal(
            SqlState::CANNOT_CONNECT_NOW,
            format!("server \"{member}\" {reason}"),
        )
        .hint(hint),
        member: member.clone(),
        refuses_login: false,
        has_other_password: false,
        may_pass: true,
    }
}

/// Verifies the role of a connection; `candidate` says in which role the member was chosen. Promise
/// 1: the server accepts writes on this very connection, belongs to this cluster, is on the
/// leader's timeline, and is named leader now. Promise 2: the server is a standby of this cluster,
/// or the leader if the route allows it.
async fn verify<S: SessionStream>(
    question: &Question<'_>,
    route: &Route,
    mut connection: ServerConnection<S>,
) -> Result<(ServerConnection<S>, GrantedRole, ServerLocation), Unverified> {
    let Question {
        cluster, candidate, ..
    } = *question;
    let member = &candidate.member;
    let role = match connection.role {
        SeenRole::Unknown => ask_role(&mut connection, cluster.config().server.connect_timeout).await,
        role => role,
    };
    match (candidate.reason == Preference::Leader, role) {
        (true, SeenRole::Writable) => {
            let whereabouts = whereabouts::confirm(question, &mut connection).await?;
            let granted = match (route.access, route.read_only_on_leader) {
                (Access::ReadWrite, _) => GrantedRole::ReadWrite,
                (Access::ReadOnly, OnLeader::Unenforced) => GrantedRole::Unenforced,
                // With `refused` the leader is no candidate; the strict check is the safe one.
                (Access::ReadOnly, OnLeader::Enforced | OnLeader::Refused) => {
                    role_audit::writes_nothing(&mut connection, question.deadline).await?;
                    GrantedRole::Enforced
                }
            };
            // The leader may have changed during the login.
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

/// Asks a server that does not report `in_hot_standby` (before PostgreSQL 14).
async fn ask_role<S: SessionStream>(connection: &mut ServerConnection<S>, timeout: Duration) -> SeenRole {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A session ends for good if its own password was changed, not if an operator's credential is
    /// out of date.
    #[test]
    fn only_a_clients_own_password_counts_as_changed() {
        for is_operators in [false, true] {
            let login = ServerLogin {
                user: None,
                with: ServerProof::Nothing,
                is_operators,
            };
            let error = ConnectError::VerifierDiffers {
                reason: "another salt",
            };
            let refusal = refusal(&login, &MemberName::new("db1"), &error);
            assert_eq!(refusal.refuses_password(), !is_operators);
        }
    }
}
