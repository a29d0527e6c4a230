//! Asks the leader's own Patroni for the status of its server (`GET /patroni`), while a switchover
//! may begin: one request at a time, at the interval that the state asks for, with a short time
//! limit.
//!
//! The leader's Patroni is asked at the address that Patroni itself gives for it (`api_url`). An
//! address with another scheme than the configured endpoints is not asked, and only these get the
//! password. If nothing answers there, the configured endpoint that says that it is the leader's is
//! asked.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::metrics::{Metrics, ProbeResult};
use super::patroni::Requests;
use super::state::{Observation, StatusLook};

/// After so many failures in a row the endpoint is looked for again.
const FAILURES: u32 = 3;

/// Runs until the receiver of the observations is dropped.
pub(super) async fn run(
    requests: Requests,
    mut wanted: watch::Receiver<Option<StatusLook>>,
    observations: mpsc::Sender<Observation>,
    metrics: Arc<Metrics>,
    cluster: Arc<str>,
) {
    let mut url = None;
    let mut failures = 0;
    let mut last = None;
    loop {
        let look = wanted.borrow_and_update().clone();
        let Some(look) = look else {
            url = None;
            if wanted.changed().await.is_err() {
                return;
            }
            continue;
        };
        if last.as_ref() != Some(&look.member) || failures >= FAILURES {
            url = None;
            failures = 0;
        }
        last = Some(look.member.clone());
        let started = Instant::now();
        let status = match &url {
            Some(url) => requests.status(url, &look).await,
            None => requests.find(&look).await.map(|(found, status)| {
                url = Some(found);
                status
            }),
        };
        let outcome = if status.is_some() {
            failures = 0;
            ProbeResult::Success
        } else {
            failures += 1;
            ProbeResult::Failure
        };
        metrics.looked(&cluster, outcome);
        let observation = Observation::Status {
            member: look.member,
            started,
            status,
        };
        if observations.send(observation).await.is_err() {
            return;
        }
        sleep_until(started + look.every).await;
    }
}
