//! What is measured.

use std::time::Duration;

use super::disk_moves::DiskScenario;
use super::guest::{GUEST_OVERHEAD, Workload};
use super::mapping::Warmth;

/// Downtime limit of all contenders: the default of this engine and of QEMU.
const DOWNTIME_LIMIT_MS: u64 = 300;
/// Memory beside the guest's that a run warms up: socket buffers, page tables, state.
const WARM_EXTRA: u64 = 64 << 20;
/// What the slow link carries a second: a gigabit.
const SLOW_LINK: u64 = 125_000_000;
/// Longest that a move of up to a gibibyte may take.
const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// A spinning guest with random memory.
    Idle,
    /// The same amount of memory, a quarter of it written to all the time.
    Dirty,
    /// A small guest that dirties its memory nearly as fast as the link carries it.
    Slow,
    /// A large guest that touched little of its memory.
    Zero,
    /// A small guest with two vCPUs.
    Cpus,
    /// Starting a guest, and the memory of the VMM.
    Start,
    /// Random requests of a guest's disk.
    DiskIops,
    /// What tracking the changes of a disk costs.
    DiskTracking,
    /// Disks that move.
    DiskMoves(DiskScenario),
}

/// A scenario in which a guest is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// Its name.
    pub name: &'static str,
    /// What the guest does, for people.
    pub what: &'static str,
    /// What the guest does.
    pub workload: Workload,
    /// Bytes a second that the link carries, where it is slow.
    pub link_rate: Option<u64>,
    /// Longest that the guest may be stopped.
    pub downtime_limit_ms: u64,
    /// Longest that a migration may take.
    pub patience: Duration,
    /// Memory that is populated and freed before each run: what the hungriest contender needs.
    pub warmth: Warmth,
    /// Whether peers and the limit take part.
    pub compared: bool,
    /// Whether also the variants are measured that may make a peer better.
    pub further_variants: bool,
}

impl Scenario {
    /// All, in the order of the report.
    pub const ALL: [Self; 13] = [
        Self::Idle,
        Self::Dirty,
        Self::Slow,
        Self::Zero,
        Self::Cpus,
        Self::Start,
        Self::DiskIops,
        Self::DiskTracking,
        Self::DiskMoves(DiskScenario::Move),
        Self::DiskMoves(DiskScenario::Downtime),
        Self::DiskMoves(DiskScenario::Local),
        Self::DiskMoves(DiskScenario::Busy),
        Self::DiskMoves(DiskScenario::OnDemand),
    ];

    /// How the memory of a guest is moved, with `bytes` of data in the large ones; `None` where that is not what is
    /// measured.
    pub(super) fn plan(self, bytes: u64) -> Option<Plan> {
        let workload = |memory_bytes, random_bytes| Workload {
            cpus: 1,
            memory_bytes,
            random_bytes,
            dirty_bytes: 0,
            dirty_pages_per_s: 0,
        };
        let plan = |name, what, workload: Workload| Plan {
            name,
            what,
            workload,
            link_rate: None,
            downtime_limit_ms: DOWNTIME_LIMIT_MS,
            patience: patience(workload.memory_bytes),
            warmth: Warmth {
                small: workload.memory_bytes + WARM_EXTRA,
                huge: workload.data_bytes() + WARM_EXTRA,
            },
            compared: true,
            further_variants: false,
        };
        Some(match self {
            Self::Idle => Plan {
                further_variants: true,
                ..plan(
                    "idle",
                    "a spinning guest with random memory",
                    workload(bytes + GUEST_OVERHEAD, bytes),
                )
            },
            Self::Dirty => plan(
                "dirty",
                "random memory, a quarter of it dirtied all the time",
                Workload {
                    dirty_bytes: quarter(bytes),
                    dirty_pages_per_s: 25_000,
                    ..workload(bytes + GUEST_OVERHEAD, bytes - quarter(bytes))
                },
            ),
            Self::Slow => Plan {
                link_rate: Some(SLOW_LINK),
                ..plan(
                    "slow",
                    "a small working set dirtied all the time, and a slow link",
                    Workload {
                        dirty_bytes: 64 * MIB,
                        dirty_pages_per_s: 20_000,
                        ..workload(64 * MIB + GUEST_OVERHEAD, 0)
                    },
                )
            },
            // A source that reads what was never touched has it allocated, and so has such a
            // destination.
            Self::Zero => {
                let plan = plan(
                    "zero",
                    "a large guest that touched little of its memory",
                    workload(4 * bytes + GUEST_OVERHEAD, (bytes / 16 / MIB).max(1) * MIB),
                );
                let small = 2 * plan.workload.memory_bytes + WARM_EXTRA;
                Plan {
                    warmth: Warmth {
                        small,
                        ..plan.warmth
                    },
                    ..plan
                }
            }
            Self::Cpus => Plan {
                compared: false,
                ..plan(
                    "cpus",
                    "two vCPUs that spin",
                    Workload {
                        cpus: 2,
                        ..workload(64 * MIB + GUEST_OVERHEAD, 64 * MIB)
                    },
                )
            },
            Self::Start | Self::DiskIops | Self::DiskTracking | Self::DiskMoves(_) => return None,
        })
    }
}

/// A quarter in whole mebibytes.
fn quarter(bytes: u64) -> u64 {
    (bytes / 4 / MIB * MIB).max(MIB)
}

fn patience(memory_bytes: u64) -> Duration {
    PATIENCE.saturating_mul(u32::try_from(memory_bytes >> 30).unwrap_or(u32::MAX).max(1))
}

impl Plan {
    /// Memory that a run needs at once, the warm-up included.
    pub fn needed_memory(&self) -> u64 {
        // The source's guest and, after the warm-up, the destination's; or both sides of the copy.
        self.workload.memory_bytes + self.warmth.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_guest_has_room_for_what_it_holds() {
        for bytes in [MIB, 256 * MIB, 1 << 30, 3 * MIB] {
            for plan in Scenario::ALL
                .iter()
                .filter_map(|s| s.plan(bytes.max(2 * MIB)))
            {
                let Workload { memory_bytes, .. } = plan.workload;
                let data = plan.workload.data_bytes();
                assert!(
                    data > 0 && data + GUEST_OVERHEAD <= memory_bytes,
                    "{}",
                    plan.name
                );
                assert_eq!(memory_bytes % MIB, 0, "{}", plan.name);
                assert!(plan.needed_memory() >= 2 * memory_bytes);
            }
        }
        let dirty = Scenario::Dirty.plan(1 << 30).unwrap().workload;
        assert_eq!(dirty.dirty_bytes, 256 * MIB);
        assert_eq!(dirty.data_bytes(), 1 << 30);
    }
}
