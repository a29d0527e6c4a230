//! Composes the rooms: threads, signals, readiness, drain.
