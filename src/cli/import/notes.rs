//! What has no equivalent, and what is different afterwards.

use indexmap::IndexSet;

use crate::wire::text::is_unsafe;

/// One line of the list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Note {
    pub(super) line: Option<usize>,
    /// The directive or key, never its value: that could be a secret.
    pub(super) what: String,
    /// Why, and what instead.
    pub(super) why: String,
    pub(super) weight: Weight,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Weight {
    /// It is not in what was written.
    Lost,
    /// It is, but it means something else, or was guessed.
    Differs,
}

/// Without repetitions (inherited lines would be noted once for each section), in the order of the
/// lines.
#[derive(Debug, Default)]
pub(super) struct Notes(IndexSet<Note>);

impl Notes {
    pub(super) fn lost(&mut self, line: impl Into<Option<usize>>, what: &str, why: impl Into<String>) {
        self.add(line.into(), what, &why.into(), Weight::Lost);
    }

    pub(super) fn differs(&mut self, line: impl Into<Option<usize>>, what: &str, why: impl Into<String>) {
        self.add(line.into(), what, &why.into(), Weight::Differs);
    }

    fn add(&mut self, line: Option<usize>, what: &str, why: &str, weight: Weight) {
        // The text is not trusted, and goes to a terminal and into comments.
        let one_line = |text: &str| -> String {
            let shown = text.chars().take(200);
            shown.map(|c| if is_unsafe(c) { '?' } else { c }).collect()
        };
        self.0.insert(Note {
            line,
            what: one_line(what),
            why: why.replace(is_unsafe, "?"),
            weight,
        });
    }

    fn sorted(&self, weight: Weight) -> Vec<&Note> {
        let mut notes: Vec<&Note> = self.0.iter().filter(|note| note.weight == weight).collect();
        notes.sort_by_key(|note| note.line);
        notes
    }

    /// Two lists, each under its heading; empty where there is nothing to say.
    pub(super) fn lines(&self, file: &str) -> Vec<String> {
        let mut lines = Vec::new();
        for (weight, heading) in [
            (Weight::Lost, "Has no equivalent:"),
            (Weight::Differs, "Is different, or needs a check:"),
        ] {
            let notes = self.sorted(weight);
            if !notes.is_empty() {
                lines.push(heading.to_owned());
            }
            lines.extend(notes.into_iter().map(|note| {
                let line = note.line.map_or(String::new(), |line| format!("{line}:"));
                format!("{file}:{line} {}: {}", note.what, note.why)
            }));
        }
        lines
    }
}
