//! Opens connections for pools.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::connection::{ConnectionState, LoginParameters, PooledConnection, WorkerId};
use super::key::Recipe;
use super::permit::OpenPermit;
use super::pools::Spare;
use super::state::Reported;
use super::statements::Limits;
use crate::backend::ServerStream;
use crate::cluster::ClusterHandle;
use crate::cluster::snapshot::MemberName;
use crate::session::Shared;
use crate::session::attach::{self, AttachError, AttachRequest, Attachable};
use crate::session::candidates::Attempt;
use crate::session::link::Link;
use crate::session::registry::{Placement, SessionEntry};
use crate::session::state::SessionState;
use crate::session::stream::SessionStream;
use crate::wire::startup::Replication;

/// Why a connection could not be opened.
#[derive(Debug)]
pub(in crate::session) struct OpenError {
    pub(super) error: AttachError,
    pub(super) member: MemberName,
    /// Another member may do.
    pub(super) is_elsewhere: bool,
    /// The server has no free connection, and the pool has some there, which will be free.
    pub(super) can_wait: bool,
}

/// A connection that is being opened.
pub(super) type Opening<S> =
    Pin<Box<dyn Future<Output = Result<Box<PooledConnection<S>>, OpenError>> + Send>>;

/// Opens connections, and sends cancel requests to where they lead. Over sockets in the program, in
/// memory in tests.
pub(super) trait Opener<S: SessionStream>: Send + Sync + std::fmt::Debug {
    /// Connects to the permit's member, logs in as the recipe says, and verifies the role.
    /// `worker` is the one on which the future runs.
    fn open(&self, permit: OpenPermit<S>, recipe: Arc<Recipe>, worker: WorkerId) -> Opening<S>;

    /// Cancels what the session runs now.
    fn cancel(&self, entry: &Arc<SessionEntry>);

    /// Cancels what runs on a connection that its session leaves.
    fn abandon(&self, placement: &Placement);
}

/// Over sockets. It opens nothing before [`Self::serve`].
#[derive(Debug, Default)]
pub struct SocketOpener {
    /// Weak: `Shared` holds this.
    shared: OnceLock<Weak<Shared>>,
}

impl SocketOpener {
    /// Opens connections for the sessions of this process from now on, and those for which no
    /// session waits until `stop`.
    pub async fn serve(
        &self,
        shared: &Arc<Shared>,
        mut spares: mpsc::Receiver<Spare>,
        stop: CancellationToken,
    ) {
        self.attend(shared);
        let worker = WorkerId(0);
        loop {
            let spare = tokio::select! {
                () = stop.cancelled() => return,
                spare = spares.recv() => spare,
            };
            let Some(Spare { recipe, permit }) = spare else {
                return;
            };
            let (shared, pool) = (Arc::clone(shared), Arc::clone(permit.pool()));
            tokio::spawn(async move {
                match open(&shared, permit, &recipe, worker).await {
                    Ok(lease) => pool.release(lease),
                    Err(error) => {
                        tracing::debug!(member = %error.member, error = error.error.reply().message, "no spare connection");
                    }
                }
            });
        }
    }

    /// See [`Self::serve`]; only the first call counts.
    pub fn attend(&self, shared: &Arc<Shared>) {
        let _ = self.shared.set(Arc::downgrade(shared));
    }

    fn shared(&self) -> Option<Arc<Shared>> {
        self.shared.get()?.upgrade()
    }
}

impl Opener<ServerStream> for SocketOpener {
    fn open(&self, permit: OpenPermit, recipe: Arc<Recipe>, worker: WorkerId) -> Opening<ServerStream> {
        let shared = self.shared();
        Box::pin(async move {
            let member = permit.candidate.member.clone();
            let Some(shared) = shared else {
                return Err(OpenError {
                    error: AttachError::NoCandidate(crate::session::close::closing()),
                    member,
                    is_elsewhere: false,
                    can_wait: false,
                });
            };
            open(&shared, permit, &recipe, worker).await
        })
    }

    fn cancel(&self, entry: &Arc<SessionEntry>) {
        if let Some(shared) = self.shared() {
            let entry = Arc::clone(entry);
            tokio::spawn(async move {
                let outcome = crate::session::cancel::deliver(&shared, &entry).await;
                shared.metrics.cancel(outcome);
            });
        }
    }

    fn abandon(&self, placement: &Placement) {
        if let (Some(shared), Some(target)) = (self.shared(), placement.cancel.clone()) {
            crate::session::cancel::forget(&shared, target);
        }
    }
}

async fn open(
    shared: &Shared,
    mut permit: OpenPermit,
    recipe: &Recipe,
    worker: WorkerId,
) -> Result<Box<PooledConnection>, OpenError> {
    let pool = Arc::clone(permit.pool());
    let (cluster, route) = (pool.cluster().clone(), &recipe.route);
    let state = SessionState {
        version: recipe.version,
        parameters: recipe.key.parameters.clone(),
    };
    let request = AttachRequest {
        cluster: &cluster,
        occupancy: &shared.occupancy,
        route,
        state: &state,
        login: &recipe.login,
        replication: Replication::None,
        share: None,
        closing: &shared.closing,
    };
    let candidate = permit.candidate.clone();
    let failed = |error: AttachError, is_elsewhere| OpenError {
        // Before the permit is given back: the next session must not try at once.
        can_wait: error
            .server_full()
            .is_some_and(|said| pool.server_is_full(&candidate.member, &said)),
        error,
        member: candidate.member.clone(),
        is_elsewhere,
    };
    shared
        .occupancy
        .connecting(&cluster.config().name, &candidate.member);
    let Some(seat) = permit.take_seat() else {
        let error = AttachError::NoCandidate(crate::session::close::closing());
        return Err(failed(error, false));
    };
    let (error, is_elsewhere) = match attach::attach_to(&request, &candidate, seat).await {
        Attempt::Serves(attachable) => return Ok(opened(permit, recipe, worker, cluster, attachable)),
        Attempt::Next(error) => (error, true),
        Attempt::Stop(error) => (error, false),
    };
    if !shared.closing.is_cancelled() {
        pool.meters.connect_failed(&candidate.member);
    }
    Err(failed(error, is_elsewhere))
}

/// The pooled connection of one that has logged in.
fn opened(
    permit: OpenPermit,
    recipe: &Recipe,
    worker: WorkerId,
    cluster: ClusterHandle,
    attachable: Attachable,
) -> Box<PooledConnection> {
    let Attachable {
        connection,
        member,
        seat,
        granted,
        whereabouts,
        ..
    } = attachable;
    let placement = Arc::new(Placement {
        member,
        granted,
        whereabouts: Some(whereabouts),
        process_id: connection.process_id.unwrap_or_default(),
        cancel: connection.cancel.clone(),
    });
    let mut reported = Reported::default();
    for (name, value) in &connection.parameters {
        reported.set(name, value);
    }
    let login: LoginParameters = connection.parameters.into();
    let limits = recipe.route.session_pool().map_or(Limits::NONE, Limits::of);
    let link = Link::new(connection.stream, placement, cluster);
    let state = ConnectionState::new(reported, limits);
    permit.opened(link, seat, worker, login, state)
}

/// Makes the worker that calls this drive the connection. One with TLS stays where it is.
pub fn rehome(stream: &mut crate::backend::OrderlyStream<ServerStream>) -> std::io::Result<bool> {
    let is_moved = !stream.is_tls();
    stream.change(ServerStream::rehome)?;
    Ok(is_moved)
}
