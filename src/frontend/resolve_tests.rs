#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that is left out says so"
)]

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[test]
fn a_name_counts_only_if_it_leads_back() {
    let name: Reverse = |_| Some("client.example".to_owned());
    let back: Forward = |_| vec![[192, 0, 2, 7].into(), V4];
    assert_eq!(verify(V4, name, back).as_deref(), Some("client.example"));
    assert_eq!(verify(V4, name, |_| vec![[192, 0, 2, 7].into()]), None);
    assert_eq!(verify(V4, name, |_| Vec::new()), None);
    assert_eq!(verify(V4, |_| None, back), None);
    assert_eq!(verify(V4, |ip| Some(ip.to_string()), back), None);
}

#[tokio::test]
async fn localhost_has_its_name() {
    let local: IpAddr = [127, 0, 0, 1].into();
    let name = verified_host_name(local, soon()).await;
    assert_eq!(name.as_deref(), Some("localhost"));
    let mapped: IpAddr = std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().into();
    assert_eq!(verified_host_name(mapped, soon()).await, name);
}

#[tokio::test(start_paused = true)]
async fn one_look_up_serves_all_for_a_while_whatever_it_found() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let resolver = Resolver::new(
        |_| {
            ASKED.fetch_add(1, Ordering::SeqCst);
            None
        },
        |_| Vec::new(),
    );
    let many = (0..100).map(|_| resolver.verified_host_name(V4, soon()));
    for name in futures_util::future::join_all(many).await {
        assert_eq!(name, None);
    }
    assert_eq!(ASKED.load(Ordering::SeqCst), 1);
    tokio::time::advance(REMEMBERED_FOR).await;
    assert_eq!(resolver.verified_host_name(V4, soon()).await, None);
    assert_eq!(ASKED.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_resolver_that_hangs_costs_the_deadline_and_bounded_threads() {
    static RUNNING: AtomicUsize = AtomicUsize::new(0);
    static RELEASE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let held = RELEASE.lock().await;
    let resolver = Resolver::new(
        |_| {
            RUNNING.fetch_add(1, Ordering::SeqCst);
            drop(RELEASE.blocking_lock());
            Some("slow.example".to_owned())
        },
        |_| (0..=255).map(|last| [192, 0, 2, last].into()).collect(),
    );
    let deadline = Instant::now() + Duration::from_millis(300);
    let ips = (0..100).map(|last| IpAddr::from([192, 0, 2, last]));
    let all = ips.map(|ip| resolver.verified_host_name(ip, deadline));
    let names = futures_util::future::join_all(all).await;
    assert!(names.iter().all(Option::is_none));
    assert!(RUNNING.load(Ordering::SeqCst) <= MAX_RUNNING);
    drop(held);
    // What was begun for somebody who has given up serves the next.
    let name = resolver.verified_host_name([192, 0, 2, 0].into(), soon()).await;
    assert_eq!(name.as_deref(), Some("slow.example"));
}

#[tokio::test]
async fn what_is_remembered_is_bounded() {
    let resolver = Resolver::new(|_| None, |_| Vec::new());
    for number in 0..3000_u32 {
        let ip = std::net::Ipv4Addr::from_bits(number).into();
        assert_eq!(resolver.verified_host_name(ip, soon()).await, None);
        assert!(lock(&resolver.known).len() <= MAX_REMEMBERED);
    }
}

/// The machine's own resolver with another `/etc/hosts`, in a mount namespace of this test's.
#[test]
fn the_hosts_file_decides() {
    const INSIDE: &str = "TRUNKLINE_TEST_HOSTS";
    if std::env::var_os(INSIDE).is_some() {
        let name = |ip: [u8; 4]| verify(ip.into(), host_name, addresses);
        assert_eq!(name([192, 0, 2, 1]).as_deref(), Some("one.example"));
        assert_eq!(name([192, 0, 2, 2]).as_deref(), Some("two.example"));
        assert_eq!(name([192, 0, 2, 3]), None, "its name is a number");
        assert_eq!(name([192, 0, 2, 9]), None);
        return;
    }
    let can = Command::new("unshare").args(["-m", "true"]).output();
    if !can.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: a mount namespace is not to be had here (root?)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    let lines = "192.0.2.1 one.example\n192.0.2.2 two.example alias.example\n192.0.2.3 192.0.2.3\n";
    std::fs::write(&hosts, lines).unwrap();
    // Nobody outside is asked.
    let switch = dir.path().join("nsswitch.conf");
    std::fs::write(&switch, "hosts: files\n").unwrap();
    let output = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c"])
        .arg("mount --bind \"$1\" /etc/hosts && mount --bind \"$2\" /etc/nsswitch.conf && exec \"$3\" --exact \"$4\"")
        .arg("sh")
        .args([&hosts, &switch])
        .arg(std::env::current_exe().unwrap())
        .arg("frontend::resolve::tests::the_hosts_file_decides")
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
