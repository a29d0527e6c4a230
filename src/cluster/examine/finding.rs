//! What an examination found, and what to do about it.

use std::fmt;

/// What ends within so many days is warned of, as when the configuration is read.
pub(super) const WARNING_DAYS: i64 = 14;
/// It is noted.
const NOTE_DAYS: i64 = 31;

/// What was tried, and the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub what: String,
    pub outcome: ProbeOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeOutcome {
    Good(String),
    /// It does not work; `hint` says what to do.
    Bad {
        error: String,
        hint: String,
    },
    /// It works, and will not always; `hint` says what to do.
    Remark {
        found: String,
        hint: String,
    },
    /// It is as it should be, and worth knowing.
    Note(String),
    /// It was not tried, for this reason.
    Untried(String),
}

impl Finding {
    pub fn good(what: String, detail: impl Into<String>) -> Self {
        Self {
            what,
            outcome: ProbeOutcome::Good(detail.into()),
        }
    }

    pub fn bad(what: String, error: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self {
            what,
            outcome: ProbeOutcome::Bad {
                error: error.to_string(),
                hint: hint.into(),
            },
        }
    }

    pub fn remark(what: String, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            what,
            outcome: ProbeOutcome::Remark {
                found: found.into(),
                hint: hint.into(),
            },
        }
    }

    pub fn note(what: String, found: impl Into<String>) -> Self {
        Self {
            what,
            outcome: ProbeOutcome::Note(found.into()),
        }
    }

    /// A certificate that is valid for `left` days. `names` is told while that is long enough.
    pub fn of_certificate(what: String, names: &str, left: i64, until: &str, advice: &str) -> Self {
        let days = match left {
            1 => "1 day".to_owned(),
            days => format!("{days} days"),
        };
        match left {
            ..0 => Self::remark(what, format!("has expired, on {until}"), advice),
            0..WARNING_DAYS => Self::remark(what, format!("expires in {days}, on {until}"), advice),
            WARNING_DAYS..NOTE_DAYS => Self::note(
                what,
                format!("{names}{days} left, until {until}: renew it before"),
            ),
            _ => Self::good(what, format!("{names}{days} left, until {until}")),
        }
    }

    pub fn untried(what: String, why: impl Into<String>) -> Self {
        Self {
            what,
            outcome: ProbeOutcome::Untried(why.into()),
        }
    }

    pub fn is_bad(&self) -> bool {
        matches!(self.outcome, ProbeOutcome::Bad { .. })
    }

    pub fn is_untried(&self) -> bool {
        matches!(self.outcome, ProbeOutcome::Untried(_))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            ProbeOutcome::Good(detail) => write!(f, "ok      {}: {detail}", self.what),
            ProbeOutcome::Remark { found, hint } => write!(f, "remark  {}: {found}: {hint}", self.what),
            ProbeOutcome::Note(found) => write!(f, "note    {}: {found}", self.what),
            ProbeOutcome::Untried(why) => write!(f, "untried {}: {why}", self.what),
            ProbeOutcome::Bad { error, hint } => write!(f, "FAILED  {}: {error} ({hint})", self.what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_warned_of_only_shortly_before_its_end() {
        for (left, told) in [
            (-1, "remark  c: has expired, on May: renew it"),
            (1, "remark  c: expires in 1 day, on May: renew it"),
            (13, "remark  c: expires in 13 days, on May: renew it"),
            (14, "note    c: a; 14 days left, until May: renew it before"),
            (29, "note    c: a; 29 days left, until May: renew it before"),
            (31, "ok      c: a; 31 days left, until May"),
        ] {
            let finding = Finding::of_certificate("c".to_owned(), "a; ", left, "May", "renew it");
            assert_eq!(finding.to_string(), told);
        }
    }
}
