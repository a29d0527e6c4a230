//! The beginning and the end of a session on a route with a pool.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::aborted::Block;
use super::acquire::Want;
use super::clean::clean;
use super::connection::{LoginParameters, PooledConnection, RoleState, WorkerId};
use super::key::{self, Recipe};
use super::metrics::DiscardReason;
use super::open::Opener;
use super::session::{Home, Memory, PooledSession};
use super::state::{Pins, Reported, StateOptions};
use super::statements::Limits;
use super::timers::Timers;
use super::wait::{Acquisition, Got, Refusal};
use crate::auth::credentials::ServerLogin;
use crate::config::{self, CustomSettings, PoolMode, Verify};
use crate::frontend::{ClientStream, RefuseReason};
use crate::session::Shared;
use crate::session::arrival::admission::Admitted;
use crate::session::arrival::{SessionRequest, WelcomedClient};
use crate::session::attach::NoServer;
use crate::session::client::Client;
use crate::session::client_address::ClientAddressReport;
use crate::session::close::{CLOSE_WITHIN, close_with_error, closing};
use crate::session::end::{Cause, End, Fate};
use crate::session::finish::part;
use crate::session::gauges::seconds;
use crate::session::linger;
use crate::session::metrics::SessionGuard;
use crate::session::record::{Record, log_end, note_refusal};
use crate::session::registry::{CancelKey, Ticket};
use crate::session::relay::Parting;
use crate::session::state::SessionState;
use crate::session::turns::Turns;
use crate::wire::message::{self, ErrorReply};
use crate::wire::startup::StartupPacket;

/// A session, and what it holds until it is over.
pub(in crate::session) struct Pooled {
    session: PooledSession,
    record: Box<Record>,
    admitted: Admitted,
    gauge: SessionGuard,
}

/// Gives an authenticated client a session. `None`: it was refused or has left.
pub(in crate::session) async fn begin(
    request: SessionRequest,
    pool: &config::Pool,
    shared: &Arc<Shared>,
) -> Option<Pooled> {
    let SessionRequest {
        client,
        packet,
        login,
        worker_buffer,
        ..
    } = request;
    let WelcomedClient {
        mut stream,
        welcome: mut out,
        mut record,
        admitted,
    } = client;
    let report = ClientAddressReport {
        options: record.listener.route.client_address,
        client: record.client().address,
        tls: record.client().tls,
    };
    let route = &record.listener.route;
    let canonical = if route.tracking.is_some() {
        // Its connection serves nobody else: it can be told everything at its login.
        key::whole(&packet, route.access, &login, report)
    } else {
        key::canonical(&packet, route.access, &login, report, pool)
    };
    let state = SessionState {
        version: packet.served(),
        parameters: canonical.parameters,
    };
    if !state.fits() {
        record.refused(shared, "startup packet too long");
        if let NoServer::Attach(error) = NoServer::too_long() {
            record.origin.counts.error(&mut out, &error.reply());
        }
        close_with_error(stream, out).await;
        return None;
    }
    let worker = WorkerId(Arc::as_ptr(&worker_buffer).addr());
    let home = home(shared, &record, pool, &packet, login, state, worker)?;
    let (started, address) = (Instant::now(), record.client().address.ip());
    let (login_parameters, lease) = match first(&home, address, &stream, shared).await {
        Ok(first) => first,
        Err(no_lease) => {
            if let Some(reply) = no_lease.reply(shared, &record, &home) {
                record.origin.counts.error(&mut out, &reply);
                close_with_error(stream, out).await;
            }
            return None;
        }
    };
    record.times.connect = started.elapsed();
    shared
        .metrics
        .connect_seconds
        .observe(seconds(record.times.connect));
    record.member = lease.as_ref().map(|lease| lease.member().clone());
    let shown_mode = record.listener.route.pool.as_ref().map(|pool| pool.mode);
    let told = write_parameters(&mut out, &login_parameters, &canonical.initial, shown_mode);
    let own_process = lease
        .as_ref()
        .filter(|_| home.keeps)
        .map(|lease| lease.link.placement.process_id);
    let ticket = enter(shared, &packet, &record, own_process, &mut out);
    message::ready_for_query(&mut out, b'I');
    let welcome = timeout(**shared.login_timeout.load(), async {
        stream.write_all(&out).await?;
        stream.flush().await
    });
    if !matches!(welcome.await, Ok(Ok(()))) {
        debug!(client = %record.client().address, "the client left during its login, or does not read");
        if let Some(lease) = lease {
            home.pool.release(lease);
        }
        return None;
    }
    let gauge = shared.metrics.pooled_session(&record.listener.route.name);
    let mut memory = Memory::new(canonical.initial, told, home.pool.interner(), Limits::of(pool));
    home.pool
        .share(&home.want.key, &mut memory.told, &mut memory.confirmed.settings);
    let name = home.pool.name();
    let (user, database) = (
        String::from_utf8_lossy(&name.user),
        String::from_utf8_lossy(&name.database),
    );
    let timers = Timers::new(pool.limits_for(&user, &database));
    let client = Client::new(stream, ticket);
    let mut session = PooledSession::new(client, home, memory, Turns::new(worker_buffer), timers);
    match (lease, session.home.keeps_lease()) {
        (Some(lease), false) => session.home.pool.release(lease),
        (Some(lease), true) => session.first = session.adopt(lease),
        (None, _) => {}
    }
    Some(Pooled {
        session,
        record,
        admitted,
        gauge,
    })
}

/// What the session needs of its pool. `None`: the route has no pool any more.
fn home(
    shared: &Arc<Shared>,
    record: &Record,
    config: &config::Pool,
    packet: &StartupPacket,
    login: ServerLogin,
    state: SessionState,
    worker: WorkerId,
) -> Option<Arc<Home>> {
    let listener = &record.listener;
    let user = login.user.as_ref().unwrap_or(&packet.user);
    let pool = shared
        .pools
        .pool(&listener.route, &listener.cluster, user, &packet.database)?;
    let key = pool.intern(key::ConnectionKey {
        parameters: state.parameters,
        credential: login.fingerprint(&shared.pool_secret),
    });
    let recipe = pool.recipe(Recipe {
        key: Arc::clone(&key),
        version: state.version,
        login,
        route: Arc::clone(&listener.route),
    });
    let home = Home {
        mode: if listener.route.keeps_connections() {
            PoolMode::Transaction
        } else {
            config.mode
        },
        keeps: listener.route.keeps_connections(),
        pool: Arc::clone(&pool),
        recipe,
        want: Want {
            key,
            client: None,
            worker,
            tried: Vec::new(),
            custom_names: None,
        },
        route: Arc::clone(&listener.route),
        gate: Arc::clone(&listener.gate),
        cluster: listener.cluster.clone(),
        opener: Arc::clone(&shared.opener) as Arc<dyn Opener<_>>,
        options: StateOptions {
            names: config.settings.iter().map(|name| Box::from(&**name)).collect(),
            verify_always: config.verify == Verify::Always,
        },
        reset_timeout: config.reset_timeout,
        is_strict: config.custom_settings == CustomSettings::Close,
    };
    Some(pool.home(home))
}

/// Why there is no connection for a login.
enum NoFirstLease {
    HungUp,
    Closing,
    Refused(Refusal),
}

impl NoFirstLease {
    /// The error for the client, counted and logged. `None`: the client has left.
    fn reply(&self, shared: &Shared, record: &Record, home: &Home) -> Option<ErrorReply> {
        match self {
            Self::HungUp => None,
            Self::Closing => {
                shared.metrics.refuse(RefuseReason::Shutdown);
                Some(closing())
            }
            Self::Refused(refusal) => {
                let reply = home.reply(refusal).into_fatal();
                note_refusal(shared, record, refusal, &reply);
                Some(reply)
            }
        }
    }
}

/// What the client is told of its server connections: in transaction mode that of one that lives,
/// else that of the session's own first one.
async fn first(
    home: &Home,
    address: Option<IpAddr>,
    stream: &ClientStream,
    shared: &Shared,
) -> Result<(LoginParameters, Option<Box<PooledConnection>>), NoFirstLease> {
    let known = home.pool.login_parameters(&home.want.key);
    if let (false, Some(parameters)) = (home.keeps_lease(), known) {
        return Ok((parameters, None));
    }
    let lease = first_lease(home, address, stream, shared).await?;
    Ok((Arc::clone(lease.login_parameters()), Some(lease)))
}

/// A connection for a client that has not been told the end of its login.
async fn first_lease(
    home: &Home,
    address: Option<IpAddr>,
    stream: &ClientStream,
    shared: &Shared,
) -> Result<Box<PooledConnection>, NoFirstLease> {
    let mut acquisition = Acquisition::of_login(home, address);
    loop {
        let got = tokio::select! {
            biased;
            got = std::future::poll_fn(|cx| acquisition.poll(home, cx)) => got,
            () = stream.hung_up() => return Err(NoFirstLease::HungUp),
            () = shared.closing.cancelled() => return Err(NoFirstLease::Closing),
        };
        match got {
            Got::Notice => {}
            Got::Lease(lease) => return Ok(lease),
            Got::Refused(refusal) => return Err(NoFirstLease::Refused(refusal)),
        }
    }
}

/// Tells the client what its server connections reported at their login, with what differs from
/// client to client, and what it is connected to. Returns what the client knows now.
fn write_parameters(
    out: &mut BytesMut,
    login: &LoginParameters,
    initial: &[(Box<str>, Bytes)],
    mode: Option<PoolMode>,
) -> Reported {
    let mut told = Reported::default();
    for (name, value) in login.iter() {
        let own = initial
            .iter()
            .find(|(own, _)| own.as_bytes().eq_ignore_ascii_case(name));
        told.set(name, own.map_or(value, |(_, value)| value));
    }
    for (name, value) in told.iter() {
        message::parameter_status(out, name, value);
    }
    let Some(mode) = mode else { return told };
    let mode = mode.to_string();
    message::parameter_status(out, b"trunkline.version", env!("CARGO_PKG_VERSION").as_bytes());
    message::parameter_status(out, b"trunkline.pool_mode", mode.as_bytes());
    told
}

/// Enters the session into the registry, and writes its BackendKeyData.
/// `own_process`: that of the connection which the session keeps.
fn enter(
    shared: &Shared,
    packet: &StartupPacket,
    record: &Record,
    own_process: Option<u32>,
    out: &mut BytesMut,
) -> Ticket {
    loop {
        let key = CancelKey {
            process_id: own_process.unwrap_or_else(|| shared.registry.pooled_process_id()),
            key: crate::session::life::issue(shared, packet.served()),
        };
        let Ok(ticket) = shared.registry.enter(Arc::clone(&record.origin), Some(key)) else {
            continue;
        };
        if let Some(CancelKey { process_id, key }) = &ticket.entry().cancel_key {
            message::backend_key_data(out, *process_id, key.expose());
        }
        return ticket;
    }
}

impl Pooled {
    /// Serves the session to its end.
    pub(in crate::session) async fn serve(mut self: Box<Self>, shared: &Arc<Shared>) {
        let cause = self.session.run().await;
        // Boxed: an idle session must not hold the memory of its end.
        Box::pin(self.finish(cause, shared)).await;
    }

    async fn finish(self: Box<Self>, cause: Cause, shared: &Arc<Shared>) {
        let Self {
            session,
            mut record,
            admitted,
            gauge,
        } = *self;
        let PooledSession {
            client,
            lease,
            home,
            totals,
            memory,
            passing,
            block,
            ..
        } = session;
        let fate = match &lease {
            Some(lease) => lease.link.fate(),
            None if block.is_open() => Fate::RolledBack,
            None if block != Block::None => Fate::Unsynced,
            None => Fate::Settled,
        };
        let end = End { cause, fate };
        let is_reusable = matches!(
            end.cause,
            Cause::ClientTerminated | Cause::ClientGone | Cause::Ordered(_)
        );
        if let Some(lease) = &lease {
            record.member = Some(lease.member().clone());
            record.granted = Some(lease.link.placement.granted);
        }
        // Nobody may go on writing for a session that is over.
        let to_cancel = match &lease {
            Some(lease) if client.ticket.entry().in_flight() => lease.link.placement.cancel.clone(),
            _ => None,
        };
        log_end(&end, &record, client.traffic, Some(totals));
        shared.metrics.end(&record.listener.route.name, &end);
        let entry = Arc::clone(client.ticket.entry());
        drop(client.ticket);
        let Some(mut lease) = lease else {
            let mut out = BytesMut::from(client.answers.rest.as_ref());
            end.write_error(&mut out, None, &record.origin.counts);
            drop(gauge);
            return close_with_error(client.stream, out).await;
        };
        home.pool.meters.statements(lease.state.statements.take_counts());
        let is_spoilt = memory.is_tainted || memory.confirmed.pins.spoil_connection(home.is_strict);
        let pending = &lease.link.pending;
        let is_at_rest = pending.outstanding() == Some(0) || pending.waits_for_client();
        // Behind half a message whatever the router sends would be read as the other half.
        let is_whole = passing == 0 && lease.link.to_server.rest.is_empty();
        let serves_others = home.route.tracking.is_none();
        let is_usable = is_reusable && serves_others && !is_spoilt && is_at_rest && is_whole;
        if is_usable {
            let pool = Arc::clone(&home.pool);
            let (within, shared) = (home.reset_timeout, Arc::clone(shared));
            // The client does not wait for it.
            tokio::spawn(async move {
                // Over before anything else runs on the connection, or it would hit that.
                let is_over = match &to_cancel {
                    Some(target) => crate::session::cancel::settle(&shared, target).await,
                    None => true,
                };
                let is_late = timeout(CANCELS_WITHIN, entry.until_no_cancels()).await;
                if is_over && matches!(is_late, Ok(false)) && clean(&mut lease, Instant::now() + within).await
                {
                    lease.permit.pin(Pins::NONE);
                    pool.release(lease);
                } else if lease.state.role == RoleState::Gone {
                    let member = lease.member().clone();
                    pool.meters.discarded(DiscardReason::RoleGone);
                    drop(lease);
                    pool.role_gone(&member);
                } else {
                    pool.meters.discarded(DiscardReason::NotCleaned);
                }
            });
            let mut out = BytesMut::from(client.answers.rest.as_ref());
            end.write_error(&mut out, None, &record.origin.counts);
            drop(gauge);
            return close_with_error(client.stream, out).await;
        }
        if let Some(target) = to_cancel {
            crate::session::cancel::forget(shared, target);
        }
        home.pool.meters.discarded(DiscardReason::SessionEnd);
        // Of such a server nobody knows whether it ever ends its part.
        let is_amiss = lease.link.fatal.is_some() || matches!(end.cause, Cause::ServerProtocol(_));
        let (link, places) = lease.into_parts();
        let cluster = link.cluster.clone();
        let parting = Parting {
            client: client.stream,
            ready: link.pending.ready_after_error(),
            server: link.stream,
            from_server: link.observer,
            rest: client.answers.rest,
        };
        let server = part(parting, &end, &record.origin.counts)
            .await
            .release()
            .into_tcp();
        drop(gauge);
        let has_keepalive = cluster.config().server.keepalive.is_some();
        let held = (places, admitted.into_share());
        let limit = if is_amiss { CLOSE_WITHIN } else { Duration::MAX };
        let _ = timeout(limit, linger::until_ended(server, has_keepalive, &shared.closing)).await;
        drop(held);
    }
}

/// A cancel request is delivered within this time, or given up.
const CANCELS_WITHIN: Duration = Duration::from_secs(10);
