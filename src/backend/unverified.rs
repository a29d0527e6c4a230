use std::borrow::Cow;

/// What a connection lacks, and what to do about it.
#[derive(Debug)]
pub(crate) struct Unverified(pub(crate) Cow<'static, str>, pub(crate) &'static str);

/// The hint where no action is needed.
pub(crate) const CHANGING_HINT: &str = "The cluster may be changing its leader; try again in a moment.";

impl From<&'static str> for Unverified {
    fn from(why: &'static str) -> Self {
        Self(why.into(), CHANGING_HINT)
    }
}
