//! Debian's HAProxy with the files of `config/`, and applications that come to it all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

use super::cluster::{Node, eventually, fresh_address, pause, project};
use super::session::Session;

/// Between two visits of one application.
const BETWEEN: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    Write,
    Read,
}

impl Access {
    pub const BOTH: [Self; 2] = [Self::Write, Self::Read];

    pub fn port(self) -> u16 {
        match self {
            Self::Write => 5010,
            Self::Read => 5011,
        }
    }
}

/// One of the ways to use HAProxy, as in `config/haproxy-NAME.cfg`.
#[derive(Debug)]
pub struct Way {
    name: &'static str,
    sections: [&'static str; 2],
    /// What HAProxy's check comes to, asked of the same router.
    asks: [&'static str; 2],
    /// Whether sessions go through a router.
    pub routed: bool,
}

pub static WAYS: [Way; 3] = [
    Way {
        name: "through-routers",
        sections: ["read-write", "read-only"],
        asks: ["/connection/is-ready-rw?strict=1", "/connection/is-ready-ro"],
        routed: true,
    },
    Way {
        name: "direct",
        sections: ["read-write", "read-only"],
        asks: ["/node/is-read-write", "/node/is-read-only"],
        routed: false,
    },
    Way {
        name: "patroni-paths",
        sections: ["postgres_write", "postgres_read"],
        asks: ["/primary", "/replica"],
        routed: false,
    },
];

impl Way {
    pub fn section(&self, access: Access) -> &'static str {
        self.sections[access as usize]
    }

    pub fn question(&self, access: Access) -> &'static str {
        self.asks[access as usize]
    }
}

/// A server as the statistics page shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub status: String,
    pub check: String,
}

impl State {
    /// As HAProxy chooses: `UP 1/3` is on its way down.
    pub fn is_up(&self) -> bool {
        self.status.starts_with("UP")
    }
}

pub struct HaProxy {
    pub way: &'static Way,
    pub address: Ipv4Addr,
    child: Child,
    _dir: TempDir,
}

impl fmt::Debug for HaProxy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.way.name)
    }
}

impl HaProxy {
    /// With the file as it is, but for its hosts (the `nodes`, in order) and the addresses it
    /// listens on.
    pub fn start(way: &'static Way, nodes: &[Node]) -> Self {
        let address = fresh_address();
        let mut text =
            std::fs::read_to_string(project().join(format!("config/haproxy-{}.cfg", way.name))).unwrap();
        let mut put = |from: &str, to: &str| {
            assert!(text.contains(from), "{}: {from}", way.name);
            text = text.replace(from, to);
        };
        for (number, node) in (1..).zip(nodes) {
            put(&format!(" host{number}:"), &format!(" {}:", node.address));
        }
        put("bind *:", &format!("bind {address}:"));
        put("bind 127.0.0.1:", &format!("bind {address}:"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("haproxy.cfg");
        std::fs::write(&path, text).unwrap();
        let child = Command::new("/usr/sbin/haproxy")
            .args(["-db", "-q", "-f"])
            .arg(&path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let haproxy = Self {
            way,
            address,
            child,
            _dir: dir,
        };
        eventually("HAProxy's statistics", Duration::from_secs(10), || {
            !haproxy.states(Access::Write).is_empty()
        });
        haproxy
    }

    /// The servers of a section, by name.
    pub fn states(&self, access: Access) -> BTreeMap<String, State> {
        states(self.address, self.way.section(access)).unwrap_or_default()
    }
}

/// From the statistics page, as a program reads it.
fn states(address: Ipv4Addr, section: &str) -> Option<BTreeMap<String, State>> {
    let mut stream = TcpStream::connect(SocketAddr::from((address, 7000))).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream
        .write_all(b"GET /;csv HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (_, body) = text.split_once("\r\n\r\n")?;
    let table = unchunked(body)?;
    let mut lines = table
        .strip_prefix("# ")?
        .lines()
        .map(|line| line.split(',').collect::<Vec<_>>());
    let titles = lines.next()?;
    let column = |title: &str| titles.iter().position(|have| *have == title);
    let (proxy, server) = (column("pxname")?, column("svname")?);
    let (status, check) = (column("status")?, column("check_status")?);
    let servers = lines.filter(|line| line.get(proxy) == Some(&section) && line[server].starts_with("node"));
    Some(
        servers
            .map(|line| {
                let state = State {
                    status: line[status].to_owned(),
                    check: line[check].trim_start_matches("* ").to_owned(),
                };
                (line[server].to_owned(), state)
            })
            .collect(),
    )
}

/// The body of an answer with `Transfer-Encoding: chunked`.
fn unchunked(mut body: &str) -> Option<String> {
    let mut text = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(text);
        }
        text.push_str(rest.get(..size)?);
        body = rest.get(size + 2..)?;
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One session that was let in and asked where it is.
#[derive(Debug, Clone)]
pub struct Visit {
    pub began: Instant,
    pub server: String,
    pub in_recovery: bool,
    /// An INSERT was acknowledged.
    pub wrote: bool,
    /// Servers that HAProxy had marked down before.
    pub down: BTreeSet<String>,
    /// In the wrong place, and told to leave within the limit.
    pub ended: bool,
}

impl Visit {
    /// Whether the server has the wrong role for it.
    pub fn is_astray(&self, access: Access) -> bool {
        self.in_recovery != (access == Access::Read)
    }
}

/// Applications of one way and access: one after the other opens a session, looks where it is,
/// writes a row or not, and leaves.
pub struct Visitors {
    pub way: &'static Way,
    pub access: Access,
    visits: Arc<Mutex<Vec<Visit>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Visitors {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {:?}", self.way.name, self.access)
    }
}

impl Visitors {
    pub fn start(haproxy: &HaProxy, access: Access) -> Self {
        let (visits, stop) = (Arc::default(), Arc::<AtomicBool>::default());
        let (address, way) = (haproxy.address, haproxy.way);
        let thread = {
            let (visits, stop) = (Arc::clone(&visits), Arc::clone(&stop));
            std::thread::spawn(move || come(address, way, access, &visits, &stop))
        };
        Self {
            way,
            access,
            visits,
            stop,
            thread: Some(thread),
        }
    }

    /// Visits that began at `instant` or later, up to now.
    pub fn since(&self, instant: Instant) -> Vec<Visit> {
        let visits = self.visits.lock().unwrap();
        visits
            .iter()
            .filter(|visit| visit.began >= instant)
            .cloned()
            .collect()
    }

    pub fn all(&self) -> Vec<Visit> {
        self.visits.lock().unwrap().clone()
    }
}

impl Drop for Visitors {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn come(address: Ipv4Addr, way: &Way, access: Access, visits: &Mutex<Vec<Visit>>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if let Some(visit) = visit(address, way, access) {
            visits.lock().unwrap().push(visit);
        }
        pause(BETWEEN);
    }
}

/// `None` where it was not let in, or ended before it knew where it was.
fn visit(address: Ipv4Addr, way: &Way, access: Access) -> Option<Visit> {
    let down = states(address, way.section(access))?;
    let down = down.into_iter().filter(|(_, state)| !state.is_up());
    let down = down.map(|(name, _)| name).collect();
    let began = Instant::now();
    let mut session = Session::open(address, access.port()).ok()?;
    session.send("SELECT concat_ws(' ', host(inet_server_addr()), pg_is_in_recovery())");
    let place = session.answer().value()?;
    let (server, in_recovery) = place.split_once(' ').unwrap();
    let mut visit = Visit {
        began,
        server: server.to_owned(),
        in_recovery: in_recovery == "t",
        wrote: false,
        down,
        ended: false,
    };
    if access == Access::Write {
        session.send("INSERT INTO visits DEFAULT VALUES");
        visit.wrote = session.answer().tags().contains('C');
        assert!(
            !(visit.wrote && visit.in_recovery),
            "a standby took a row: {visit:?}"
        );
    } else if way.routed && visit.is_astray(access) {
        visit.ended = session.end(Duration::from_secs(5)).closed;
    }
    Some(visit)
}
