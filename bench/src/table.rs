//! Tables for people: aligned columns, or the same as Markdown.

use comfy_table::{CellAlignment, presets};

use super::stats::Samples;
use super::unit::Unit;

/// Rows of cells, the first row being the heads of the columns.
pub(super) struct Table(Vec<Vec<String>>);

impl Table {
    /// A table with these heads.
    pub fn new(heads: &[&str]) -> Self {
        Self(vec![heads.iter().map(|head| (*head).to_owned()).collect()])
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.0.push(cells);
    }

    /// Aligned columns: the first to the left, the others to the right.
    pub fn text(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).add_rows(&self.0);
        for column in table.column_iter_mut() {
            column.set_padding((2, 0));
            if column.index > 0 {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.trim_fmt() + "\n"
    }

    /// The same as Markdown. Made here: comfy-table's style for it aligns no column to the right.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for (index, row) in self.0.iter().enumerate() {
            text += &format!("| {} |\n", row.join(" | "));
            if index == 0 {
                text += &format!("|---|{}\n", "---:|".repeat(row.len().saturating_sub(1)));
            }
        }
        text
    }
}

/// One figure a row, with its spread.
pub(super) fn samples(rows: &[(&str, &Samples, Unit)]) -> Table {
    let mut table = Table::new(&["", "median", "min", "max"]);
    for (label, samples, unit) in rows {
        let values = [samples.median, samples.min, samples.max];
        let mut cells = vec![(*label).to_owned()];
        cells.extend(values.map(|value| unit.show(value)));
        table.row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let values = Samples::new(vec![900.0, 1250.0, 950.0]).unwrap();
        let rows = [
            ("total", &values, Unit::Milliseconds),
            ("on the wire", &values, Unit::Bytes),
        ];
        let table = samples(&rows);
        assert_eq!(
            table.text(),
            "               median     min       max\n\
             \x20 total        950 ms  900 ms    1.25 s\n\
             \x20 on the wire   950 B   900 B  1.22 KiB\n"
        );
        assert_eq!(
            table.markdown(),
            "|  | median | min | max |\n\
             |---|---:|---:|---:|\n\
             | total | 950 ms | 900 ms | 1.25 s |\n\
             | on the wire | 950 B | 900 B | 1.22 KiB |\n"
        );
    }
}
