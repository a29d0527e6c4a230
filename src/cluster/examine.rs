//! `trunkline check --connect` and `trunkline doctor`: tries once everything that the router will
//! rely on: the source, the service account on every member, its rights, and the look-up of
//! verifiers. All places are asked at the same time, each within its time limit.

mod finding;
mod member;
mod room;
mod server;
mod source;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::{join, join_all};
use tokio::time::{Instant, timeout};

pub use self::finding::{Finding, ProbeOutcome};
use self::room::Wanted;
use super::lookup::{self, MembershipsQuery};
use super::patroni::{Patroni, TLS_FAILED, is_without_dcs, poll_once};
use super::service_account::ServiceAccount;
use super::snapshot::MemberName;
use super::state::Listed;
use super::switchover::LeaderAccess;
use super::{ClusterError, LookupError, etcd, fixed};
use crate::auth::rules::Memberships;
use crate::backend::TlsClient;
use crate::config::{self, Source};
use crate::tls::NO_TLS;

/// Time limit for the poll of all endpoints.
const POLL: Duration = Duration::from_secs(5);

/// The roles that a user is a member of, with one look-up.
pub async fn memberships(config: Arc<config::Cluster>, user: &[u8]) -> Result<Arc<Memberships>, LookupError> {
    let unavailable = |error: ClusterError| LookupError::Unavailable(error.to_string());
    let tls =
        TlsClient::new(&config.server_tls).map_err(|error| LookupError::Unavailable(error.to_string()))?;
    let mut ignored = Vec::new();
    let members = match Patroni::new(Arc::clone(&config)).map_err(unavailable)? {
        Some(patroni) => endpoints(patroni, &config, &mut ignored).await,
        None => listed(&config),
    };
    let account = Arc::new(ServiceAccount::new(config, tls));
    let mut last = LookupError::Unavailable("it has no member".to_owned());
    let query = MembershipsQuery {
        cache_ttl: Duration::ZERO,
    };
    for member in members {
        match lookup::once(&account, &member.host, member.port, &query, user).await {
            Ok(found) => return Ok(found),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// How much is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// What the router cannot work without: `trunkline check --connect`.
    Needed,
    /// And what would surprise somebody later: clocks, versions, settings, rules: `trunkline
    /// doctor`.
    All,
}

/// What was found in one cluster.
#[derive(Debug)]
pub struct Examination {
    pub findings: Vec<Finding>,
    /// Of the servers that answer, if all of them have the same.
    pub system_identifier: Option<u64>,
    /// The member that accepts writes, if there is one.
    pub leader: Option<MemberName>,
}

/// Examines one cluster. The timeouts of the configuration limit every step. `routes`: all there
/// are.
pub async fn examine(
    config: Arc<config::Cluster>,
    auth: &config::Auth,
    routes: impl Iterator<Item = &config::Route>,
    depth: Depth,
) -> Result<Examination, ClusterError> {
    let tls =
        TlsClient::new(&config.server_tls).map_err(|error| ClusterError::ServerTls(error.to_string()))?;
    let own: Vec<&config::Route> = routes.filter(|route| route.cluster == config.name).collect();
    let account = Arc::new(ServiceAccount::new(Arc::clone(&config), tls));
    let patroni = Patroni::new(Arc::clone(&config))?;
    let leader = match &config.source {
        Source::Patroni(_) => Some(LeaderAccess::new(Arc::clone(&account))?),
        Source::Servers(_) => None,
    };
    let wanted = Wanted::of(&config, own.iter().copied());
    let members = async {
        let mut findings = Vec::new();
        let members = match patroni {
            Some(patroni) => {
                let requests = patroni.requests();
                let (members, facts) =
                    join(endpoints(patroni, &config, &mut findings), requests.facts()).await;
                match depth {
                    Depth::All => findings.extend(source::findings(&config, &own, &facts, &members)),
                    // The router serves nobody then.
                    Depth::Needed => {
                        findings.extend(source::one_cluster(&config, &facts).filter(Finding::is_bad));
                    }
                }
                members
            }
            None => listed(&config),
        };
        let reachable: Vec<&Listed> = members.iter().filter(|member| !member.host.is_empty()).collect();
        let asked = reachable.iter().map(|member| {
            member::member(
                &account,
                member,
                auth,
                &wanted,
                (depth == Depth::All).then_some(&own[..]),
            )
        });
        let (mut seen, mut of_members) = (Vec::new(), Vec::new());
        for (member, (found, facts)) in reachable.iter().zip(join_all(asked).await) {
            of_members.extend(found);
            seen.extend(facts.map(|facts| (member.name.clone(), facts)));
        }
        if depth == Depth::All {
            findings.extend(server::agreement(&config, &seen));
        }
        (
            findings,
            of_members,
            server::identity(&seen),
            server::leader(&seen),
        )
    };
    let aside = async {
        let mut findings = Vec::new();
        for (endpoint, holder) in etcd::ask_all(Arc::clone(&config)).await? {
            findings.push(leader_key(&config, &endpoint, holder));
        }
        Ok::<_, ClusterError>(findings)
    };
    let switchover = async {
        let leader = leader.as_ref()?;
        let what = || format!("cluster {}: switchover", config.name);
        Some(timeout(POLL, leader.finding()).await.unwrap_or_else(|_| {
            Finding::remark(
                what(),
                "no Patroni says in time whether the router may switch over",
                "look at what is said of its endpoints",
            )
        }))
    };
    let (members, (aside, switchover)) = join(members, join(aside, switchover)).await;
    let (mut findings, of_members, system_identifier, leader) = members;
    findings.extend(aside?);
    findings.extend(switchover);
    findings.extend(of_members);
    Ok(Examination {
        findings,
        system_identifier,
        leader,
    })
}

/// Seconds since 1970 by this host's clock.
fn unix_now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_secs_f64()
}

/// Clocks that differ by more than this are remarked.
const CLOCKS: f64 = 2.0;

/// The finding about a clock that is `ahead` of this host's, in seconds; `within` is how well that
/// is known.
fn clock(what: String, ahead: f64, within: f64) -> Finding {
    let apart = ahead.abs();
    if apart <= CLOCKS + within {
        return Finding::good(
            what,
            format!("agrees with this host's clock, within {:.1} s", apart.max(0.1)),
        );
    }
    let side = if ahead > 0.0 { "ahead of" } else { "behind" };
    Finding::remark(
        what,
        format!("is {apart:.1} s {side} this host's clock"),
        "synchronise both (chrony, systemd-timesyncd): certificates, the times in logs and the ends of pauses depend on it",
    )
}

/// The endpoint answers, so the fault is in certificates, or in `http` and `https`.
const TLS_HINT: &str = "the endpoint answers, so the address is right: does it use `https://`, did an authority in \
                        `ca_file` sign its certificate, and is the certificate for the name in the address?";

/// Names the program that answers at an endpoint.
fn tls_hint(error: &str, program: &str) -> String {
    if error.contains(NO_TLS) {
        format!("the port answers without TLS: write http://, or switch on TLS in {program}")
    } else {
        TLS_HINT.to_owned()
    }
}

fn leader_key(
    config: &config::Cluster,
    endpoint: &str,
    holder: Result<Option<MemberName>, String>,
) -> Finding {
    let what = format!("cluster {}: etcd at {endpoint}", config.name);
    match holder {
        Ok(Some(name)) => Finding::good(what, format!("{name} holds the leader key")),
        Ok(None) => Finding::bad(
            what,
            "no member holds the leader key",
            "do `namespace` and `scope` match Patroni's configuration? With Citus the scope is SCOPE/GROUP, as `main/0`",
        ),
        Err(error) => {
            let hint = if error.starts_with(TLS_FAILED) {
                tls_hint(&error, "etcd")
            } else {
                "is the address right, and may the user read the cluster's keys?".to_owned()
            };
            Finding::bad(what, error, hint)
        }
    }
}

/// The members of a fixed list.
fn listed(config: &config::Cluster) -> Vec<Listed> {
    match &config.source {
        Source::Servers(servers) => fixed::report(servers).members,
        Source::Patroni(_) => Vec::new(),
    }
}

async fn endpoints(
    mut patroni: Patroni,
    config: &config::Cluster,
    findings: &mut Vec<Finding>,
) -> Vec<Listed> {
    let names = patroni.endpoints().to_vec();
    let replies = poll_once(&mut patroni, Instant::now() + POLL).await;
    let mut members = Vec::new();
    for (name, reply) in names.iter().zip(replies) {
        let what = format!("cluster {}: Patroni at {name}", config.name);
        match reply {
            Some(Ok(report)) => {
                findings.push(Finding::good(what, format!("{} members", report.members.len())));
                if members.is_empty() {
                    members = report.members;
                }
            }
            Some(Err(error)) => {
                let hint = if error.starts_with(TLS_FAILED) {
                    tls_hint(&error, "Patroni")
                } else if is_without_dcs(&error) {
                    "Patroni runs there, and cannot read its DCS: is etcd (or Consul, ZooKeeper) up, and can that host reach it?"
                        .to_owned()
                } else {
                    "is Patroni running there, and is the address right?".to_owned()
                };
                findings.push(Finding::bad(what, error, hint));
            }
            None => findings.push(Finding::bad(
                what,
                "no answer in time",
                "is Patroni running there, and can this host reach it?",
            )),
        }
    }
    members
}
