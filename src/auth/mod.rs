//! Who may come in: an ordered list of rules, verifiers, and SCRAM-SHA-256 (RFC 5802, RFC 7677) on both sides
//! with reuse of the client's key.
//!
//! Guarantees: no IO (it returns what it needs looked up); nothing distinguishes an unknown user from a wrong
//! password; secrets are wiped when dropped and never printed; comparisons of secrets take constant time.
//!
//! Refuses: md5 entries, mechanisms with channel binding (until they work), `y` flags that do not fit.

pub mod scram;
