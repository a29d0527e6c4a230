//! The page in a real browser, through a real switchover.

use std::process::Command;
use std::time::Duration;

use super::cluster::{Cluster, Options, Router, eventually, output, pause, project, secret, succeed};
use super::orders::TOKEN;
use super::writers::Writers;

#[test]
fn an_operator_sees_a_switchover_on_the_page_and_gives_orders_there() {
    // Installed in the meantime, if they are not there.
    succeed(Command::new(project().join("scripts/ui")).arg("--tools"));
    let cluster = Cluster::start("127.0.94.11", 15130, &["--loop-wait", "2", "--ttl", "20"]);
    let dir = tempfile::tempdir().unwrap();
    let router = Router::before(
        &cluster,
        Options {
            extra: "routes:\n  read-write: {targets: [leader], pool: {mode: transaction, max_connections: 20}}\n  \
                    read-only: {targets: [replica]}\n"
                .to_owned(),
            http: format!("token_file: {}", secret(dir.path(), "token", TOKEN).display()),
            ..Options::default()
        },
    );
    let writers = Writers::start(router.address, 4);
    if let Some(minutes) = std::env::var("PAGE_MINUTES")
        .ok()
        .and_then(|minutes| minutes.parse().ok())
    {
        // For charts on pictures.
        pause(Duration::from_mins(minutes));
    }
    eventually("the charts begin", Duration::from_secs(30), || {
        router.http("/api/v1/history").is_some_and(|(_, history)| {
            !history.contains("\"number\":1,") && !history.contains("\"number\":0,")
        })
    });
    let page = output(
        Command::new("node")
            .arg(project().join("ui/test/browser.mjs"))
            .env("PAGE_URL", format!("http://{}:6434/ui", router.address))
            .env("PAGE_TOKEN", TOKEN),
    );
    let said = [page.stdout, page.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(page.status.success(), "{said}\n{}", router.log());
    eprintln!("{said}");
    writers.await_more(20);
    drop(writers.stop());
}
