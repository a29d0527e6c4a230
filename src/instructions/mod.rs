//! Scenarios of which `scripts/instructions` counts the instructions: a transaction through the
//! relay, in clear and in TLS, a login, a session that waits at its gate, and sessions of a pool.
//! Not part of the program: this is built for tests and with the feature `instructions` only.
//!
//! Peers are played in memory, on one thread, and without waiting, so that two runs do the same.
//! Only what happens inside [`measured`] counts: the router's work, and not that of the peers.

mod gate;
mod login;
mod pool;
mod relay;
mod tls;

type Scenario = fn(count: usize);

/// The scenarios by name. Each does the same `count` times.
pub const SCENARIOS: &[(&str, Scenario)] = &[
    ("select", relay::select),
    ("pipeline_100", relay::pipeline),
    ("row_1mb", relay::large_row),
    ("select_tls", relay::select_tls),
    ("pipeline_100_tls", relay::pipeline_tls),
    ("row_1mb_tls", relay::large_row_tls),
    ("login", login::login),
    ("gate", gate::drain),
    ("pool", pool::simple_free),
    ("pool_wait", pool::simple_wait),
    ("pool_wait_prepared", pool::prepared_wait),
];

/// Runs the scenario of this name.
///
/// # Panics
/// There is none, or the router does not do what it should.
pub fn run(name: &str, count: usize) {
    let scenario = SCENARIOS.iter().find(|(scenario, _)| *scenario == name);
    let (_, scenario) = scenario.unwrap_or_else(|| panic!("there is no scenario {name}"));
    // For its timers. Nothing waits.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("descriptors are left");
    let _entered = runtime.enter();
    scenario(count);
}

/// Work of the router. Instructions are counted inside this function, by its name.
#[inline(never)]
fn measured<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// A message of the protocol.
fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("it is short");
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_do_what_they_should() {
        for (name, _) in SCENARIOS {
            run(name, 2);
        }
    }
}
