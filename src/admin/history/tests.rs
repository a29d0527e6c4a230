#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use tokio::time::advance;

use super::super::http::fixture;
use super::super::metrics::{Metrics, exposition};
use super::*;

fn text(route: &str, transactions: u64, waited: (f64, u64)) -> String {
    let (sum, count) = waited;
    format!(
        "# HELP trunkline_route_transactions Transactions\n# TYPE trunkline_route_transactions counter\n\
         trunkline_route_transactions_total{{route=\"{route}\"}} {transactions}\n\
         trunkline_pool_wait_seconds_sum{{route=\"{route}\"}} {sum}\n\
         trunkline_pool_wait_seconds_count{{route=\"{route}\"}} {count}\n\
         trunkline_pool_wait_seconds_bucket{{route=\"{route}\",le=\"+Inf\"}} {count}\n\
         trunkline_errors_total{{route=\"{route}\",origin=\"server\",class=\"40\"}} 3\n\
         trunkline_errors_total{{route=\"{route}\",origin=\"server\",class=\"57\"}} 4\n\
         trunkline_errors_total{{route=\"{route}\",origin=\"router\",class=\"57\"}} 5\n\
         trunkline_cluster_member_up{{cluster=\"main\",member=\"db\\\"1\"}} 1\n# EOF\n"
    )
}

fn all(history: &History, since: u64) -> Value {
    serde_json::from_str(&history.json(since, &|_| true)).unwrap()
}

async fn point(history: &History, text: &str) {
    advance(INTERVAL).await;
    history.add(Readings::of(text), SystemTime::now());
}

#[tokio::test(start_paused = true)]
async fn rates_are_differences_and_a_counter_that_falls_began_again() {
    let history = History::default();
    for (transactions, waited) in [
        (1000, (5.0, 10)),
        (1100, (5.5, 20)),
        (1100, (5.5, 20)),
        // It began again, and has counted 30 since.
        (30, (0.2, 4)),
    ] {
        point(&history, &text("rw", transactions, waited)).await;
    }
    let shown = all(&history, 0);
    let series = &shown["routes"][0]["series"];
    assert_eq!(series["transactions"], json!([null, 10, 0, 3]));
    assert_eq!(series["wait_ms"], json!([null, 50, null, 50]));
    assert_eq!(series["server_errors"], json!([null, 0, 0, 0]));
    assert_eq!(
        series["held"],
        json!([null, null, null, null]),
        "nobody was asked"
    );
    assert_eq!(shown["members"][0]["member"], "db\"1");
    assert_eq!(shown["members"][0]["series"]["up"], json!([1, 1, 1, 1]));
    let mean = |series, points| history.mean(About::Route("rw"), series, points);
    assert_eq!(mean("transactions", 2), Some(1.5));
    assert_eq!(mean("transactions", 60), Some(13.0 / 3.0));
    assert_eq!(mean("held", 60), None);
    assert_eq!(mean("no such", 60), None);
    assert_eq!(history.mean(About::Route("other"), "transactions", 1), None);
    let member = About::Member {
        cluster: "main",
        member: "db\"1",
    };
    assert_eq!(history.mean(member, "up", 1), Some(1.0));
}

#[tokio::test(start_paused = true)]
async fn points_are_read_from_a_number_on_and_kept_for_an_hour() {
    let history = History::default();
    assert_eq!(all(&history, 0)["time_ms"], json!([]));
    let newest = history.newest();
    point(&history, &text("old", 1, (0.0, 0))).await;
    for number in 1..=POINTS {
        let transactions = u64::try_from(number).unwrap() * 20;
        point(&history, &text("rw", transactions, (0.0, 0))).await;
    }
    let total = POINTS as u64 + 1;
    assert_eq!(*newest.borrow(), total);
    let shown = all(&history, 0);
    let length = |value: &Value| value.as_array().unwrap().len();
    assert_eq!(length(&shown["time_ms"]), POINTS);
    // The other route had its only point at the beginning.
    assert_eq!(length(&shown["routes"]), 1, "{}", shown["routes"]);
    for series in shown["routes"][0]["series"].as_object().unwrap().values() {
        assert_eq!(length(series), POINTS);
    }
    for since in [total - 2, total - 1, total, u64::MAX] {
        let shown = all(&history, since);
        let expected = usize::try_from(total.saturating_sub(since)).unwrap();
        assert_eq!(length(&shown["time_ms"]), expected);
        let transactions = &shown["routes"][0]["series"]["transactions"];
        assert_eq!(transactions, &json!(vec![2; expected]));
        assert_eq!(length(&shown["router"]["errors"]), expected);
    }
    let ring = history.ring();
    assert_eq!(ring.router.values.len(), POINTS * series::ROUTER.len());
    assert_eq!(ring.routes["rw"].values.len(), POINTS * series::ROUTE.len());
}

#[tokio::test(start_paused = true)]
async fn routes_above_the_limit_are_left_out_and_a_route_may_come_later() {
    let history = History::default();
    let many = |count: usize| -> String {
        (0..count)
            .map(|n| text(&format!("r{n:03}"), 7, (0.0, 0)))
            .collect()
    };
    point(&history, &many(2)).await;
    point(&history, &many(MOST_ROWS + 3)).await;
    let shown = all(&history, 0);
    assert_eq!(shown["routes"].as_array().unwrap().len(), MOST_ROWS);
    assert_eq!(shown["left_out"], 3);
    // What it had counted before it was seen is no rate.
    assert_eq!(shown["routes"][2]["series"]["transactions"], json!([null, null]));
    point(&history, &many(MOST_ROWS)).await;
    let shown = all(&history, 0);
    assert_eq!(shown["left_out"], 0);
    assert_eq!(
        shown["routes"][2]["series"]["transactions"],
        json!([null, null, 0])
    );
}

#[tokio::test(start_paused = true)]
async fn the_thread_of_http_takes_points_of_what_there_is() {
    let view = fixture::view(
        fixture::led(vec![fixture::primary("db1"), fixture::member("db2")]),
        crate::config::LocalMember::None,
    );
    let handles = fixture::handles(vec![view]);
    let history = handles.history.clone();
    let mut newest = history.newest();
    let (sender, receiver) = watch::channel(handles);
    let stop = tokio_util::sync::CancellationToken::new();
    let task = tokio::spawn(sample(receiver, stop.clone()));
    newest.wait_for(|number| *number == 2).await.unwrap();
    let shown = all(&history, 0);
    assert_eq!(shown["router"]["sessions"], json!([0, 0]));
    assert_eq!(
        shown["router"]["server_connections"],
        json!([6, 6]),
        "of two members"
    );
    assert_eq!(shown["routes"][1]["route"], "read-write");
    assert_eq!(shown["routes"][1]["series"]["sessions"], json!([0, 0]));
    assert_eq!(shown["members"][0]["series"]["server_connections"], json!([3, 3]));
    assert!(shown["router"]["memory_bytes"][0].as_f64().unwrap() > 1e6);
    stop.cancel();
    task.await.unwrap();
    drop(sender);
}

#[test]
fn the_text_of_the_metrics_is_read() {
    let mut registry = prometheus_client::registry::Registry::default();
    Metrics::register(
        &mut registry,
        prometheus_client::metrics::counter::Counter::default(),
    );
    let text = exposition(&registry).unwrap();
    let readings = Readings::of(&text);
    let memory = series::ROUTER
        .iter()
        .position(|series| series.name == "memory_bytes");
    assert!(readings.router[memory.unwrap()].value.unwrap() > 1e6);
    for odd in [
        "",
        "x",
        "trunkline_errors_total",
        "trunkline_errors_total{",
        "trunkline_errors_total{route",
        "trunkline_errors_total{route=\"",
        "trunkline_errors_total{route=\"a\\",
        "trunkline_errors_total{route=\"a\"",
        "trunkline_errors_total{route=\"a\"}",
        "trunkline_errors_total{route=\"a\"} x",
        "{} 1",
    ] {
        let read = Readings::of(odd);
        assert!(read.routes.is_empty(), "{odd}");
    }
    let read = Readings::of("trunkline_queue_length{a=\"}\\\\\",route=\"x\\\"\\n,{}\"} 7 12.5\n");
    assert_eq!(read.routes.keys().collect::<Vec<_>>(), ["x\"\n,{}"]);
}

#[test]
fn every_series_is_documented_and_comes_from_a_documented_metric() {
    let (page, metrics) = (
        include_str!("../../../docs/http.md"),
        include_str!("../../../docs/metrics.md"),
    );
    let page = page
        .split("\n## ")
        .find(|section| section.starts_with("History"))
        .unwrap();
    for (of, all) in [
        ("the router", series::ROUTER),
        ("a route", series::ROUTE),
        ("a member", series::MEMBER),
    ] {
        let row = page
            .lines()
            .find(|line| line.starts_with(&format!("| {of} |")))
            .unwrap();
        let cells: Vec<&str> = row.split('|').collect();
        let mut documented = 0;
        for (cell, kind) in [(2, Kind::Gauge), (3, Kind::Rate), (4, Kind::MeanMs)] {
            documented += cells[cell].matches('`').count() / 2;
            for series in all.iter().filter(|series| series.kind == kind) {
                assert!(
                    cells[cell].contains(&format!("`{}`", series.name)),
                    "{of} {}",
                    series.name
                );
            }
        }
        assert_eq!(documented, all.len(), "{of}");
        for name in all.iter().flat_map(|series| match series.source {
            series::Source::Metrics(names) => names.to_vec(),
            series::Source::Labelled(name, ..) | series::Source::Histogram(name) => vec![name],
            series::Source::Asked(_) => Vec::new(),
        }) {
            let name = name.strip_suffix("_count").unwrap_or(name);
            assert!(metrics.contains(&format!("`{name}`")), "{name}");
        }
    }
}

#[test]
fn the_memory_is_limited() {
    let values = POINTS * (series::ROUTER.len() + MOST_ROWS * (series::ROUTE.len() + series::MEMBER.len()));
    assert!(values * size_of::<f32>() < 3_000_000);
}
