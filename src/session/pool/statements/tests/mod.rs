//! Sessions that share connections, beside the same sessions with connections of their own.

#![allow(clippy::unwrap_used)]

mod cases;
mod model;
mod property;
mod scene;
