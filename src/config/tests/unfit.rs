//! `max_lag`, `on_unfit` and `slow_start`.

use super::*;

fn with_route(rest: &str) -> String {
    format!(
        "{MINIMAL}routes:\n  read-write: {{targets: [leader]}}\n  r: {{targets: [replica], {rest}}}\nlisteners: [{{name: x, address: \"*:1\", route: read-write}}]\n"
    )
}

fn limit<T>(most: T, recover: T) -> Limit<T> {
    Limit { most, recover }
}

#[test]
fn limits_of_lag_come_with_lower_ones_to_recover() {
    let files = Files::new();
    let secs = Duration::from_secs;
    for (text, bytes, time) in [
        ("{bytes: 16MiB}", Some(limit(16 << 20, 8 << 20)), None),
        ("{time: 10s}", None, Some(limit(secs(10), secs(5)))),
        (
            "{bytes: 1GB, recover_bytes: 1GB, time: 1m, recover_time: 0}",
            Some(limit(1 << 30, 1 << 30)),
            Some(limit(secs(60), secs(0))),
        ),
    ] {
        let config = files.ok(&with_route(&format!("max_lag: {text}")));
        assert_eq!(config.routes["r"].max_lag, Some(MaxLag { bytes, time }), "{text}");
        assert_eq!(config.routes["read-write"].max_lag, None);
    }
}

#[test]
fn what_happens_to_sessions_on_an_unfit_member() {
    let files = Files::new();
    assert_eq!(
        files.ok(MINIMAL).routes["read-only"].on_unfit,
        OnUnfit {
            lag: default_word("routes.NAME.on_unfit", "lag"),
            down: default_word("routes.NAME.on_unfit", "down"),
            grace: default_time("routes.NAME.on_unfit", "grace"),
        }
    );
    let config = files.ok(&with_route(
        "max_lag: {bytes: 1MB}, on_unfit: {lag: close_idle, down: close, role: close, grace: 5s}",
    ));
    let expected = OnUnfit {
        lag: Unfit::CloseIdle,
        down: Unfit::Close,
        grace: Duration::from_secs(5),
    };
    assert_eq!(config.routes["r"].on_unfit, expected);
}

#[test]
fn what_would_have_no_effect_or_never_recover_is_refused() {
    let files = Files::new();
    for (rest, path, message) in [
        ("max_lag: {}", "routes.r.max_lag", "needs `bytes`, `time` or both"),
        ("max_lag: {bytes: 5}", "routes.r.max_lag.bytes", "is not a size"),
        (
            "max_lag: {bytes: 5B}",
            "routes.r.max_lag.bytes",
            "must be from 1KiB to 1024TiB",
        ),
        (
            "max_lag: {bytes: 1MB, recover_bytes: 2MB}",
            "routes.r.max_lag.recover_bytes",
            "must not be more than the limit",
        ),
        (
            "max_lag: {bytes: 1MB, recover_time: 2s}",
            "routes.r.max_lag.recover_time",
            "has no effect without the limit itself",
        ),
        (
            "max_lag: {time: 1s}",
            "routes.r.max_lag.time",
            "must be from 2s to 24h",
        ),
        (
            "on_unfit: {lag: close}",
            "routes.r.on_unfit.lag",
            "has no effect without `max_lag`",
        ),
        (
            "on_unfit: {role: keep}",
            "routes.r.on_unfit.role",
            "expected `close`, found `keep`",
        ),
        (
            "on_unfit: {down: maybe}",
            "routes.r.on_unfit.down",
            "expected `keep`, `close_idle` or `close`, found `maybe`",
        ),
    ] {
        let errors = files.errors(&with_route(rest));
        assert!(
            errors
                .iter()
                .any(|error| error.contains(path) && error.contains(message)),
            "{rest}: {errors:?}"
        );
    }
    let text = with_route("max_lag: {time: 10s}").replace("[leader]}", "[leader], max_lag: {time: 10s}}");
    let errors = files.errors(&text);
    assert!(errors[0].contains("the leader has no lag"), "{errors:?}");
}

#[test]
fn a_slow_start_is_off_unless_it_is_written() {
    let files = Files::new();
    let slow_start = |text: &str| files.ok(text).clusters["main"].placement.slow_start;
    assert_eq!(slow_start(MINIMAL), Duration::ZERO);
    let text = "clusters: {main: {servers: [{name: a, host: a}], service_account: {user: u}, server: {slow_start: 30s}}}";
    assert_eq!(slow_start(text), Duration::from_secs(30));
}
