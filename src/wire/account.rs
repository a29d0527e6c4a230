//! See the room's header.
