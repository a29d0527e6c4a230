//! keepalived with `config/keepalived.conf` moves the address to a host whose router serves.
//!
//! Two hosts are two network namespaces with a cable between them; who answers for a router there
//! is a stand-in (that real routers are seen for what they are is a test of the file's own). Needs
//! root; without it the test says so and is over.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::cluster::{eventually, output, project, succeed};

const SHARED: &str = "192.0.2.10/24";

struct Host {
    namespace: String,
    dir: TempDir,
    keepalived: Option<Child>,
    router: Option<Child>,
}

impl Host {
    fn new(name: &str) -> Option<Self> {
        let namespace = format!("trunkline-{}-{name}", std::process::id());
        let made = output(Command::new("ip").args(["netns", "add", &namespace]));
        made.status.success().then(|| Self {
            namespace,
            dir: tempfile::tempdir().unwrap(),
            keepalived: None,
            router: None,
        })
    }

    fn ip(&self, arguments: &str) -> String {
        let mut command = Command::new("ip");
        command
            .args(["-n", &self.namespace])
            .args(arguments.split_whitespace());
        succeed(&mut command)
    }

    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// With the file as it is, but for the priority.
    fn start_keepalived(&mut self, priority: u8) {
        let text = fs::read_to_string(project().join("config/keepalived.conf")).unwrap();
        assert!(text.contains("\n    priority 110 "));
        let text = text.replace("\n    priority 110 ", &format!("\n    priority {priority} "));
        let config = self.file("keepalived.conf");
        fs::write(&config, text).unwrap();
        let log = fs::File::create(self.file("log")).unwrap();
        let mut command = self.inside("/usr/sbin/keepalived");
        command.args(["--dont-fork", "--log-console", "--vrrp", "--use-file"]);
        command.arg(config).arg("--pid").arg(self.file("pid"));
        command
            .arg("--vrrp_pid")
            .arg(self.file("vrrp.pid"))
            .stdout(Stdio::null())
            .stderr(log);
        self.keepalived = Some(command.spawn().unwrap());
    }

    /// Something that answers 200 on the path that the file asks for.
    fn start_router(&mut self) {
        fs::create_dir_all(self.file("web/connection")).unwrap();
        fs::write(self.file("web/connection/is-ready"), "yes").unwrap();
        let mut command = self.inside("/usr/bin/python3");
        command.args(["-m", "http.server", "6434", "--bind", "127.0.0.1", "--directory"]);
        command.arg(self.file("web")).stdout(Stdio::null());
        self.router = Some(command.spawn().unwrap());
    }

    fn stop_router(&mut self) {
        if let Some(mut router) = self.router.take() {
            let _ = router.kill();
            let _ = router.wait();
        }
    }

    /// Asked, and not killed: it ends its own child first.
    fn stop_keepalived(&mut self) {
        if let Some(mut keepalived) = self.keepalived.take() {
            let _ = Command::new("kill").arg(keepalived.id().to_string()).status();
            let _ = keepalived.wait();
        }
    }

    fn has_the_address(&self) -> bool {
        self.ip("-4 -o address show dev eth0").contains(SHARED)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop_router();
        self.stop_keepalived();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.file("log")).unwrap_or_default();
            eprintln!("--- keepalived in {}:\n{log}", self.namespace);
        }
        let _ = output(Command::new("ip").args(["netns", "del", &self.namespace]));
    }
}

fn await_place(what: &str, here: &Host, not_there: &Host) {
    eventually(what, Duration::from_secs(30), || {
        here.has_the_address() && !not_there.has_the_address()
    });
}

#[test]
fn the_address_is_on_a_host_whose_router_serves() {
    let (Some(mut first), Some(mut second)) = (Host::new("a"), Host::new("b")) else {
        eprintln!("SKIPPED: network namespaces are not to be had here (root?)");
        return;
    };
    let cable = output(
        Command::new("ip")
            .args(["link", "add", "eth0", "netns", &first.namespace])
            .args(["type", "veth", "peer", "name", "eth0", "netns", &second.namespace]),
    );
    if !cable.status.success() {
        eprintln!("SKIPPED: no cable between network namespaces");
        return;
    }
    for (host, address) in [(&first, "192.0.2.11/24"), (&second, "192.0.2.12/24")] {
        host.ip(&format!("address add {address} dev eth0"));
        host.ip("link set lo up");
        host.ip("link set eth0 up");
    }
    for (host, priority) in [(&mut first, 110), (&mut second, 100)] {
        host.start_router();
        host.start_keepalived(priority);
    }
    await_place("the one with the higher priority has it", &first, &second);
    first.stop_router();
    await_place("it leaves the host that does not serve", &second, &first);
    first.start_router();
    await_place("it returns to the host that serves again", &first, &second);
    first.stop_keepalived();
    await_place("it leaves a host that is shut down", &second, &first);
}
