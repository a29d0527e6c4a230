//! What operators and balancers ask: HTTP, metrics, the log.
//!
//! Guarantees: answers while the data path is busy (a thread and runtime of its own); `/node` and `/connection`
//! bodies contain the word `true` only when the answer is true; HTTP/1.0 and 1.1, GET, HEAD and OPTIONS.
//!
//! Refuses: to change anything but "look again now".
