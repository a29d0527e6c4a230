//! Sessions that wait for a seat on a full server, all at once, and get one in turn.

use super::measured;
use crate::session::gate::gate_scene;

pub(super) fn drain(count: usize) {
    gate_scene::drain(count, |poll| measured(poll));
}
