//! All targets in one program: `TRUNKLINE_FUZZ` names the one that is run.
#![no_main]

use std::sync::LazyLock;

static NAME: LazyLock<String> = LazyLock::new(|| std::env::var("TRUNKLINE_FUZZ").expect("TRUNKLINE_FUZZ names a target"));

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline::fuzzing::run(&NAME, data));
