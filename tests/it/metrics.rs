//! Metrics, as Prometheus and its tools see them: their names, the alerts and the dashboard that
//! ask for them, and a Prometheus that scrapes a running router.
#![allow(clippy::unwrap_used)]

mod promql;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, Options, Router, eventually, fresh_address, output, project, succeed};

/// For a Prometheus that starts beside other tests.
const SOON: Duration = Duration::from_secs(60);

fn rules_directory() -> PathBuf {
    project().join("config/prometheus")
}

fn document() -> String {
    fs::read_to_string(project().join("docs/metrics.md")).unwrap()
}

/// A router with a pool, which has done some of everything.
fn busy() -> Router {
    let router = Router::before(
        Cluster::shared(),
        Options {
            extra: "routes:\n  read-write: {targets: [leader], pool: {mode: transaction}}\n  \
                    read-only: {targets: [replica]}\n"
                .to_owned(),
            ..Options::default()
        },
    );
    assert_eq!(router.psql(6432, "SELECT 1"), "1");
    assert_eq!(router.psql(6433, "SELECT 1"), "1");
    router.psql_output(6432, "", "SELECT 1/0");
    router.psql_output(6433, "", "SELECT 1/0");
    router.psql_output(6432, "password=wrong", "SELECT 1");
    router
}

/// The samples' names with the labels that each has.
fn samples(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut samples: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let labels = samples.entry(name.to_owned()).or_default();
        let inside = line.split_once('{').map_or("", |(_, rest)| rest);
        for part in inside.split("=\"").filter(|_| !inside.is_empty()) {
            let label = part.rsplit([',', '"']).next().unwrap();
            if !label.is_empty()
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            {
                labels.insert(label.to_owned());
            }
        }
    }
    samples
}

/// The words in backticks of each metric's row in docs/metrics.md, and its type.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let text = document();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows = rows.filter_map(|row| {
        let (name, rest) = row.split_once("` | ")?;
        let (kind, meaning) = rest.split_once(" | ")?;
        let is_metric = ["counter", "gauge", "histogram", "info"].contains(&kind);
        let words = meaning.split('`').skip(1).step_by(2).map(str::to_owned);
        is_metric.then(|| (name.to_owned(), (kind.to_owned(), words.collect())))
    });
    rows.collect()
}

/// What Prometheus adds to each sample.
const SCRAPED: [&str; 2] = ["job", "instance"];

/// What of an expression does not exist.
fn faults(
    expression: &str,
    live: &BTreeMap<String, BTreeSet<String>>,
    documented: &BTreeMap<String, (String, BTreeSet<String>)>,
    words: &BTreeSet<String>,
) -> Vec<String> {
    let asked = promql::asked(expression);
    let mut faults = Vec::new();
    let mut labels: BTreeSet<String> = SCRAPED.map(str::to_owned).into();
    for selector in &asked.selectors {
        let metric = &*selector.metric;
        let part = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| metric.strip_suffix(end));
        let row = documented.get(part.unwrap_or(metric));
        let is_histogram = row.is_some_and(|(kind, _)| kind == "histogram");
        let mut own: BTreeSet<String> = match (live.get(metric), row) {
            (Some(labels), _) => labels.clone(),
            (None, Some((_, words))) if is_histogram == part.is_some() => words.clone(),
            (None, _) if metric == "up" => BTreeSet::new(),
            (None, _) => {
                faults.push(format!("there is no metric {metric}"));
                continue;
            }
        };
        own.extend(SCRAPED.map(str::to_owned));
        if metric.ends_with("_bucket") {
            own.insert("le".to_owned());
        }
        for (label, _, value) in &selector.conditions {
            if !own.contains(label) {
                faults.push(format!("{metric} has no label {label}"));
            }
            if SCRAPED.contains(&&**label) || value.starts_with('$') {
                continue;
            }
            for one in value.split('|') {
                let is_known = match one.strip_suffix(".*") {
                    Some(beginning) => words.iter().any(|word| word.starts_with(beginning)),
                    None => words.contains(one),
                };
                if !is_known {
                    faults.push(format!("no value of {label} is known as {one}"));
                }
            }
        }
        labels.extend(own);
    }
    let unknown = asked.groups.iter().filter(|label| !labels.contains(*label));
    faults.extend(unknown.map(|label| format!("nothing has the label {label}")));
    faults
}

/// Every text under these keys, wherever it is.
fn texts<'a>(value: &'a Value, keys: &[&str], found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(text) if keys.contains(&&**key) => found.push(text),
                    _ => texts(value, keys, found),
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|value| texts(value, keys, found)),
        _ => {}
    }
}

fn dashboard() -> Value {
    let text = fs::read_to_string(project().join("config/grafana/trunkline.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The rules of `trunkline.rules.yml`.
fn rules() -> Vec<Value> {
    let text = fs::read_to_string(rules_directory().join("trunkline.rules.yml")).unwrap();
    let rules: Value = serde_saphyr::from_str(&text).unwrap();
    let groups = rules["groups"].as_array().unwrap().iter();
    groups
        .flat_map(|group| group["rules"].as_array().unwrap().clone())
        .collect()
}

#[test]
fn promtool_finds_nothing_to_say_about_the_metrics() {
    let (_, text) = busy().http("/metrics").unwrap();
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let done = promtool.wait_with_output().unwrap();
    let said = [done.stdout, done.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(done.status.success() && said.is_empty(), "{said}");
}

#[test]
fn each_alert_fires_for_what_it_is_about_and_for_nothing_else() {
    let check = |arguments: &[&str]| {
        let done = output(
            Command::new("promtool")
                .args(arguments)
                .current_dir(rules_directory()),
        );
        let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        assert!(done.status.success(), "{arguments:?}: {said}");
    };
    check(&["check", "config", "prometheus.yml"]);
    check(&["check", "rules", "trunkline.rules.yml"]);
    check(&["test", "rules", "trunkline.test.yml"]);
    let text = fs::read_to_string(rules_directory().join("trunkline.test.yml")).unwrap();
    let tests: Value = serde_saphyr::from_str(&text).unwrap();
    let mut fired: Vec<&str> = Vec::new();
    for test in tests["tests"].as_array().unwrap() {
        let looks = test["alert_rule_test"].as_array().unwrap().iter();
        let expected = looks.filter(|look| !look["exp_alerts"].as_array().unwrap().is_empty());
        fired.extend(expected.map(|look| look["alertname"].as_str().unwrap()));
    }
    let rules = rules();
    let names = rules.iter().map(|rule| rule["alert"].as_str().unwrap());
    assert_eq!(fired, names.collect::<Vec<_>>());
}

#[test]
fn each_alert_is_listed_and_leads_to_what_to_do() {
    let anchors = |page: &str| -> BTreeSet<String> {
        let text = fs::read_to_string(project().join(page)).unwrap();
        let headings = text.lines().filter(|line| line.starts_with('#'));
        let anchor = |line: &str| {
            let text = line.trim_start_matches('#').trim().to_lowercase();
            let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.collect::<String>().replace(' ', "-")
        };
        headings.map(anchor).collect()
    };
    let document = document();
    let mut rows = Vec::new();
    for rule in rules() {
        let name = rule["alert"].as_str().unwrap();
        let (severity, notes) = (rule["labels"]["severity"].as_str(), &rule["annotations"]);
        assert!(
            matches!(severity, Some("info" | "warning" | "critical")),
            "{name}"
        );
        for note in ["summary", "description"] {
            assert!(
                notes[note].as_str().is_some_and(|text| text.len() > 20),
                "{name}: {note}"
            );
        }
        let runbook = notes["runbook_url"].as_str().unwrap();
        let (page, anchor) = runbook.split_once('#').unwrap();
        assert!(anchors(page).contains(anchor), "{name}: {runbook}");
        let link = runbook.strip_prefix("docs/").unwrap();
        let row = format!("| [`{name}`]({link}) | {} |", severity.unwrap());
        assert!(document.contains(&row), "docs/metrics.md has no {row}");
        rows.push(row);
    }
    assert_eq!(document.matches("| [`Trunkline").count(), rows.len());
}

#[test]
fn alerts_and_dashboard_ask_for_nothing_that_does_not_exist() {
    let (_, text) = busy().http("/metrics").unwrap();
    let (live, documented, document) = (samples(&text), documented(), document());
    let words: BTreeSet<String> = document
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect();
    let check = |expression: &str| faults(expression, &live, &documented, &words);
    // It does find faults.
    for (wrong, fault) in [
        ("sum(trunkline_session)", "there is no metric trunkline_session"),
        (
            "trunkline_pool_wait_seconds",
            "there is no metric trunkline_pool_wait_seconds",
        ),
        ("trunkline_pool_pins", "there is no metric trunkline_pool_pins"),
        (
            "trunkline_sessions{rout=\"x\"}",
            "trunkline_sessions has no label rout",
        ),
        (
            "sum by (member) (trunkline_hold_length)",
            "nothing has the label member",
        ),
        (
            "trunkline_cluster_probes_total{result=\"failur\"}",
            "no value of result is known as failur",
        ),
    ] {
        let found = check(wrong);
        assert!(found.contains(&fault.to_owned()), "{wrong}: {found:?}");
    }
    let (rules, dashboard) = (rules(), dashboard());
    let mut expressions: Vec<&str> = rules.iter().map(|rule| rule["expr"].as_str().unwrap()).collect();
    texts(&dashboard["panels"], &["expr"], &mut expressions);
    texts(&dashboard["annotations"], &["expr"], &mut expressions);
    texts(&dashboard["templating"], &["definition"], &mut expressions);
    assert!(expressions.len() > 100, "{}", expressions.len());
    let found: Vec<String> = expressions
        .iter()
        .flat_map(|expression| {
            check(expression)
                .into_iter()
                .map(move |fault| format!("{fault}: {expression}"))
        })
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn each_panel_of_the_dashboard_says_what_it_shows_in_which_unit() {
    let dashboard = dashboard();
    let (mut ids, mut rows) = (BTreeSet::new(), 0);
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(
            ids.insert(panel["id"].as_u64().unwrap()),
            "{title}: its id is another's, too"
        );
        let place = &panel["gridPos"];
        assert!(
            place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap() <= 24,
            "{title}"
        );
        if panel["type"] == "row" {
            rows += 1;
            continue;
        }
        let description = panel["description"].as_str().unwrap_or_default();
        assert!(description.len() > 10, "{title} has no description");
        let mut units = Vec::new();
        texts(&panel["fieldConfig"], &["unit"], &mut units);
        let is_state = panel["type"] == "state-timeline";
        assert!(
            is_state || !units.is_empty() || panel["type"] == "table",
            "{title} has no unit"
        );
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
    }
    assert!(rows >= 8 && ids.len() > 40, "{rows} {}", ids.len());
}

#[test]
fn errors_count_by_class_and_by_who_reported_them() {
    let router = busy();
    let count = |route: &str, origin: &str, class: &str| {
        router.metric(&format!(
            "trunkline_errors_total{{route=\"{route}\",origin=\"{origin}\",class=\"{class}\"}}"
        ))
    };
    for route in ["read-write", "read-only"] {
        eventually("the server's error is counted", SOON, || {
            count(route, "server", "22") == 1.0
        });
        assert_eq!(count(route, "router", "22"), 0.0);
    }
    assert_eq!(count("read-write", "router", "28"), 1.0, "a wrong password");
    assert_eq!(count("read-write", "server", "28"), 0.0);
    // Of 3200 transactions in one session a hundred are measured, each for 32.
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    fs::write(&script, "SELECT 1;\n").unwrap();
    let transactions = |route: &str| {
        router.metric(&format!(
            "trunkline_transaction_seconds_count{{route=\"{route}\"}}"
        ))
    };
    for (route, port) in [("read-write", 6432), ("read-only", 6433)] {
        let before = transactions(route);
        succeed(
            Command::new(Path::new(Cluster::shared().text("bindir")).join("pgbench"))
                .args(["-n", "-t", "3200", "-f"])
                .arg(&script)
                .arg(router.dsn(port, "")),
        );
        eventually("the transactions are counted", SOON, || {
            transactions(route) - before == 3200.0
        });
    }
    let leases = router.metric("trunkline_pool_lease_seconds_count{route=\"read-write\"}");
    assert!(leases >= 3200.0, "{leases}");
}

/// A Prometheus of Debian's that scrapes this router and evaluates the alerts.
struct Prometheus {
    process: Child,
    address: Ipv4Addr,
    _dir: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Prometheus {
    fn start(router: &Router) -> Self {
        let (dir, address) = (tempfile::tempdir().unwrap(), fresh_address());
        let path = dir.path().join("prometheus.yml");
        let example = fs::read_to_string(rules_directory().join("prometheus.yml")).unwrap();
        let configuration = example
            .replace("15s", "1s")
            .replace(
                "trunkline.rules.yml",
                &rules_directory()
                    .join("trunkline.rules.yml")
                    .display()
                    .to_string(),
            )
            .replace("router1.example", &router.address.to_string())
            .replace(", \"router2.example:6434\"", "");
        fs::write(&path, configuration).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", path.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}:9090"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            process,
            address,
            _dir: dir,
        }
    }

    /// The `data` of an answer, once there is one.
    fn ask(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(SocketAddr::from((self.address, 9090))).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let answer: Value = serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()?;
        (answer["status"] == "success").then(|| answer["data"].clone())
    }

    /// The values of a query, which contains no character that an address may not have.
    fn values(&self, query: &str) -> Vec<String> {
        let data = self
            .ask(&format!("/api/v1/query?query={query}"))
            .unwrap_or_default();
        let results = data["result"].as_array().cloned().unwrap_or_default();
        let values = results.iter().filter_map(|one| one["value"][1].as_str());
        values.map(str::to_owned).collect()
    }
}

#[test]
fn prometheus_scrapes_a_running_router_and_evaluates_the_alerts() {
    let router = busy();
    let prometheus = Prometheus::start(&router);
    eventually("Prometheus has scraped the router", SOON, || {
        prometheus.values("up") == ["1"]
    });
    let leader = prometheus.values("trunkline_cluster_leader");
    assert_eq!(leader, ["1"], "one of the first scrape's samples");
    let errors = prometheus.values("sum(trunkline_errors_total%7Borigin=%22server%22%7D)");
    assert_eq!(errors, ["2"]);
    eventually("every alert was evaluated, without an error", SOON, || {
        let Some(data) = prometheus.ask("/api/v1/rules") else {
            return false;
        };
        let groups = data["groups"].as_array().cloned().unwrap_or_default();
        let health: Vec<&Value> = groups
            .iter()
            .flat_map(|group| group["rules"].as_array().unwrap())
            .map(|rule| &rule["health"])
            .collect();
        health.len() == rules().len() && health.iter().all(|health| **health == "ok")
    });
    let firing = prometheus.ask("/api/v1/alerts").unwrap();
    let alerts = firing["alerts"].as_array().unwrap();
    let critical = alerts
        .iter()
        .filter(|alert| alert["state"] == "firing" && alert["labels"]["severity"] == "critical");
    assert_eq!(critical.count(), 0, "{firing}");
}
