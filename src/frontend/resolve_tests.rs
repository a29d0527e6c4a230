#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a skipped test reports it"
)]

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[test]
fn a_name_counts_only_if_it_resolves_back() {
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
    assert_eq!(name, Ok(Some("localhost".to_owned())));
    let mapped: IpAddr = Ipv4Addr::LOCALHOST.to_ipv6_mapped().into();
    assert_eq!(verified_host_name(mapped, soon()).await, name);
}

#[tokio::test(start_paused = true)]
async fn one_look_up_serves_all_logins_for_a_while_with_or_without_a_name() {
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
        assert_eq!(name, Ok(None));
    }
    assert_eq!(ASKED.load(Ordering::SeqCst), 1);
    tokio::time::advance(REMEMBERED_FOR).await;
    assert_eq!(resolver.verified_host_name(V4, soon()).await, Ok(None));
    assert_eq!(ASKED.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_resolver_that_hangs_costs_the_deadline_and_a_limited_number_of_threads() {
    static RUNNING: AtomicUsize = AtomicUsize::new(0);
    static RELEASE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let held = RELEASE.lock().await;
    let resolver = Resolver::new(
        |_| {
            RUNNING.fetch_add(1, Ordering::SeqCst);
            drop(RELEASE.blocking_lock());
            Some("slow.example".to_owned())
        },
        |_| {
            (0..=255)
                .map(|last| [192, 0, if last < 100 { 2 } else { last }, last].into())
                .collect()
        },
    );
    let deadline = Instant::now() + Duration::from_millis(300);
    // Half of the addresses are in one network.
    let ips = (0..200).map(|last| IpAddr::from([192, 0, if last < 100 { 2 } else { last }, last]));
    let all = ips.map(|ip| resolver.verified_host_name(ip, deadline));
    let names = futures_util::future::join_all(all).await;
    assert!(names.iter().all(|name| !matches!(name, Ok(Some(_)))));
    assert_eq!(RUNNING.load(Ordering::SeqCst), MAX_RUNNING);
    // Addresses that were not looked up do not count as addresses without a name. One network gets
    // only its share.
    let busy = |names: &[Result<_, _>]| names.iter().filter(|name| **name == Err(Busy)).count();
    assert_eq!(busy(&names), 200 - MAX_RUNNING);
    assert_eq!(busy(&names[..100]), 100 - MAX_RUNNING_OF_NETWORK);
    drop(held);
    // A look-up whose client has given up serves the next client.
    let name = resolver.verified_host_name([192, 0, 2, 0].into(), soon()).await;
    assert_eq!(name, Ok(Some("slow.example".to_owned())));
}

#[tokio::test]
async fn the_number_of_remembered_answers_is_limited() {
    let resolver = Resolver::new(|_| None, |_| Vec::new());
    for number in 0..2 * u32::try_from(MAX_REMEMBERED).unwrap() {
        let ip = Ipv4Addr::from_bits(number).into();
        assert_eq!(resolver.verified_host_name(ip, soon()).await, Ok(None));
        let known = lock(&resolver.known);
        assert!(known.answers.len() <= MAX_REMEMBERED && known.running.len() <= MAX_RUNNING);
    }
}

/// The resolver stops answering. An address with a known name keeps it, and its logins do not wait.
#[tokio::test(start_paused = true)]
async fn the_last_name_counts_while_the_resolver_is_silent() {
    static IS_SILENT: AtomicUsize = AtomicUsize::new(0);
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let resolver = Resolver::new(
        |_| {
            ASKED.fetch_add(1, Ordering::SeqCst);
            (IS_SILENT.load(Ordering::SeqCst) == 0).then(|| "client.example".to_owned())
        },
        |_| vec![V4],
    );
    let name = Ok(Some("client.example".to_owned()));
    assert_eq!(resolver.verified_host_name(V4, soon()).await, name);
    IS_SILENT.store(1, Ordering::SeqCst);
    // A look-up that ends after ten seconds without an answer.
    let ten_seconds_ago = Instant::now();
    tokio::time::advance(REMEMBERED_FOR).await;
    assert_eq!(
        lock(&resolver.known).store(V4, None, ten_seconds_ago),
        name.clone().unwrap()
    );
    for _ in 0..100 {
        assert_eq!(resolver.verified_host_name(V4, soon()).await, name);
    }
    assert_eq!(ASKED.load(Ordering::SeqCst), 1, "not asked again for a while");
    // A quick result without a name is an answer.
    tokio::time::advance(SILENT_FOR).await;
    assert_eq!(resolver.verified_host_name(V4, soon()).await, Ok(None));
    // An address without a last name does not cost ten seconds each time either.
    let other = IpAddr::from([192, 0, 2, 2]);
    let before = Instant::now();
    tokio::time::advance(REMEMBERED_FOR).await;
    assert_eq!(lock(&resolver.known).store(other, None, before), None);
    assert_eq!(resolver.verified_host_name(other, soon()).await, Ok(None));
    assert_eq!(ASKED.load(Ordering::SeqCst), 2);
}

/// A client whose name is known waits only briefly for a look-up that hangs.
#[tokio::test]
async fn a_look_up_that_hangs_delays_no_client_with_a_known_name() {
    static RELEASE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let held = RELEASE.lock().await;
    let resolver = Resolver::new(
        |_| {
            drop(RELEASE.blocking_lock());
            None
        },
        |_| Vec::new(),
    );
    let now = Instant::now();
    let answer = ResolverAnswer {
        name: Some("client.example".to_owned()),
        answered: now,
        fresh_until: now,
    };
    lock(&resolver.known).answers.insert(V4, answer);
    let name = resolver.verified_host_name(V4, soon()).await;
    assert_eq!(name, Ok(Some("client.example".to_owned())));
    assert!(now.elapsed() < SILENT_AFTER, "{:?}", now.elapsed());
    drop(held);
}

/// The host's resolver with another `/etc/hosts`, in a separate mount namespace.
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
        eprintln!("SKIPPED: this user cannot create a mount namespace (root?)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    let lines = "192.0.2.1 one.example\n192.0.2.2 two.example alias.example\n192.0.2.3 192.0.2.3\n";
    std::fs::write(&hosts, lines).unwrap();
    // No name server is asked.
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
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && printed.contains("1 passed"),
        "{printed}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
