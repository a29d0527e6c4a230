//! What an endpoint says about itself, for `trunkline doctor`: `GET /patroni`, `GET /config`, and
//! the time in its answer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::{join, join_all};
use reqwest::header::DATE;
use serde_json::Value;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

use super::{MAX_BODY, Requests, describe, fetch, printable};

/// What one endpoint says.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::cluster) struct EndpointFacts {
    pub(in crate::cluster) endpoint: String,
    pub(in crate::cluster) version: Option<String>,
    pub(in crate::cluster) scope: Option<String>,
    pub(in crate::cluster) system_identifier: Option<String>,
    pub(in crate::cluster) is_paused: bool,
    /// By how many seconds its clock is ahead of this host's; known within a second.
    pub(in crate::cluster) ahead: Option<f64>,
    /// `ttl`, `loop_wait` and `retry_timeout`.
    pub(in crate::cluster) times: Option<[Duration; 3]>,
}

impl Requests {
    /// Of each endpoint that answers, all at the same time.
    pub(in crate::cluster) async fn facts(&self) -> Vec<EndpointFacts> {
        let all = (0..self.settings().endpoints.len()).map(|endpoint| self.facts_of(endpoint));
        join_all(all).await.into_iter().flatten().collect()
    }

    async fn facts_of(&self, endpoint: usize) -> Option<EndpointFacts> {
        let about = dated(self.get(endpoint, "patroni"));
        let settings = fetch(self.get(endpoint, "config"), true);
        let (about, settings) = join(about, settings).await;
        let (body, ahead) = about.ok()?;
        let value: Value = serde_json::from_slice(&body).ok()?;
        let text = |pointer: &str| {
            let text = value.pointer(pointer).and_then(Value::as_str);
            text.map(|text| printable(text, 128))
        };
        Some(EndpointFacts {
            endpoint: self.settings().endpoints[endpoint].clone(),
            version: text("/patroni/version"),
            scope: text("/patroni/scope"),
            system_identifier: text("/database_system_identifier"),
            is_paused: value.get("pause").and_then(Value::as_bool).unwrap_or(false),
            ahead,
            times: settings.ok().and_then(|body| times(&body)),
        })
    }
}

/// The body, and by how much the clock there is ahead.
async fn dated(request: reqwest::RequestBuilder) -> Result<(Vec<u8>, Option<f64>), String> {
    let asked = unix_now();
    let mut response = request.send().await.map_err(|error| describe(&error))?;
    let between = f64::midpoint(asked, unix_now());
    let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
    // The header has whole seconds: half a second later is as likely as the second itself.
    let ahead = date.and_then(seconds).map(|date| date + 0.5 - between);
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| describe(&error))? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_BODY {
            return Err("the answer is too long".to_owned());
        }
    }
    Ok((body, ahead))
}

/// `Wed, 02 Dec 2026 03:36:01 GMT` as seconds since 1970.
fn seconds(date: &str) -> Option<f64> {
    let format = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let date: OffsetDateTime = PrimitiveDateTime::parse(date, format).ok()?.assume_utc();
    let seconds = u32::try_from(date.unix_timestamp()).ok()?;
    Some(f64::from(seconds))
}

fn unix_now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_secs_f64()
}

/// Patroni's defaults count where the configuration has no such key.
fn times(body: &[u8]) -> Option<[Duration; 3]> {
    let known = super::times(body)?;
    let value: Value = serde_json::from_slice(body).ok()?;
    let retry = value.get("retry_timeout").and_then(Value::as_u64).unwrap_or(10);
    Some([known.ttl, known.loop_wait, Duration::from_secs(retry)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_an_answer() {
        assert_eq!(seconds("Thu, 01 Jan 1970 00:01:40 GMT"), Some(100.0));
        assert_eq!(seconds("Wed, 02 Dec 2026 03:36:01 GMT"), Some(1_796_182_561.0));
        for wrong in ["", "now", "Wed, 02 Dec 2026 03:36:01 CET"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn three_times() {
        let read = |body: &str| times(body.as_bytes()).map(|times| times.map(|time| time.as_secs()));
        assert_eq!(
            read(r#"{"ttl": 20, "loop_wait": 2, "retry_timeout": 5}"#),
            Some([20, 2, 5])
        );
        assert_eq!(read("{}"), Some([30, 10, 10]));
        assert_eq!(read("[]"), None);
    }
}
