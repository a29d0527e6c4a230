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
    fn the_words_of_other_programs_are_known_where_they_fit() {
        let known = ["leader", "replica"];
        assert_eq!(meant("Primary", known.into_iter()), Some("leader"));
        assert_eq!(meant("standby", known.into_iter()), Some("replica"));
        assert_eq!(meant("warning", known.into_iter()), None);
    }
}
