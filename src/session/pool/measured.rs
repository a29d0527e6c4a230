//! Sessions that take turns on one server connection, for `scripts/instructions`. Not part of the
//! program.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::connection::{ConnectionState, WorkerId};
use super::key::Recipe;
use super::open::{Opener, Opening};
use super::permit::OpenPermit;
use super::scene::{Connection, NEAR, Scene};
use super::state::Reported;
use super::statements::Limits;
use crate::session::end::Cause;
use crate::session::memory::MemoryStream;
use crate::session::registry::{Placement, SessionEntry};

/// The connection is there already.
#[derive(Debug)]
struct NoOpener;

impl Opener<MemoryStream> for NoOpener {
    fn open(&self, _: OpenPermit<MemoryStream>, _: Arc<Recipe>, _: WorkerId) -> Opening<MemoryStream> {
        unreachable!("the pool has all connections that it may have")
    }

    fn cancel(&self, _: &Arc<SessionEntry>) {}

    fn abandon(&self, _: &Placement) {}
}

struct Session {
    client: MemoryStream,
    running: Pin<Box<dyn Future<Output = Cause>>>,
}

/// Sessions of one pool, and its one connection.
pub(crate) struct Ring {
    sessions: Vec<Session>,
    server: MemoryStream,
    _scene: Scene,
}

impl Ring {
    pub(crate) fn new(sessions: usize) -> Self {
        let scene = Scene::new("max_connections: 1");
        let (connection, server) = connection(&scene);
        scene.pool.release(connection);
        let sessions = (0..sessions).map(|_| {
            let (client, mut session) = scene.pooled_session(Arc::new(NoOpener), &[]);
            Session {
                client,
                running: Box::pin(async move { session.run().await }),
            }
        });
        Self {
            sessions: sessions.collect(),
            server,
            _scene: scene,
        }
    }

    /// The client's end of a session.
    pub(crate) fn client(&mut self, session: usize) -> &mut MemoryStream {
        &mut self.sessions[session].client
    }

    /// The server's end of the connection.
    pub(crate) fn server(&mut self) -> &mut MemoryStream {
        &mut self.server
    }

    /// Wakes a session, which goes on as far as it can.
    pub(crate) fn wake(&mut self, session: usize) {
        let mut context = Context::from_waker(Waker::noop());
        let polled = self.sessions[session].running.as_mut().poll(&mut context);
        assert!(matches!(polled, Poll::Pending), "the session has ended");
    }
}

fn connection(scene: &Scene) -> (Connection, MemoryStream) {
    let permit = scene.session("UTC", NEAR).permit();
    let (mut connection, server) = super::scene::opened(permit, NEAR);
    let config = scene.route.pool.as_ref().expect("the route has one");
    connection.state = ConnectionState::new(Reported::default(), Limits::of(config));
    (connection, server)
}
