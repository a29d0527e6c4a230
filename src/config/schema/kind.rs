//! Which values a key may have.

use std::time::Duration;

use super::Keys;
use crate::config::model::{TargetRole, Words};
use crate::config::units::{hours, secs};

/// Bounds include both ends.
#[derive(Debug, Clone, Copy)]
pub(in crate::config) enum ValueKind {
    Truth,
    Number {
        least: u32,
        most: u32,
    },
    Time {
        least: Duration,
        most: Duration,
        /// 0, too, which switches off what the time is for.
        or_off: bool,
    },
    /// Bytes.
    Size {
        least: u64,
        most: u64,
    },
    /// Per second; 0 is no limit.
    Rate {
        most: u32,
    },
    Words(&'static [&'static str]),
    /// In bytes.
    Text {
        most: usize,
    },
    /// A name of ours.
    Name,
    /// Where to listen: an IP address or `*`, and a port.
    Address,
    SocketPath,
    /// Permissions of a socket's file, in octal.
    Mode,
    Host,
    HostPort,
    Url,
    Network,
    /// Text, a number, true or false.
    Scalar,
    File,
    /// A file that other users may not open, and its size in bytes.
    Secret {
        least: usize,
        most: u64,
    },
    List {
        of: &'static ValueKind,
        least: usize,
        most: usize,
    },
    Section(&'static Keys),
    /// A map whose keys are names.
    Named {
        of: &'static ValueKind,
        most: Option<usize>,
    },
    Either(&'static [ValueKind]),
}

/// Longest text, in bytes, where nothing shorter is said.
pub(in crate::config) const LONGEST_TEXT: usize = 4096;
/// Largest password or shared secret, in bytes.
pub(in crate::config) const MOST_SECRET: u64 = 64 * 1024;
/// Largest users file, in bytes: more than a hundred thousand verifiers.
pub(super) const MOST_USERS: u64 = 16 * 1024 * 1024;
/// The longest name of a role (`NAMEDATALEN` - 1). Clients' names are cut there, so a longer one
/// would never match; the server would cut it and log in another user.
pub(super) const LONGEST_ROLE: usize = 63;
/// What a Unix socket's address can hold, its terminator not counted (`sun_path`).
pub(in crate::config) const LONGEST_SOCKET_PATH: usize = 107;

pub(super) const TRUTH: ValueKind = ValueKind::Truth;
pub(super) const TEXT: ValueKind = text(LONGEST_TEXT);
pub(super) const NAME: ValueKind = ValueKind::Name;
pub(super) const ADDRESS: ValueKind = ValueKind::Address;
pub(super) const SOCKET_PATH: ValueKind = ValueKind::SocketPath;
pub(super) const MODE: ValueKind = ValueKind::Mode;
pub(super) const HOST: ValueKind = ValueKind::Host;
pub(super) const HOST_PORT: ValueKind = ValueKind::HostPort;
pub(super) const URL: ValueKind = ValueKind::Url;
pub(super) const NETWORK: ValueKind = ValueKind::Network;
pub(super) const SCALAR: ValueKind = ValueKind::Scalar;
pub(super) const FILE: ValueKind = ValueKind::File;
pub(super) const SECRET: ValueKind = secret(1, MOST_SECRET);
/// Names of users, as clients say them.
pub(super) const USERS: ValueKind = list(&text(LONGEST_ROLE), 1, 1024);
pub(super) const TARGETS: ValueKind = words_of::<TargetRole>();
pub(super) const SIZE: ValueKind = ValueKind::Size {
    least: 1 << 10,
    most: 1 << 50,
};
pub(super) const DAY: ValueKind = time(secs(0), hours(24));

pub(super) const fn number(least: u32, most: u32) -> ValueKind {
    ValueKind::Number { least, most }
}

pub(super) const fn time(least: Duration, most: Duration) -> ValueKind {
    ValueKind::Time {
        least,
        most,
        or_off: false,
    }
}

pub(super) const fn time_or_off(least: Duration, most: Duration) -> ValueKind {
    ValueKind::Time {
        least,
        most,
        or_off: true,
    }
}

pub(super) const fn rate(most: u32) -> ValueKind {
    ValueKind::Rate { most }
}

pub(super) const fn text(most: usize) -> ValueKind {
    ValueKind::Text { most }
}

pub(super) const fn words(words: &'static [&'static str]) -> ValueKind {
    ValueKind::Words(words)
}

/// The words of an enum of the model.
pub(super) const fn words_of<T: Words>() -> ValueKind {
    ValueKind::Words(T::WORDS)
}

pub(super) const fn secret(least: usize, most: u64) -> ValueKind {
    ValueKind::Secret { least, most }
}

pub(super) const fn list(of: &'static ValueKind, least: usize, most: usize) -> ValueKind {
    ValueKind::List { of, least, most }
}

pub(super) const fn section(keys: &'static Keys) -> ValueKind {
    ValueKind::Section(keys)
}

pub(super) const fn named(of: &'static ValueKind) -> ValueKind {
    ValueKind::Named { of, most: None }
}

pub(super) const fn named_at_most(of: &'static ValueKind, most: usize) -> ValueKind {
    ValueKind::Named { of, most: Some(most) }
}

pub(super) const fn either(kinds: &'static [ValueKind]) -> ValueKind {
    ValueKind::Either(kinds)
}

/// Of a key that may be of several kinds, the one that is asked for.
macro_rules! this_or_alternative {
    ($($(#[$doc:meta])* $name:ident: $pattern:pat => $value:expr, $of:ty;)+) => {
        impl ValueKind {
            $($(#[$doc])*
            pub(in crate::config) fn $name(&'static self) -> Option<$of> {
                match self {
                    $pattern => Some($value),
                    Self::Either(kinds) => kinds.iter().find_map(Self::$name),
                    _ => None,
                }
            })+
        }
    };
}

this_or_alternative! {
    /// What a list is of, and its least and most elements.
    list: Self::List { of, least, most } => (of, *least, *most), (&'static ValueKind, usize, usize);
    words: Self::Words(words) => words, &'static [&'static str];
    /// The longest text, in bytes.
    text: Self::Text { most } => *most, usize;
}
