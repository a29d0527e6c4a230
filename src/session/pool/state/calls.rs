//! What a `FunctionCall` may change: it has no text, only the OID of a function.

use super::suspicion::Kinds;

/// By the OIDs in `src/include/catalog/pg_proc.dat`, which PostgreSQL never gives to another
/// function. Of all others the name is not known, and hardly anybody calls them in this way.
pub(super) fn kinds_of(function: u32) -> Kinds {
    match function {
        // Advisory locks, of the session and of the transaction.
        2880..=2892 => Kinds::ADVISORY,
        3089..=3096 => Kinds::NONE,
        // `currval`, `lastval`
        1575 | 2559 => Kinds::SEQUENCE,
        // `setseed`
        1599 => Kinds::SEED,
        // `set_config`
        2078 => Kinds::ANY_SETTING.and(Kinds::UNKNOWN_NAME).and(Kinds::ROLE),
        _ if is_of_large_objects(function) => Kinds::NONE,
        _ => Kinds::EVERYTHING,
    }
}

/// Functions of large objects, which are what drivers call in this way.
fn is_of_large_objects(function: u32) -> bool {
    matches!(
        function,
        715 | 764 | 765 | 767 | 952..=958 | 964 | 1004 | 3170..=3172 | 3457..=3460
    )
}
