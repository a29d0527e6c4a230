//! Who may serve a route, and who does: pure functions of the snapshot, the route, the sessions there are and a
//! source of chance, giving candidates in order of preference with the reason, and for the others the reason why not.
//!
//! Refuses: IO, clocks, and state of its own.
