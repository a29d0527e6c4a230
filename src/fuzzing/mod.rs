//! Fuzz targets: one for every parser of bytes from outside. They are not part of the program: this
//! is built only for tests and with `--cfg fuzzing`.
//!
//! A target takes any bytes and returns. It panics where the code it calls does, and where two
//! readings of the same bytes differ: in one piece and split, a parser and its writer, an observer
//! and a second, slower implementation. `fuzz/` has a program for each target, for libFuzzer;
//! `fuzz/seeds/NAME/` has inputs, which the tests below run as well.

mod auth;
mod outside;
mod wire;

/// Takes any bytes and returns.
pub type Target = fn(&[u8]);

macro_rules! targets {
    ($($name:ident: $run:path,)*) => {
        /// The targets by name.
        pub const TARGETS: &[(&str, Target)] = &[$((stringify!($name), $name)),*];

        $(
            /// The target of this name.
            pub fn $name(data: &[u8]) {
                $run(data);
            }
        )*
    };
}

targets! {
    pending: crate::wire::pending::model::play,
    certificate: auth::certificate,
    config: outside::config,
    console: crate::admin::console_fuzzing::run,
    etcd: crate::cluster::etcd::fuzzing::run,
    frames: wire::frames,
    generations: crate::session::generations::codec::fuzzing::run,
    handover: crate::runtime::handover::fuzzing::run,
    hba: auth::hba,
    http: crate::admin::http_fuzzing::run,
    ident: auth::ident,
    import: crate::cli::import::fuzzing::run,
    ldap: auth::ldap,
    patroni: outside::patroni,
    peer: crate::session::cancel::peers::codec::fuzzing::run,
    proxy: wire::proxy,
    scram: crate::auth::scram::fuzzing::run,
    server_login: crate::backend::login::fuzzing::run,
    startup: wire::startup,
    statements: crate::session::pool::statements::fuzzing::run,
    users: auth::users,
}

/// Runs the target of this name.
///
/// # Panics
/// There is no target of this name, or it has found an error.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(target, _)| *target == name);
    let (_, target) = target.unwrap_or_else(|| panic!("there is no target {name}"));
    target(data);
}

/// The first byte, which chooses, and the rest.
pub(crate) fn choice(data: &[u8]) -> (u8, &[u8]) {
    data.split_first()
        .map_or((0, data), |(first, rest)| (*first, rest))
}

/// Cuts `data` into reads whose lengths come from `seed`: all in one, byte by byte, or in between.
pub(crate) fn reads(data: &[u8], seed: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = data;
    let mut state = u32::from(seed);
    std::iter::from_fn(move || {
        state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        let most = match seed {
            0 => rest.len(),
            1 => 1,
            _ => usize::try_from(state >> 16).unwrap_or(1) % (1 << (seed % 12)) + 1,
        };
        if rest.is_empty() {
            return None;
        }
        let (read, after) = rest.split_at(most.min(rest.len()));
        rest = after;
        Some(read)
    })
}

#[cfg(test)]
mod tests;
