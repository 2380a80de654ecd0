//! The scenarios of disks that move.

use std::time::Duration;

use super::super::disks::{DiskImage, WriteLoad};
use super::super::guest::{GUEST_OVERHEAD, Workload};
use super::super::link::Link;
use super::super::mapping::Warmth;

const MIB: u64 = 1 << 20;
/// Downtime limit of all contenders: the default of this engine and of QEMU.
const DOWNTIME_LIMIT_MS: u64 = 300;
/// What contenders are told to keep to where the guest writes half as fast: a gigabit.
const BUSY_LINK: u64 = 125_000_000;
/// Bytes of a write of the guest that writes so fast.
const BUSY_WRITE: u64 = 64 << 10;
/// Longest that a move of up to a gibibyte may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Data in the memory of a guest that has little but its disks.
const LITTLE: u64 = 16 * MIB;
/// Memory beside the guest's that a run warms up.
const WARM_EXTRA: u64 = 64 * MIB;

/// Writes that no storage feels.
const fn light(length: u64) -> WriteLoad {
    WriteLoad {
        size: 4096,
        rate: 500,
        depth: 4,
        length,
    }
}

/// Hardly any.
const IDLE: WriteLoad = WriteLoad {
    size: 4096,
    rate: 1,
    depth: 1,
    length: MIB,
};

/// What can be measured of disks that move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskScenario {
    /// A guest with a disk of which half holds data.
    Move,
    /// Guests with no, one and four disks: what these add to the downtime.
    Downtime,
    /// A disk that moves to another image on its host.
    Local,
    /// A guest that writes half as fast as the link carries.
    Busy,
    /// A guest that goes before its disk does.
    OnDemand,
}

/// What the contenders of a scenario find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskPlan {
    /// The scenario.
    pub scenario: DiskScenario,
    /// Its name, as `--scenario` takes it.
    pub name: &'static str,
    /// What happens, for people.
    pub what: &'static str,
    /// The guest.
    pub workload: Workload,
    /// A guest that has little but its disks.
    pub little: Workload,
    /// Disks that images are made for.
    pub disks: usize,
    /// Bytes of each.
    pub disk_bytes: u64,
    /// Bytes of each that hold data.
    pub data_bytes: u64,
    /// What the guest does with each.
    pub load: WriteLoad,
    /// Bytes a second that contenders are told to keep to.
    pub told_rate: Option<u64>,
    /// Longest that the guest may be stopped.
    pub downtime_limit_ms: u64,
    /// Longest that a move may take.
    pub patience: Duration,
}

impl DiskScenario {
    /// Its name, as `--scenario` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Move => "disk-move",
            Self::Downtime => "disk-downtime",
            Self::Local => "disk-local",
            Self::Busy => "disk-busy",
            Self::OnDemand => "disk-on-demand",
        }
    }
}

/// A scenario with `bytes` of data in a large guest.
pub(crate) fn plan(scenario: DiskScenario, bytes: u64) -> DiskPlan {
    let workload = |random_bytes: u64| Workload {
        cpus: 1,
        memory_bytes: random_bytes + GUEST_OVERHEAD,
        random_bytes,
        dirty_bytes: 0,
        dirty_pages_per_s: 0,
    };
    let plan = |what, memory, disks, disk_bytes, data_bytes| DiskPlan {
        scenario,
        name: scenario.name(),
        what,
        workload: workload(memory),
        little: workload(LITTLE),
        disks,
        disk_bytes,
        data_bytes,
        load: light(DiskImage::stretch(disk_bytes)),
        told_rate: None,
        downtime_limit_ms: DOWNTIME_LIMIT_MS,
        patience: PATIENCE.saturating_mul(u32::try_from(bytes >> 30).unwrap_or(u32::MAX).max(1)),
    };
    let sixteenth = (bytes / 16 / MIB).max(4) * MIB;
    match scenario {
        DiskScenario::Move => plan(
            "a guest moves with a disk of which half holds data",
            bytes,
            1,
            4 * bytes,
            2 * bytes,
        ),
        DiskScenario::Downtime => plan(
            "guests move with no, one and four disks",
            LITTLE,
            4,
            sixteenth,
            sixteenth,
        ),
        DiskScenario::Local => plan(
            "a disk moves to another image on its host, there and back",
            LITTLE,
            1,
            4 * sixteenth,
            4 * sixteenth,
        ),
        DiskScenario::Busy => DiskPlan {
            told_rate: Some(BUSY_LINK),
            load: WriteLoad {
                size: BUSY_WRITE,
                rate: BUSY_LINK / 2 / BUSY_WRITE,
                depth: 8,
                length: (bytes / 4 / MIB).max(1) * MIB,
            },
            ..plan(
                "a guest writes to a quarter of its disk, half as fast as the link carries",
                LITTLE,
                1,
                bytes,
                bytes,
            )
        },
        DiskScenario::OnDemand => DiskPlan {
            load: IDLE,
            ..plan(
                "an idle guest goes before its full disk does, which is fetched",
                LITTLE,
                1,
                8 * bytes,
                8 * bytes,
            )
        },
    }
}

impl DiskPlan {
    /// The link between the hosts, which lasts as long as the scenario.
    pub fn link(&self) -> Link {
        match self.told_rate {
            Some(rate) => Link::told(rate),
            None => Link::own_loopback(),
        }
    }

    /// Memory that is populated and freed right before a move.
    pub fn warmth(&self) -> Warmth {
        Warmth {
            small: self.workload.memory_bytes + WARM_EXTRA,
            huge: self.workload.data_bytes() + WARM_EXTRA,
        }
    }

    /// Memory that a run needs at once, the warm-up included; images are no memory.
    pub fn needed_memory(&self) -> u64 {
        self.workload.memory_bytes + self.little.memory_bytes + self.warmth().bytes()
    }

    /// Space that the images of a run need at once: at both hosts.
    pub fn needed_space(&self) -> u64 {
        2 * self.data_bytes * self.disks as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_load_writes_where_there_is_data() {
        for bytes in [2 * MIB, 16 * MIB, 1 << 30] {
            for scenario in [
                DiskScenario::Move,
                DiskScenario::Downtime,
                DiskScenario::Local,
                DiskScenario::Busy,
                DiskScenario::OnDemand,
            ] {
                let plan = plan(scenario, bytes);
                let DiskPlan {
                    disk_bytes,
                    data_bytes,
                    ..
                } = plan;
                assert!(data_bytes <= disk_bytes && disk_bytes.is_multiple_of(MIB));
                let whole = if data_bytes == disk_bytes {
                    disk_bytes
                } else {
                    DiskImage::stretch(disk_bytes)
                };
                assert!(plan.load.length <= whole, "{} {bytes}", plan.name);
                assert!(plan.needed_memory() >= 2 * plan.workload.memory_bytes);
            }
        }
        let busy = plan(DiskScenario::Busy, 1 << 30);
        let written = busy.load.rate * busy.load.size;
        assert!((BUSY_LINK * 49 / 100..=BUSY_LINK / 2).contains(&written));
    }
}
