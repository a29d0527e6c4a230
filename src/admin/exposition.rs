//! The two forms of the metrics' text, and how a request chooses one.
//!
//! The library writes `OpenMetrics` 1.0. Prometheus' text format 0.0.4, which every scraper reads,
//! is derived from it: with other names in the comments, without units and without an end mark.

use axum::http::{HeaderMap, header};

/// A form of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    OpenMetrics,
    Plain,
}

impl Form {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// `OpenMetrics` for clients that accept it and prefer nothing else.
    pub(super) fn wanted(headers: &HeaderMap) -> Self {
        let (mut open, mut plain) = (0, 0);
        let values = headers.get_all(header::ACCEPT).iter();
        for range in values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
        {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut weight, mut version) = (1000, None);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                let value = value.trim().trim_matches('"');
                match &*name.trim().to_ascii_lowercase() {
                    "q" => weight = thousandths(value),
                    "version" => version = Some(value),
                    _ => {}
                }
            }
            match &*kind {
                "application/openmetrics-text" if matches!(version, None | Some("1.0.0" | "0.0.1")) => {
                    open = open.max(weight);
                }
                "text/plain" if matches!(version, None | Some("0.0.4")) => plain = plain.max(weight),
                _ => {}
            }
        }
        if open > 0 && open >= plain {
            Self::OpenMetrics
        } else {
            Self::Plain
        }
    }

    /// Text in `OpenMetrics`, in this form.
    pub(super) fn of(self, text: String) -> String {
        match self {
            Self::OpenMetrics => text,
            Self::Plain => plain(&text),
        }
    }
}

/// A weight from 0 to 1, such as `0.25`; other text counts as 0.
fn thousandths(text: &str) -> u32 {
    let weight: f64 = text.parse().unwrap_or_default();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 1000"
    )]
    let thousandths = (weight.clamp(0.0, 1.0) * 1000.0).round() as u32;
    thousandths
}

fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut help: Option<(&str, &str)> = None;
    for line in text.lines() {
        if let Some((name, words)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            // The name in the derived text depends on the type.
            help = Some((name, words));
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (ending, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if let Some((_, words)) = help.take().filter(|(of, _)| *of == name) {
                out.extend(["# HELP ", name, ending, " ", words, "\n"]);
            }
            out.extend(["# TYPE ", name, ending, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            out.extend([line, "\n"]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn who_asks_for_openmetrics_gets_it_and_everybody_else_plain_text() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;\
                            q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let prometheus_3_plain =
            "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, form) in [
            (Some(prometheus_2), Form::OpenMetrics),
            (Some("application/openmetrics-text"), Form::OpenMetrics),
            (
                Some("Application/OpenMetrics-Text; Version=\"1.0.0\""),
                Form::OpenMetrics,
            ),
            (
                Some("text/plain, application/openmetrics-text"),
                Form::OpenMetrics,
            ),
            (Some(prometheus_3_plain), Form::Plain),
            (Some("application/openmetrics-text;version=9.0.0"), Form::Plain),
            (Some("application/openmetrics-text;q=0"), Form::Plain),
            (
                Some("application/openmetrics-text;q=0.2,text/plain;q=0.5"),
                Form::Plain,
            ),
            (Some("text/plain;version=0.0.4"), Form::Plain),
            (Some("*/*"), Form::Plain),
            (Some("q=;;,=,"), Form::Plain),
            (None, Form::Plain),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(header::ACCEPT, HeaderValue::from_str(accept).unwrap());
            }
            assert_eq!(Form::wanted(&headers), form, "{accept:?}");
        }
    }

    #[test]
    fn plain_text_has_its_own_names_and_no_end() {
        let open = "# HELP a_build The version.\n# TYPE a_build info\na_build_info{version=\"1\"} 1\n\
                    # HELP b_seconds Time.\n# TYPE b_seconds histogram\n# UNIT b_seconds seconds\n\
                    b_seconds_sum 1.5\nb_seconds_count 2\nb_seconds_bucket{le=\"+Inf\"} 2\n\
                    # HELP c Things.\n# TYPE c counter\nc_total{x=\"# y\"} 7\n# HELP d Now.\n# TYPE d gauge\nd 1\n# EOF\n";
        let expected = "# HELP a_build_info The version.\n# TYPE a_build_info gauge\na_build_info{version=\"1\"} 1\n\
                        # HELP b_seconds Time.\n# TYPE b_seconds histogram\n\
                        b_seconds_sum 1.5\nb_seconds_count 2\nb_seconds_bucket{le=\"+Inf\"} 2\n\
                        # HELP c_total Things.\n# TYPE c_total counter\nc_total{x=\"# y\"} 7\n\
                        # HELP d Now.\n# TYPE d gauge\nd 1\n";
        assert_eq!(plain(open), expected);
    }
}
