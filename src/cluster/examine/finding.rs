//! What an examination found, and what to do about it.

use std::fmt;

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
            ProbeOutcome::Untried(why) => write!(f, "untried {}: {why}", self.what),
            ProbeOutcome::Bad { error, hint } => write!(f, "FAILED  {}: {error} ({hint})", self.what),
        }
    }
}
