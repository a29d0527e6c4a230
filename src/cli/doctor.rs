//! `trunkline doctor -c FILE`: everything that a start needs, and what would surprise somebody
//! later: the configuration, its files, this host, the names, the certificates, the peers, and each
//! cluster with all its servers.
//!
//! Guarantees: it changes nothing; each finding is one line, and says what to do; all places are
//! asked at the same time, so one that is dead delays it by its own time limit only. It may run
//! before a start and beside the running router.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command's answer to the person who runs it"
)]

mod certificates;
mod directories;
mod files;
mod holder;
mod host;
mod ldap;
mod memory;
mod names;
mod peers;
mod place;
mod ports;
mod unit;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use futures_util::future::{join, join_all, join3};
use serde_json::{Value, json};

use self::peers::Identity;
use self::place::Place;
use super::plain::plain_json;
use super::words::counted;
use crate::auth::scram::MockSecret;
use crate::cluster::examine::{Depth, Examination, Finding, ProbeOutcome, examine};
use crate::config::{self, Config, ConfigError};
use crate::frontend::auth_policy::{AuthPolicy, PolicyContext};
use crate::wire::text::is_unsafe;

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// The user that the router runs as. Otherwise that of the running router, of the unit, or of
    /// this command.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The unit of the service. Otherwise trunkline.service, where systemd looks for it, if it
    /// starts the router with this configuration.
    #[arg(long, value_name = "FILE")]
    unit: Option<PathBuf>,
    /// Print only warnings, failures, what was skipped, and the last line.
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

/// 0: nothing fails. 1: something does.
pub(super) fn run(command: &Doctor) -> ExitCode {
    let findings = match findings(command) {
        Ok(findings) => findings,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::FAILURE;
        }
    };
    let count = |level: &str| findings.iter().filter(|finding| word(finding) == level).count();
    let fails = count("fail");
    if command.json {
        println!(
            "{}",
            plain_json(format_args!("{:#}", document(&findings, fails == 0)))
        );
    } else {
        for finding in &findings {
            if !command.quiet || matches!(word(finding), "warn" | "fail" | "skip") {
                println!("{}", line(finding));
            }
        }
        println!(
            "{}: {} ok, {}, {}, {}, {} skipped",
            command.config.display(),
            count("ok"),
            counted(count("note"), "note"),
            counted(count("warn"), "warning"),
            counted(fails, "failure"),
            count("skip")
        );
    }
    if fails == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// # Errors
/// The command line names a user or a unit that is not there; in words.
fn findings(command: &Doctor) -> Result<Vec<Finding>, String> {
    let path = &command.config;
    let config = match config::load(path) {
        Ok(config) => config,
        Err(errors) => {
            let mut findings: Vec<Finding> = errors.iter().map(fault).collect();
            findings.push(Finding::untried(
                "everything else".to_owned(),
                "it needs a configuration without errors",
            ));
            return Ok(findings);
        }
    };
    let place = Place::find(&config, command.user.as_deref(), command.unit.as_deref())?;
    let mut findings = vec![Finding::good(
        format!("configuration {}", path.display()),
        "has no errors",
    )];
    findings.extend(warnings(&config));
    let (of_access, policy) = access(&config);
    findings.extend(of_access);
    findings.push(place.finding());
    findings.extend(files::findings(&config, &place));
    findings.extend(directories::findings(&config, &place));
    findings.extend(ports::findings(&config, &place));
    findings.extend(host::findings(&config, &place));
    findings.push(memory::finding(&config, &place));
    findings.extend(place.unit_findings(&config));
    findings.extend(certificates::findings(&config));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let asked = runtime.block_on(async {
        let elsewhere = join3(
            names::findings(&config),
            peers::findings(&config),
            ldap::findings(&config, policy.as_ref()),
        );
        let ((names, peers, ldap), (clusters, identities)) = join(elsewhere, clusters(&config)).await;
        // What a cluster is shows only when its servers have answered.
        let of_peers = peers::clusters(&config, &identities).await;
        [names, ldap, peers, of_peers, clusters].concat()
    });
    // A name service that does not answer is not waited for.
    runtime.shutdown_background();
    findings.extend(asked);
    Ok(findings)
}

fn fault(error: &ConfigError) -> Finding {
    let line = error.line.map(|line| format!(":{line}")).unwrap_or_default();
    let mut what = format!("configuration {}{line}", error.file.display());
    if !error.path.is_empty() {
        what = format!("{what}: {}", error.path);
    }
    let hint = error.hint.clone();
    let hint = hint.unwrap_or_else(|| {
        let hint = if error.message.starts_with("unknown key") {
            "remove this key; docs/configuration.md lists those that there are"
        } else if error.path.is_empty() {
            "correct this file; docs/configuration.md describes it"
        } else {
            "correct this key; docs/configuration.md describes it"
        };
        hint.to_owned()
    });
    Finding::bad(what, &error.message, hint)
}

fn warnings(config: &Config) -> impl Iterator<Item = Finding> {
    let about = format!("configuration {}", config.path.display());
    let own = certificates::paths(config);
    let all = config.warnings().into_iter();
    // The lines of the certificate and of the directories say it.
    let others = all.filter(move |warning| {
        !warning.contains("the router does not start without it")
            && !own
                .iter()
                .any(|path| warning.starts_with(&format!("{path}: certificate 1 expires")))
    });
    others.map(move |warning| Finding::remark(about.clone(), warning, "change it if it is not meant"))
}

/// The rules and users of clients' logins.
fn access(config: &Config) -> (Vec<Finding>, Option<AuthPolicy>) {
    let around = PolicyContext::of(config);
    let what = || "rules for clients' logins".to_owned();
    match AuthPolicy::load(&config.auth, around, &MockSecret::new(None)) {
        Ok(policy) => {
            let mut findings = vec![Finding::good(what(), "have no errors")];
            let warnings = policy.warnings(around).into_iter();
            findings.extend(
                warnings.map(|warning| Finding::remark(what(), warning, "remove or change the rule")),
            );
            (findings, Some(policy))
        }
        Err(errors) => {
            let lines = errors.lines.into_iter();
            let hint = "correct the line; docs/authentication.md describes the rules";
            (lines.map(|line| Finding::bad(what(), line, hint)).collect(), None)
        }
    }
}

async fn clusters(config: &Config) -> (Vec<Finding>, Vec<Identity>) {
    let each = config.clusters.values().map(|cluster| async {
        let routes = config.routes.values().map(|route| &**route);
        let examined = examine(Arc::clone(cluster), &config.auth, routes, Depth::All).await;
        match examined {
            Ok(Examination {
                findings,
                system_identifier,
                leader,
            }) => {
                let identity = system_identifier.map(|system_identifier| Identity {
                    cluster: Arc::clone(&cluster.name),
                    system_identifier,
                    leader,
                });
                (findings, identity)
            }
            Err(error) => {
                let what = format!("cluster {}", cluster.name);
                let finding = Finding::bad(what, error, "correct the cluster's settings of TLS");
                (vec![finding], None)
            }
        }
    });
    let (findings, identities): (Vec<Vec<Finding>>, Vec<Option<Identity>>) =
        join_all(each).await.into_iter().unzip();
    (findings.concat(), identities.into_iter().flatten().collect())
}

fn word(finding: &Finding) -> &'static str {
    match finding.outcome {
        ProbeOutcome::Good(_) => "ok",
        ProbeOutcome::Note(_) => "note",
        ProbeOutcome::Remark { .. } => "warn",
        ProbeOutcome::Bad { .. } => "fail",
        ProbeOutcome::Untried(_) => "skip",
    }
}

/// What was found, and what to do.
fn told(finding: &Finding) -> (&str, Option<&str>) {
    match &finding.outcome {
        ProbeOutcome::Good(found) | ProbeOutcome::Note(found) | ProbeOutcome::Untried(found) => (found, None),
        ProbeOutcome::Remark { found, hint } | ProbeOutcome::Bad { error: found, hint } => {
            (found, Some(hint))
        }
    }
}

/// One line: no character of a server's text breaks it, or hides anything.
fn line(finding: &Finding) -> String {
    let (found, hint) = told(finding);
    let hint = hint.map(|hint| format!("; hint: {hint}")).unwrap_or_default();
    let text = format!("{:<4}  {}: {found}{hint}", word(finding), finding.what);
    text.replace(is_unsafe, " ")
}

fn document(findings: &[Finding], is_well: bool) -> Value {
    let each: Vec<Value> = findings
        .iter()
        .map(|finding| {
            let (found, hint) = told(finding);
            json!({"level": word(finding), "about": finding.what, "found": found, "hint": hint})
        })
        .collect();
    json!({"result": if is_well { "ok" } else { "fail" }, "findings": each})
}

/// A file of a few bytes, as the kernel's settings are.
fn read_small(path: impl AsRef<Path>) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hints for the errors of a file.
    fn hints(path: &Path) -> Vec<String> {
        let errors = config::load(path).expect_err("it has errors");
        let findings = errors.iter().map(fault);
        findings
            .map(|finding| told(&finding).1.unwrap_or_default().to_owned())
            .collect()
    }

    #[test]
    fn a_fault_of_the_configuration_has_the_hint_that_fits() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("trunkline.yaml");
        assert_eq!(hints(&path), ["create it, or correct its name"]);
        assert_eq!(
            hints(directory.path()),
            ["correct this file; docs/configuration.md describes it"]
        );
        let hints_of = |text: &str| {
            std::fs::write(&path, text).expect("written");
            hints(&path)
        };
        let rest = "clusters: {main: {members: [{name: a, host: a}]}}\n";
        for (text, hint) in [
            ("workers: 1\nworkers: 2\n", "remove one of the two"),
            ("zzz: 1\n", "remove this key; docs/configuration.md lists"),
            ("worker: 1\n", "did you mean `workers`?"),
            (
                "workers: many\n",
                "correct this key; docs/configuration.md describes it",
            ),
            ("http: {token_file: gone}\n", "create it, or correct its name"),
        ] {
            let hints = hints_of(&format!("{text}{rest}"));
            assert!(hints[0].starts_with(hint), "{text}: {hints:?}");
        }
    }

    #[test]
    fn a_finding_is_one_line_with_its_hint() {
        let bad = Finding::bad("port *:1".to_owned(), "in\nuse", "stop it");
        assert_eq!(line(&bad), "fail  port *:1: in use; hint: stop it");
        let good = Finding::good("port *:1".to_owned(), "free");
        assert_eq!(line(&good), "ok    port *:1: free");
        let document = document(&[bad, good], false);
        assert_eq!(document["result"], "fail");
        assert_eq!(
            document["findings"][0],
            json!({"level": "fail", "about": "port *:1", "found": "in\nuse", "hint": "stop it"})
        );
        assert_eq!(document["findings"][1]["hint"], Value::Null);
    }
}
