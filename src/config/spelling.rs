//! Which word was probably meant.

/// The known word that `word` was probably meant to be: at most a third of it is different.
pub(super) fn closest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    if word.len() > 64 {
        return None;
    }
    let word = word.to_ascii_lowercase().replace('-', "_");
    known
        .filter(|candidate| candidate.starts_with(|c: char| c.is_ascii_alphabetic()))
        .map(|candidate| (distance(&word, &candidate.replace('-', "_")), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).clamp(1, 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Words of other programs, and what is meant by them where that is one of the known words.
const SYNONYMS: &[(&str, &str)] = &[
    ("password", "password_file"),
    ("secret", "secret_file"),
    ("token", "token_file"),
    ("primary", "leader"),
    ("master", "leader"),
    ("standby", "replica"),
    ("secondary", "replica"),
    ("slave", "replica"),
    ("warning", "warn"),
    ("err", "error"),
    ("fatal", "error"),
];

/// Keys of `PgBouncer`, and where the same is said here. `NAME` is any name. Some keys of our own
/// too, which people look for in a pool.
const OF_PGBOUNCER: &[(&str, &str)] = &[
    ("admin_users", "console.operators"),
    ("auth_file", "auth.users_file"),
    ("auth_hba_file", "auth.hba_file"),
    ("auth_ident_file", "auth.ident_file"),
    ("auth_query", "auth.query"),
    ("default_pool_size", "routes.NAME.pool.max_connections"),
    ("max_client_conn", "limits.max_clients"),
    ("max_db_client_connections", "limits.per_database"),
    ("max_db_connections", "clusters.NAME.server.max_connections"),
    ("max_prepared_statements", "routes.NAME.pool.max_statements"),
    ("max_queue", "routes.NAME.max_queue"),
    ("max_user_client_connections", "limits.per_user"),
    ("min_pool_size", "routes.NAME.pool.min_connections"),
    ("pool_mode", "routes.NAME.pool.mode"),
    ("pool_size", "routes.NAME.pool.max_connections"),
    ("query_wait_notify", "routes.NAME.pool.wait_notify"),
    ("query_wait_timeout", "routes.NAME.queue_timeout"),
    ("queue_timeout", "routes.NAME.queue_timeout"),
    ("reserve_pool", "routes.NAME.pool.reserve"),
    ("reserve_pool_size", "routes.NAME.pool.reserve"),
    ("reserve_pool_timeout", "routes.NAME.pool.reserve_delay"),
    ("server_connect_timeout", "clusters.NAME.server.connect_timeout"),
    ("server_idle_timeout", "routes.NAME.pool.idle_timeout"),
    ("server_lifetime", "routes.NAME.pool.max_lifetime"),
    ("server_pool_mode", "routes.NAME.pool.mode"),
];

/// What is meant by a key of `PgBouncer` in the section at `path`, which has these keys: a path
/// from there if it is in the section or below it, else one from the top.
pub(super) fn of_pgbouncer(word: &str, path: &str, has_key: impl Fn(&str) -> bool) -> Option<String> {
    let word = word.to_ascii_lowercase();
    let (_, ours) = OF_PGBOUNCER.iter().find(|(theirs, _)| *theirs == word)?;
    // An entry of a pool's overrides has keys of the pool.
    let path = path.split(".overrides[").next().unwrap_or(path);
    let mut rest = ours.split('.');
    let is_below = path.is_empty()
        || path
            .split('.')
            .all(|part| rest.next().is_some_and(|known| known == part || known == "NAME"));
    let rest = rest.collect::<Vec<_>>();
    let is_here = is_below && rest.first().is_some_and(|first| has_key(first));
    Some(if is_here {
        rest.join(".")
    } else {
        (*ours).to_owned()
    })
}

/// The known word that other programs call `word`.
pub(super) fn meant<'k>(word: &str, mut known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let word = word.to_ascii_lowercase();
    let (_, ours) = SYNONYMS.iter().find(|(theirs, _)| *theirs == word)?;
    known.find(|known| known == ours)
}

/// Edit distance (Levenshtein), over characters.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_is_recognised() {
        let known = ["listeners", "limits", "log", "poll_interval"];
        assert_eq!(closest("listener", known.into_iter()), Some("listeners"));
        assert_eq!(closest("lgo", known.into_iter()), None);
        assert_eq!(closest("logs", known.into_iter()), Some("log"));
        assert_eq!(closest("Poll-Interval", known.into_iter()), Some("poll_interval"));
        assert_eq!(closest("frobnicate", known.into_iter()), None);
    }

    #[test]
    fn a_key_of_pgbouncer_is_found_from_where_it_stands() {
        let keys = |path: &str| match path {
            "" => ["routes", "limits"],
            "routes.rw" => ["pool", "queue_timeout"],
            "routes.rw.pool" => ["mode", "max_connections"],
            _ => ["max_connections", "reserve"],
        };
        let meant = |word, path| of_pgbouncer(word, path, |key| keys(path).contains(&key));
        for (word, path, expected) in [
            ("Pool_Mode", "", "routes.NAME.pool.mode"),
            ("pool_mode", "routes.rw", "pool.mode"),
            ("pool_mode", "routes.rw.pool", "mode"),
            (
                "pool_mode",
                "routes.rw.pool.overrides[0]",
                "routes.NAME.pool.mode",
            ),
            ("pool_size", "routes.rw.pool.overrides[0]", "max_connections"),
            ("pool_mode", "listeners[0]", "routes.NAME.pool.mode"),
            (
                "query_wait_timeout",
                "routes.rw.pool",
                "routes.NAME.queue_timeout",
            ),
            (
                "max_db_connections",
                "routes.rw.pool",
                "clusters.NAME.server.max_connections",
            ),
        ] {
            assert_eq!(meant(word, path).as_deref(), Some(expected), "{word} in {path}");
        }
        assert_eq!(meant("mode", "routes.rw"), None);
    }

    #[test]
    fn the_words_of_other_programs_are_known_where_they_fit() {
        let known = ["leader", "replica"];
        assert_eq!(meant("Primary", known.into_iter()), Some("leader"));
        assert_eq!(meant("standby", known.into_iter()), Some("replica"));
        assert_eq!(meant("warning", known.into_iter()), None);
    }
}
