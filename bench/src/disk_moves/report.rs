//! The report of disks that move, for people.

use control::units::{ByteSize, human_bytes};

use super::super::stats::Samples;
use super::super::table::Table;
use super::super::unit::Unit;
use super::figures::{DiskMoveFigures, MoverFigures};

/// A column: its head, and what it shows of a contender that has it.
type Column = (&'static str, fn(&MoverFigures) -> Option<String>);

fn median(samples: &Option<Samples>, unit: Unit) -> Option<String> {
    samples.as_ref().map(|samples| unit.show(samples.median))
}

fn largest(samples: &Option<Samples>, unit: Unit) -> Option<String> {
    samples.as_ref().map(|samples| unit.show(samples.max))
}

fn ratio(ratio: Option<f64>) -> Option<String> {
    ratio.map(|ratio| Unit::Ratio.show(ratio))
}

/// All columns; those that no contender has anything in are left out.
const COLUMNS: [Column; 20] = [
    ("total", |c| median(&c.total_ms, Unit::Milliseconds)),
    ("max", |c| largest(&c.total_ms, Unit::Milliseconds)),
    ("runs after", |c| median(&c.runs_ms, Unit::Milliseconds)),
    ("at most", |c| largest(&c.runs_ms, Unit::Milliseconds)),
    ("gap", |c| median(&c.guest_gap_ms, Unit::Milliseconds)),
    ("downtime", |c| median(&c.downtime_ms, Unit::Milliseconds)),
    ("I/O pause", |c| median(&c.io_pause_ms, Unit::Milliseconds)),
    ("worst I/O pause", |c| {
        largest(&c.io_pause_ms, Unit::Milliseconds)
    }),
    ("p99 of writes", |c| {
        median(&c.write_p99_ms, Unit::Milliseconds)
    }),
    ("longest write", |c| {
        median(&c.write_max_ms, Unit::Milliseconds)
    }),
    ("CPU", |c| median(&c.cpu_s, Unit::Seconds)),
    ("bulk/s", |c| median(&c.bulk_bytes_per_s, Unit::Bytes)),
    ("wire to data", |c| median(&c.wire_to_data, Unit::Ratio)),
    ("disk sent to data", |c| {
        median(&c.disk_sent_to_data, Unit::Ratio)
    }),
    ("page cache", |c| {
        median(&c.page_cache_growth_bytes, Unit::Bytes)
    }),
    ("to best QEMU", |c| ratio(c.total_to_best_peer)),
    ("p99 to QEMU", |c| ratio(c.write_p99_to_best_peer)),
    ("bulk to nbdcopy", |c| ratio(c.bulk_to_plain_copy)),
    ("gap added", |c| {
        c.gap_added_ms.map(|ms| Unit::Milliseconds.show(ms))
    }),
    ("downtime added", |c| {
        c.downtime_added_ms.map(|ms| Unit::Milliseconds.show(ms))
    }),
];

impl DiskMoveFigures {
    /// What the scenario is, in a line.
    pub(crate) fn title(&self, runs: u32) -> String {
        format!(
            "{}: {}: disks of {} with {} of data, written at {}/s, memory with {} of data, {}, {runs} runs",
            self.name,
            self.what,
            ByteSize(self.disk_bytes),
            ByteSize(self.disk_data_bytes),
            human_bytes(self.written_bytes_per_s as f64),
            ByteSize(self.guest.data_bytes()),
            self.link
        )
    }

    /// The contenders and how they compare.
    pub(crate) fn table(&self) -> Table {
        let shown: Vec<_> = COLUMNS
            .iter()
            .filter(|(_, cell)| self.contenders.iter().any(|c| cell(c).is_some()))
            .collect();
        let heads: Vec<_> = std::iter::once("")
            .chain(shown.iter().map(|(head, _)| *head))
            .collect();
        let mut table = Table::new(&heads);
        for contender in &self.contenders {
            let mut cells = vec![contender.name.clone()];
            if contender.total_ms.is_some() {
                let values = shown.iter().map(|(_, cell)| cell(contender));
                cells.extend(values.map(|value| value.unwrap_or_else(|| "-".to_owned())));
            } else {
                cells.push("left out".to_owned());
            }
            table.row(cells);
        }
        table
    }

    /// Who was left out and why, for people.
    pub(crate) fn left_out(&self) -> Vec<String> {
        let out = self.contenders.iter().filter_map(|contender| {
            let why = contender.gave_up.as_ref()?;
            Some(format!("{} was left out: {why}", contender.name))
        });
        let no_copy = self.no_plain_copy.iter();
        out.chain(no_copy.map(|why| format!("there is no plain copy: {why}")))
            .collect()
    }
}
