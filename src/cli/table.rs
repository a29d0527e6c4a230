//! Tables for people: columns as wide as their widest cell.

use super::plain::plain;

/// The longest cell; it may contain a server's error text.
const MAX_CELL: usize = 120;

pub(super) struct Table {
    rows: Vec<Vec<String>>,
    /// Columns of numbers.
    right: Vec<bool>,
}

impl Table {
    pub(super) fn new(headings: &[&str]) -> Self {
        Self {
            rows: vec![headings.iter().map(ToString::to_string).collect()],
            right: vec![false; headings.len()],
        }
    }

    /// Cells of these columns end at the same place.
    pub(super) fn right(mut self, headings: &[&str]) -> Self {
        for (right, heading) in self.right.iter_mut().zip(&self.rows[0]) {
            *right = headings.contains(&heading.as_str());
        }
        self
    }

    /// Control characters are escaped: a terminal would obey them.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        let cells = cells
            .into_iter()
            .map(|cell| plain(&cell).chars().take(MAX_CELL).collect());
        self.rows.push(cells.collect());
    }

    pub(super) fn text(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells: Vec<String> = row
                .iter()
                .zip(widths.iter().zip(&self.right))
                .map(|(cell, (&width, &right))| {
                    if right {
                        format!("{cell:>width$}")
                    } else {
                        format!("{cell:<width$}")
                    }
                })
                .collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_control_characters_are_harmless() {
        let mut table = Table::new(&["NAME", "N"]).right(&["N"]);
        table.row(vec!["a\u{1b}[31m".to_owned(), "7".to_owned()]);
        table.row(vec!["äö".to_owned(), "100".to_owned()]);
        assert_eq!(
            table.text(),
            "NAME           N\na\\u{1b}[31m    7\näö           100\n"
        );
    }
}
