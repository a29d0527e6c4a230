//! A session with a pool in memory, between a client that a test speaks for and servers that answer
//! as [`ModelServer`] does.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::{ConnectionState, WorkerId};
use super::key::Recipe;
use super::model_server::{ModelServer, Trouble};
use super::open::{Opener, Opening};
use super::permit::OpenPermit;
use super::scene::{MemorySession, NEAR, Scene, opened};
use super::state::Reported;
use super::statements::Limits;
use crate::session::end::{Cause, Order};
use crate::session::memory::MemoryStream;
use crate::session::registry::{Placement, SessionEntry};

/// Opens connections whose other ends a test takes.
#[derive(Debug, Default)]
struct MemoryOpener {
    opened: Mutex<Vec<MemoryStream>>,
    cancels: AtomicUsize,
    abandoned: AtomicUsize,
}

impl Opener<MemoryStream> for MemoryOpener {
    fn open(
        &self,
        permit: OpenPermit<MemoryStream>,
        recipe: Arc<Recipe>,
        worker: WorkerId,
    ) -> Opening<MemoryStream> {
        let (mut connection, server) = opened(permit, worker);
        let limits = recipe.route.pool.as_ref().map_or(LIMITS, Limits::of);
        connection.state = ConnectionState::new(Reported::default(), limits);
        self.opened.lock().expect("no test holds it").push(server);
        Box::pin(async move { Ok(connection) })
    }

    fn cancel(&self, _entry: &Arc<SessionEntry>) {
        self.cancels.fetch_add(1, Ordering::Relaxed);
    }

    fn abandon(&self, _placement: &Placement) {
        self.abandoned.fetch_add(1, Ordering::Relaxed);
    }
}

const LIMITS: Limits = Limits {
    statements: 100,
    bytes: 1 << 20,
};

#[derive(Debug, Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A server connection's other end.
pub(super) struct Server {
    stream: Option<MemoryStream>,
    pub(super) model: ModelServer,
    /// Said, and not sent yet.
    unsent: Vec<u8>,
}

/// See the module.
pub(super) struct Stage {
    pub(super) scene: Scene,
    opener: Arc<MemoryOpener>,
    pub(super) servers: Vec<Server>,
    pub(super) troubles: Vec<Trouble>,
    client: Option<MemoryStream>,
    /// What the client has not been able to send.
    unsent: Vec<u8>,
    /// All that the client has heard.
    pub(super) heard: Vec<u8>,
    pub(super) client_listens: bool,
    /// The client closes its side with the last byte that it has to send.
    pub(super) closes_behind: bool,
    pub(super) servers_listen: bool,
    /// Servers that are opened from now on answer nothing.
    pub(super) hangs: bool,
    /// Servers may send so many bytes more.
    pub(super) may_send: usize,
    /// Servers send at most so many bytes at once.
    pub(super) piece: usize,
    pub(super) entry: Arc<SessionEntry>,
    session: Pin<Box<dyn Future<Output = (Cause, MemorySession)>>>,
    woken: Arc<Woken>,
    pub(super) end: Option<(Cause, MemorySession)>,
}

/// What a client hears on a connection of its own.
pub(super) fn direct(said: &[u8]) -> Vec<u8> {
    ModelServer::default().hear(said, &mut Vec::new())
}

fn read_all(stream: &mut MemoryStream, into: &mut Vec<u8>) {
    let mut buffer = [0; 4096];
    loop {
        let mut read = ReadBuf::new(&mut buffer);
        let polled = Pin::new(&mut *stream).poll_read(&mut Context::from_waker(Waker::noop()), &mut read);
        match polled {
            Poll::Ready(Ok(())) if !read.filled().is_empty() => into.extend_from_slice(read.filled()),
            _ => return,
        }
    }
}

fn write(stream: &mut MemoryStream, unsent: &mut Vec<u8>, most: usize) -> usize {
    let most = most.min(unsent.len());
    if most == 0 {
        return 0;
    }
    let polled = Pin::new(stream).poll_write(&mut Context::from_waker(Waker::noop()), &unsent[..most]);
    match polled {
        Poll::Ready(Ok(written)) => {
            unsent.drain(..written);
            written
        }
        Poll::Ready(Err(_)) | Poll::Pending => 0,
    }
}

impl Stage {
    /// One place in the pool, and these keys besides.
    pub(super) fn new(keys: &str) -> Self {
        Self::with(keys, &[])
    }

    /// The session has these settings from its startup packet, which its connections have not.
    pub(super) fn with(keys: &str, own: &[(&str, &'static [u8])]) -> Self {
        let pool = "mode: transaction, max_connections: 1";
        Self::of(&format!("pool: {{{pool}}}, {keys}"), own)
    }

    /// As [`Self::with`], with these keys of the route.
    pub(super) fn of(keys: &str, own: &[(&str, &'static [u8])]) -> Self {
        let scene = Scene::of(&format!("targets: [leader], {keys}"), 1, 100);
        let opener: Arc<MemoryOpener> = Arc::default();
        let shared = Arc::clone(&opener) as Arc<dyn Opener<MemoryStream>>;
        let (client, mut session) = scene.pooled_session(shared, own);
        let entry = Arc::clone(session.client.ticket.entry());
        Self {
            scene,
            opener,
            servers: Vec::new(),
            troubles: Vec::new(),
            client: Some(client),
            unsent: Vec::new(),
            heard: Vec::new(),
            client_listens: true,
            closes_behind: false,
            servers_listen: true,
            hangs: false,
            may_send: usize::MAX,
            piece: usize::MAX,
            entry,
            session: Box::pin(async move {
                let cause = session.run().await;
                (cause, session)
            }),
            woken: Arc::new(Woken(AtomicBool::new(true))),
            end: None,
        }
    }

    /// Until nothing happens without time passing, or somebody doing something.
    pub(super) async fn settle(&mut self) {
        let waker = Waker::from(Arc::clone(&self.woken));
        let mut rests = 0;
        while rests < 3 {
            let mut has_moved = false;
            while self.woken.0.swap(false, Ordering::Relaxed) && self.end.is_none() {
                has_moved = true;
                if let Poll::Ready(end) = self.session.as_mut().poll(&mut Context::from_waker(&waker)) {
                    self.end = Some(end);
                }
            }
            has_moved |= self.move_bytes();
            // Connections are opened in tasks of their own.
            tokio::task::yield_now().await;
            rests = if has_moved { 0 } else { rests + 1 };
        }
    }

    fn move_bytes(&mut self) -> bool {
        let mut moved = 0;
        for stream in self.opener.opened.lock().expect("no test holds it").drain(..) {
            let mut model = ModelServer::default();
            model.is_hung = self.hangs;
            self.servers.push(Server {
                stream: Some(stream),
                model,
                unsent: Vec::new(),
            });
        }
        for server in &mut self.servers {
            let Some(stream) = &mut server.stream else {
                continue;
            };
            let mut heard = Vec::new();
            if self.servers_listen {
                read_all(stream, &mut heard);
            }
            moved += heard.len();
            server
                .unsent
                .extend(server.model.hear(&heard, &mut self.troubles));
            let sent = write(stream, &mut server.unsent, self.may_send.min(self.piece));
            self.may_send -= sent;
            moved += sent;
            if server.model.is_over && server.unsent.is_empty() {
                server.stream = None;
            }
        }
        if let Some(client) = &mut self.client {
            moved += write(client, &mut self.unsent, usize::MAX);
            if self.closes_behind && self.unsent.is_empty() {
                self.closes_behind = false;
                let _ = Pin::new(&mut *client).poll_shutdown(&mut Context::from_waker(Waker::noop()));
            }
            let before = self.heard.len();
            if self.client_listens {
                read_all(client, &mut self.heard);
            }
            moved += self.heard.len() - before;
        }
        moved > 0
    }

    /// The client sends this, and whatever can happen happens.
    pub(super) async fn say(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
        self.settle().await;
    }

    /// The newest server sends this, behind what it has not sent yet.
    pub(super) async fn server_says(&mut self, bytes: &[u8]) {
        let server = self.servers.last_mut().expect("it was opened");
        server.unsent.extend_from_slice(bytes);
        self.may_send = usize::MAX;
        self.settle().await;
    }

    pub(super) async fn pass(&mut self, time: Duration) {
        tokio::time::advance(time).await;
        self.settle().await;
    }

    /// For the session, or for the server connection that it has now.
    pub(super) async fn order(&mut self, order: Order) {
        if !order.reason().is_about_server() {
            self.entry.order(order);
        } else if let Some(placement) = self.entry.placement() {
            self.entry.order_on(&placement, order);
        }
        self.settle().await;
    }

    /// Runs what a pool does by the clock, until this is dropped.
    pub(super) fn keeper(&self) -> tokio_util::sync::DropGuard {
        let stop = tokio_util::sync::CancellationToken::new();
        tokio::spawn(Arc::clone(&self.scene.pools).keep(stop.clone()));
        stop.drop_guard()
    }

    /// Both sides read so many bytes at once.
    pub(super) fn client_is_read_by(&self, most: usize) {
        self.client
            .as_ref()
            .expect("it is there")
            .peer_reads_at_most(most);
    }

    /// The client says no more, and listens.
    pub(super) async fn close_client_side(&mut self) {
        let client = self.client.as_mut().expect("it is there");
        let _ = Pin::new(client).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        self.settle().await;
    }

    pub(super) async fn client_leaves(&mut self, resets: bool) {
        let client = self.client.take().expect("it is there");
        if resets {
            client.reset();
        } else {
            drop(client);
        }
        self.settle().await;
    }

    pub(super) async fn servers_die(&mut self) {
        for server in &mut self.servers {
            server.stream = None;
        }
        self.settle().await;
    }

    /// The servers say this and end, and the client sends that, before the session looks.
    pub(super) async fn servers_die_as_client_says(&mut self, last_word: &[u8], bytes: &[u8]) {
        for server in &mut self.servers {
            if let Some(mut stream) = server.stream.take() {
                write(&mut stream, &mut last_word.to_vec(), usize::MAX);
            }
        }
        let client = self.client.as_mut().expect("it is there");
        write(client, &mut bytes.to_vec(), usize::MAX);
        self.settle().await;
    }

    pub(super) fn cancels(&self) -> usize {
        self.opener.cancels.load(Ordering::Relaxed)
    }

    /// Requests that were cancelled because their session had left.
    pub(super) fn abandoned(&self) -> usize {
        self.opener.abandoned.load(Ordering::Relaxed)
    }

    /// Idle, leased and opening connections.
    pub(super) fn counts(&self) -> [usize; 3] {
        self.scene.counts("db1")
    }

    /// The session has no connection, and the one in the pool is as after its login.
    pub(super) fn assert_given_back(&self, at: &str) {
        assert_eq!(self.counts(), [1, 0, 0], "{at}");
        let lease = self.scene.lease("UTC", NEAR).expect("it is quiet");
        let pending = &lease.link.pending;
        assert_eq!(pending.outstanding(), Some(0), "{at}");
        assert!(pending.between_transactions() && !pending.is_uncertain(), "{at}");
        assert!(
            lease.link.is_at_boundary() && lease.state.partial.is_empty(),
            "{at}"
        );
        let server = self.servers.last().expect("it was opened");
        assert!(
            server.model.is_clean() && server.unsent.is_empty(),
            "{at}: {:?}",
            server.model
        );
        self.scene.pool.release(lease);
    }
}
