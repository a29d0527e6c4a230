//! `trunkline hba -c FILE --user U --database D --address A`: which rule decides about a client,
//! and why the ones before it do not.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command's answer to the person who runs it"
)]

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use tokio::time::Instant;

use crate::auth::rules::{
    AddressMatch, Column, Connection, Considered, Facts, HostName, Interface, Known, Memberships, Method,
    Need, Origin, Rule, RuleVerdict,
};
use crate::auth::scram::MockSecret;
use crate::cluster;
use crate::config::{self, Cluster, Config};
use crate::frontend::auth_policy::{AuthPolicy, PolicyContext};
use crate::frontend::{interfaces, resolve};
use crate::wire::startup::Replication;

/// For the look-up of a host name.
const PATIENCE: Duration = Duration::from_secs(5);

/// The client in question.
#[derive(Debug, Args)]
pub(super) struct Client {
    /// The user's name, as the client gives it.
    #[arg(short, long)]
    user: String,
    /// The database; without it, the one named like the user.
    #[arg(short, long)]
    database: Option<String>,
    /// The client's address, or `local` for a Unix socket.
    #[arg(short, long, default_value = "local", value_name = "ADDRESS|local")]
    address: String,
    /// The client connects with TLS.
    #[arg(long, alias = "tls")]
    ssl: bool,
    /// The client asks for physical replication.
    #[arg(long)]
    replication: bool,
    /// A role that the user is a member of, instead of asking the cluster; can be repeated.
    #[arg(long, value_name = "ROLE")]
    member_of: Vec<String>,
    /// The client's host name, instead of a look-up.
    #[arg(long, value_name = "NAME")]
    host_name: Option<String>,
    /// The cluster to ask for memberships; without it, the first.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
}

/// Exit code 0 where a rule lets it try, 1 where it is refused or nothing can be said.
pub(super) fn run(path: &Path, client: &Client) -> ExitCode {
    match answer(path, client) {
        Ok((text, may_try)) => {
            print!("{text}");
            if may_try {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn answer(path: &Path, client: &Client) -> Result<(String, bool), String> {
    let config = config::load(path).map_err(|errors| errors.to_string())?;
    if let Some(name) = &client.cluster {
        cluster_named(&config, name)?;
    }
    let access = AuthPolicy::load(&config.auth, PolicyContext::of(&config), &MockSecret::new(None))
        .map_err(|errors| errors.to_string())?;
    let origin = match client.address.as_str() {
        "local" => Origin::Local,
        address => Origin::Tcp(
            address
                .parse::<IpAddr>()
                .map_err(|_| format!("\"{address}\" is not an IP address; use `local` for a Unix socket"))?
                .to_canonical(),
        ),
    };
    if origin == Origin::Local && client.ssl {
        return Err("there is no TLS on a Unix socket: give --address".to_owned());
    }
    let facts = Facts {
        user: client.user.as_bytes(),
        database: client.database.as_ref().unwrap_or(&client.user).as_bytes(),
        replication: if client.replication {
            Replication::Physical
        } else {
            Replication::None
        },
        origin,
        tls: client.ssl,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let told = runtime.block_on(considered(&config, &access, client, &facts));
    runtime.shutdown_background();
    told
}

/// What has been looked up.
#[derive(Default)]
struct LookedUp {
    memberships: Option<Arc<Memberships>>,
    host_name: Option<HostName>,
    interfaces: Vec<Interface>,
}

async fn considered(
    config: &Config,
    access: &AuthPolicy,
    client: &Client,
    facts: &Facts<'_>,
) -> Result<(String, bool), String> {
    let mut found = LookedUp::default();
    if !client.member_of.is_empty() {
        let own = [Bytes::copy_from_slice(client.user.as_bytes())];
        let others = client
            .member_of
            .iter()
            .map(|role| Bytes::copy_from_slice(role.as_bytes()));
        found.memberships = Some(Arc::new(Memberships::new(own.into_iter().chain(others))));
    }
    found.host_name = client.host_name.clone().map(HostName::Verified);
    if access.rules.ask_for_interfaces() {
        let own = interfaces::interfaces().map_err(|error| format!("this host's own addresses: {error}"))?;
        let interface = |(address, netmask)| Interface { address, netmask };
        found.interfaces = own.into_iter().map(interface).collect();
    }
    loop {
        let known = Known {
            memberships: found.memberships.as_deref(),
            host_name: found.host_name.as_ref(),
            interfaces: &found.interfaces,
        };
        let all = access.rules.describe(facts, &known);
        match all
            .iter()
            .map(|one| one.verdict)
            .find(|verdict| !matches!(verdict, RuleVerdict::Differs(_)))
        {
            Some(RuleVerdict::Needs(Need::Memberships)) => {
                found.memberships = Some(memberships(config, client).await?);
            }
            Some(RuleVerdict::Needs(Need::HostName)) => {
                found.host_name = Some(host_name(facts.origin).await);
            }
            _ => return Ok(told(&all, facts, access, found.host_name.as_ref())),
        }
    }
}

fn cluster_named<'c>(config: &'c Config, name: &str) -> Result<&'c Arc<Cluster>, String> {
    config.clusters.get(name).ok_or_else(|| {
        let names: Vec<&str> = config.clusters.keys().map(String::as_str).collect();
        format!(
            "the configuration has no cluster \"{name}\"; it has: {}",
            names.join(", ")
        )
    })
}

async fn memberships(config: &Config, client: &Client) -> Result<Arc<Memberships>, String> {
    let cluster = match &client.cluster {
        Some(name) => cluster_named(config, name)?,
        None => config
            .clusters
            .values()
            .next()
            .ok_or("the configuration has no cluster")?,
    };
    cluster::examine::memberships(Arc::clone(cluster), client.user.as_bytes())
        .await
        .map_err(|error| {
            format!(
                "a rule needs the roles of \"{}\", and cluster {} cannot be asked: {error}\n(or give them with --member-of ROLE)",
                client.user, cluster.name
            )
        })
}

async fn host_name(origin: Origin) -> HostName {
    let Origin::Tcp(address) = origin else {
        return HostName::Unknown;
    };
    match resolve::verified_host_name(address, Instant::now() + PATIENCE).await {
        Ok(Some(name)) => HostName::Verified(name),
        Ok(None) | Err(_) => HostName::Unknown,
    }
}

/// The rules up to the one that decides, each with why; and whether the client may try.
fn told(
    all: &[Considered<'_>],
    facts: &Facts<'_>,
    access: &AuthPolicy,
    host_name: Option<&HostName>,
) -> (String, bool) {
    let mut text = String::new();
    let rows = access.rules.rows();
    // Writing to a String does not fail.
    for (one, row) in all.iter().zip(&rows) {
        let why = match one.verdict {
            RuleVerdict::Matches => "decides".to_owned(),
            RuleVerdict::Differs(column) => why(one.rule, column, facts, host_name),
            RuleVerdict::Needs(_) => "cannot be decided".to_owned(),
        };
        let _ = writeln!(text, "{}: {row}\n    {why}", one.rule.place);
        if one.verdict != RuleVerdict::Matches {
            continue;
        }
        if one.rule.method == Method::Reject {
            let _ = writeln!(text, "refused: {}", facts.rejected().message);
            return (text, false);
        }
        let _ = writeln!(text, "authenticates by {}", one.rule.method.word());
        let _ = writeln!(text, "{}", server_login(facts, access));
        return (text, true);
    }
    let _ = writeln!(text, "refused: {}", facts.no_entry().message);
    (text, false)
}

fn why(rule: &Rule, column: Column, facts: &Facts<'_>, host_name: Option<&HostName>) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match column {
        Column::Type => match rule.connection {
            Connection::Local => "only for Unix sockets",
            _ if facts.origin == Origin::Local => "not for Unix sockets",
            Connection::HostGssEnc => "only for GSSAPI encryption, which the router does not offer",
            Connection::HostSsl => "only for connections by TLS",
            Connection::Host | Connection::HostNoSsl | Connection::HostNoGssEnc => {
                "not for connections by TLS"
            }
        }
        .to_owned(),
        Column::Address => {
            let Origin::Tcp(address) = facts.origin else {
                return "not for Unix sockets".to_owned();
            };
            match (&rule.address, host_name) {
                (AddressMatch::Host(_), Some(HostName::Verified(name))) => {
                    format!("not for address {address}, host {name}")
                }
                (AddressMatch::Host(_), _) => {
                    format!("not for address {address}, whose host name is not known or not confirmed")
                }
                _ => format!("not for address {address}"),
            }
        }
        Column::Database if facts.replication == Replication::Physical => {
            "not for physical replication".to_owned()
        }
        Column::Database => format!("not for database {}", text(facts.database)),
        Column::User => format!("not for user {}", text(facts.user)),
    }
}

fn server_login(facts: &Facts<'_>, access: &AuthPolicy) -> String {
    let own_name = String::from_utf8_lossy(facts.user);
    match access.credentials.find(facts.user) {
        None => format!("logs into the servers as user {own_name}, with the client's own key"),
        Some(entry) => {
            let user = match &entry.server_user {
                Some(user) => format!("as user {user}"),
                None => format!("as user {own_name}"),
            };
            format!("logs into the servers {user}, by {}", entry.path)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const CONFIG: &str = "clusters:\n  main:\n    servers: [{name: a, host: 127.0.0.1, port: 1}]\n    \
                          service_account: {user: trunkline, timeout: 200ms}\nauth: {hba_file: pg_hba.conf}\n";

    fn client(user: &str, address: &str) -> Client {
        Client {
            user: user.to_owned(),
            database: Some("shop".to_owned()),
            address: address.to_owned(),
            ssl: false,
            replication: false,
            member_of: Vec::new(),
            host_name: None,
            cluster: None,
        }
    }

    fn asked(rules: &str, client: &Client) -> Result<(String, bool), String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trunkline.yaml");
        std::fs::write(&path, CONFIG).unwrap();
        std::fs::write(directory.path().join("pg_hba.conf"), rules).unwrap();
        answer(&path, client)
    }

    const RULES: &str = "local all all scram-sha-256\nhost other all all reject\nhost all evil all reject\n\
                         host all +staff 10.0.0.0/8 md5\nhost all all .example.org password\n";

    #[test]
    fn it_says_which_line_decides_and_why_the_others_do_not() {
        let (text, may_try) = asked(RULES, &client("evil", "10.1.2.3")).unwrap();
        assert!(!may_try);
        let lines: Vec<&str> = text
            .lines()
            .map(|line| line.rsplit('/').next().unwrap())
            .collect();
        assert_eq!(
            lines,
            [
                "pg_hba.conf:1: local all all scram-sha-256",
                "    only for Unix sockets",
                "pg_hba.conf:2: host other all all reject",
                "    not for database shop",
                "pg_hba.conf:3: host all evil all reject",
                "    decides",
                "refused: pg_hba.conf rejects connection for host \"10.1.2.3\", user \"evil\", database \"shop\", no encryption",
            ]
        );
        let (text, may_try) = asked(RULES, &client("app", "local")).unwrap();
        assert!(
            may_try
                && text.contains("authenticates by scram-sha-256\n")
                && text.contains("logs into the servers as user app, with the client's own key"),
            "{text}"
        );
    }

    #[test]
    fn what_is_given_is_not_looked_up() {
        let member = Client {
            member_of: vec!["staff".to_owned()],
            ..client("app", "10.1.2.3")
        };
        let (text, may_try) = asked(RULES, &member).unwrap();
        assert!(may_try && text.contains("authenticates by md5\n"), "{text}");
        let named = Client {
            host_name: Some("a.Example.org".to_owned()),
            ..client("app", "192.0.2.1")
        };
        let (text, may_try) = asked(RULES, &named).unwrap();
        assert!(may_try && text.contains("authenticates by password\n"), "{text}");
    }

    #[test]
    fn what_cannot_be_looked_up_is_said() {
        let problem = asked(RULES, &client("app", "10.1.2.3")).unwrap_err();
        assert!(
            problem.contains("a rule needs the roles of \"app\"") && problem.contains("--member-of"),
            "{problem}"
        );
        let problem = asked("host all all all gss\n", &client("app", "10.1.2.3")).unwrap_err();
        assert!(
            problem.contains("pg_hba.conf:1: ") && problem.contains("gss"),
            "{problem}"
        );
        assert!(asked(RULES, &client("app", "nowhere")).is_err());
        let elsewhere = Client {
            cluster: Some("x".to_owned()),
            ..client("app", "local")
        };
        let problem = asked(RULES, &elsewhere).unwrap_err();
        assert_eq!(problem, "the configuration has no cluster \"x\"; it has: main");
    }
}
