//! What a guest asks of its disk in one measurement.

use serde::Serialize;

/// Kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskOp {
    /// Reads.
    Read,
    /// Writes.
    Write,
}

/// One kind of request at one depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// Kind of request.
    pub op: DiskOp,
    /// Requests in flight at once.
    pub depth: u8,
}

impl DiskOp {
    /// The word that the guest has for it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

impl Cell {
    /// All that are measured.
    pub(super) const ALL: [Self; 4] = [
        Self::of(DiskOp::Read, 1),
        Self::of(DiskOp::Read, 32),
        Self::of(DiskOp::Write, 1),
        Self::of(DiskOp::Write, 32),
    ];

    const fn of(op: DiskOp, depth: u8) -> Self {
        Self { op, depth }
    }

    /// Names of the goals: requests a second, and the 99th percentile of their times.
    pub(super) fn goals(self) -> [&'static str; 2] {
        match (self.op, self.depth) {
            (DiskOp::Read, 1) => ["read_1_iops_to_best_peer", "read_1_p99_to_best_peer"],
            (DiskOp::Read, _) => ["read_32_iops_to_best_peer", "read_32_p99_to_best_peer"],
            (DiskOp::Write, 1) => ["write_1_iops_to_best_peer", "write_1_p99_to_best_peer"],
            (DiskOp::Write, _) => ["write_32_iops_to_best_peer", "write_32_p99_to_best_peer"],
        }
    }

    /// The kernel command line of a guest whose requests are counted for `interval_ms` at a time.
    pub(super) fn command_line(self, interval_ms: u64) -> String {
        let reads = match self.op {
            DiskOp::Read => 100,
            DiskOp::Write => 0,
        };
        format!(
            "idle=spin tick_ms=1000 disk=0,pattern=random,size=4K,read={reads},depth={},\
             interval_ms={interval_ms}",
            self.depth
        )
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at depth {}", self.op.word(), self.depth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_has_goals_of_its_own_and_asks_for_what_it_says() {
        let names: std::collections::BTreeSet<_> =
            Cell::ALL.iter().flat_map(|cell| cell.goals()).collect();
        assert_eq!(names.len(), 2 * Cell::ALL.len());
        let line = Cell::ALL[3].command_line(1000);
        assert!(line.contains("read=0,depth=32"), "{line}");
        assert!(
            Cell::ALL[0]
                .command_line(1000)
                .contains("read=100,depth=1,")
        );
    }
}
