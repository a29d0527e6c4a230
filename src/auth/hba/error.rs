//! What can be wrong with `pg_hba.conf` and `pg_ident.conf`.

use std::path::Path;
use std::sync::Arc;

use super::options::OptionError;
use super::regex::PatternError;
use crate::wire::startup::MAX_NAME;
use crate::wire::text::escape_unsafe;

/// One error, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HbaError {
    pub path: Arc<Path>,
    /// From 1; 0 is the file as a whole.
    pub line: u32,
    pub kind: HbaErrorKind,
}

impl std::fmt::Display for HbaError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = shown_path(&self.path);
        match self.line {
            0 => write!(f, "{path}: {}", self.kind),
            line => write!(f, "{path}:{line}: {}", self.kind),
        }
    }
}

impl std::error::Error for HbaError {}

/// Texts from the file are escaped and cut; values that may be secret do not occur.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HbaErrorKind {
    #[error("could not open \"{path}\": {error}")]
    Open { path: String, error: String },
    #[error("could not open \"{0}\": maximum nesting depth exceeded")]
    TooDeep(String),
    #[error("too many files, lines or bytes in all; does a file include itself?")]
    TooMuch,
    #[error("empty configuration directory name")]
    EmptyDirectoryName,
    #[error("contains a zero byte")]
    ZeroByte,
    #[error("contains no entries")]
    NoEntries,
    #[error("a field is nothing but included files without entries")]
    EmptyField,
    #[error("end-of-line before {0}")]
    Missing(&'static str),
    #[error("multiple values specified for {0}")]
    Multiple(&'static str),
    #[error("longer than the {MAX_NAME} bytes that a name can have: \"{0}\"")]
    LongName(String),
    #[error("invalid connection type \"{0}\"")]
    ConnectionType(String),
    #[error("regular expression \"{pattern}\": {error}")]
    Pattern { pattern: String, error: PatternError },
    #[error("specifying both host name and CIDR mask is invalid: \"{0}\"")]
    HostWithMask(String),
    #[error("invalid CIDR mask in address \"{0}\"")]
    PrefixLength(String),
    #[error("invalid IP mask \"{0}\"")]
    Mask(String),
    #[error("IP address and mask do not match")]
    MaskFamily,
    #[error("an address with a scope is not supported: \"{0}\"")]
    Scope(String),
    #[error("invalid authentication method \"{0}\"")]
    Method(String),
    #[error("method {0} is not supported")]
    Unsupported(&'static str),
    #[error("method peer is possible in \"local\" lines only")]
    PeerNotLocal,
    #[error("method cert is possible in \"hostssl\" lines only")]
    CertNotSsl,
    #[error("{0}")]
    Option(OptionError),
    #[error("\"\\1\" needs a regular expression as the system user that has it: {0}")]
    Group(PatternError),
}

/// Text of a file as an error may show it.
pub(crate) fn shown(text: &[u8]) -> String {
    const MOST: usize = 200;
    let mut shown = text[..text.len().min(MOST)].escape_ascii().to_string();
    if text.len() > MOST {
        shown.push('…');
    }
    shown
}

/// The name of a file as an error, a log line and an answer may show it: the file that includes it
/// may contain anything.
pub(crate) fn shown_path(path: &Path) -> String {
    escape_unsafe(&path.to_string_lossy())
}
