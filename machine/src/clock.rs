//! The guest's clocks: kvmclock and the TSC.
//!
//! # Policy
//! The guest's monotonic clock goes on by the real time that passed while it was stopped or on its
//! way, and never goes back; docs/clocks.md tells it for each clock. What passed is known by the wall
//! clocks of both hosts, as far as they agree with what the destination's own clock says of the moment
//! when the state was saved ([`TimeBounds`]): a wall clock that says more or less than can be is not
//! believed, and the middle of what can be is taken.
//!
//! The TSC follows kvmclock, by the offset that the vCPU device attribute's documentation gives:
//! `offset' = t0 + offset + (k1 - k0) * frequency - t1`, with `t` the host's TSC and `k` kvmclock at
//! the same moment, 0 at the source and 1 at the destination. On the same host the formula gives the
//! old offset back but for rounding, so there the old one is kept to the cycle. Where KVM scales, `t` is
//! the host's TSC at the guest's rate.

use std::io;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_CAP_ADJUST_CLOCK, KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, kvm_clock_data};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::kvm::os_error;
use crate::kvm::tsc::{self, TscRate};

/// Saved clock; frozen: a change makes a `V2` with a conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockStateV1 {
    /// kvmclock in nanoseconds.
    pub kvmclock_ns: u64,
    /// `CLOCK_REALTIME` of the source host at that moment.
    pub realtime_ns: Option<u64>,
    /// The source host's TSC at that moment, at the guest's rate.
    pub host_tsc: Option<u64>,
}

/// Readings of the same moment that a busy host tore apart are taken again, so many times at most.
const READINGS: u32 = 8;
/// Readings this close together count as the same moment.
const CLOSE: Duration = Duration::from_micros(2);

/// Reads the clock of a paused VM.
///
/// # Errors
/// When KVM refuses.
pub fn save(vm: &VmFd, rate: TscRate) -> io::Result<ClockStateV1> {
    let mut best: Option<(Duration, ClockStateV1)> = None;
    for _ in 0..READINGS {
        let (began, tsc_before, real_before) = (Instant::now(), tsc::now(), realtime_now());
        let data = vm.get_clock().map_err(os_error)?;
        let (real_after, tsc_after) = (realtime_now(), tsc::now());
        let took = began.elapsed();
        let knows_real = data.flags & KVM_CLOCK_REALTIME != 0;
        let knows_tsc = data.flags & KVM_CLOCK_HOST_TSC != 0;
        let host_tsc = if knows_tsc {
            data.host_tsc
        } else {
            tsc_before + tsc_after.saturating_sub(tsc_before) / 2
        };
        let realtime = if knows_real {
            data.realtime
        } else {
            real_before.saturating_add(real_after.saturating_sub(real_before) / 2)
        };
        let reading = ClockStateV1 {
            kvmclock_ns: data.clock,
            realtime_ns: Some(realtime),
            host_tsc: Some(rate.scale(host_tsc)),
        };
        // What KVM took at once no preemption can tear apart.
        if knows_real && knows_tsc {
            return Ok(reading);
        }
        if best.is_none_or(|(shortest, _)| took < shortest) {
            best = Some((took, reading));
        }
        if took < CLOSE {
            break;
        }
    }
    best.map(|(_, reading)| reading)
        .ok_or_else(|| io::Error::other("the clock was not read"))
}

/// When a state was saved, as far as this host's own clock can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimeBounds {
    /// Not before.
    pub earliest: Option<Instant>,
    /// Not after.
    pub latest: Option<Instant>,
}

impl TimeBounds {
    /// The real time between the saving and now, by the wall clocks as far as they can be right.
    ///
    /// `then` and `now` are wall clocks; the second was read between the two instants.
    fn passed(self, then: Option<u64>, now: u64, before: Instant, after: Instant) -> u64 {
        let ns = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let least = self
            .latest
            .map_or(0, |latest| ns(before.saturating_duration_since(latest)));
        let most = self
            .earliest
            .map(|earliest| ns(after.saturating_duration_since(earliest)).max(least));
        let by_wall = then.and_then(|then| now.checked_sub(then));
        match (by_wall, most) {
            (Some(wall), Some(most)) if (least..=most).contains(&wall) => wall,
            (_, Some(most)) => least + (most - least) / 2,
            (Some(wall), None) => wall.max(least),
            (None, None) => least,
        }
    }
}

/// Sets the clock of a VM that never ran, moved on by the real time that passed since it was saved.
///
/// # Errors
/// When KVM refuses.
pub fn load(vm: &VmFd, state: &ClockStateV1, bounds: TimeBounds) -> io::Result<()> {
    let ClockStateV1 {
        kvmclock_ns,
        realtime_ns,
        host_tsc: _,
    } = *state;
    let flags = vm.check_extension_raw(KVM_CAP_ADJUST_CLOCK.into()).max(0) as u32;
    for _ in 0..READINGS {
        let before = Instant::now();
        let realtime = realtime_now();
        let after = Instant::now();
        let passed = bounds.passed(realtime_ns, realtime, before, after);
        let mut data = kvm_clock_data {
            clock: kvmclock_ns.saturating_add(passed),
            ..Default::default()
        };
        if flags & KVM_CLOCK_REALTIME != 0 {
            // KVM adds what passes from here until it sets the clock (KVM API 4.30).
            data.flags = KVM_CLOCK_REALTIME;
            data.realtime = realtime;
            return vm.set_clock(&data).map_err(os_error);
        }
        vm.set_clock(&data).map_err(os_error)?;
        if before.elapsed() < CLOSE * 10 {
            break;
        }
    }
    Ok(())
}

fn realtime_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// What passed for a guest between two readings of its clock, of which the second may be on another
/// host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Passed {
    /// Nanoseconds of kvmclock.
    pub ns: u64,
    /// The guest's cycles in that time.
    pub cycles: u64,
    /// By how many cycles this host's TSC is behind of what the guest expects; it wraps where this one
    /// is ahead. Zero on the same host.
    pub tsc_behind: u64,
}

/// How far, in nanoseconds, two readings on one host may lie apart.
const SAME_HOST_NS: u64 = 50_000;

impl Passed {
    /// Between `then`, as it was saved, and `now`, read after it was loaded; `rate` is this host's.
    pub fn between(then: &ClockStateV1, now: &ClockStateV1, rate: TscRate) -> Self {
        let ns = now.kvmclock_ns.saturating_sub(then.kvmclock_ns);
        let cycles = rate.cycles(ns);
        let tsc_behind = match (then.host_tsc, now.host_tsc) {
            (Some(t0), Some(t1)) => {
                let expected = t0.wrapping_add(cycles);
                if expected.abs_diff(t1) <= rate.cycles(SAME_HOST_NS) {
                    0
                } else {
                    expected.wrapping_sub(t1)
                }
            }
            _ => 0,
        };
        Self {
            ns,
            cycles,
            tsc_behind,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: TscRate = TscRate {
        host: 2_000_000,
        guest: 2_000_000,
    };
    const MS: u64 = 1_000_000;

    fn at(kvmclock_ns: u64, host_tsc: u64) -> ClockStateV1 {
        ClockStateV1 {
            kvmclock_ns,
            realtime_ns: None,
            host_tsc: Some(host_tsc),
        }
    }

    /// What passed, in milliseconds, for a state that was saved 8 to 20 ms ago, by a wall clock that
    /// says `wall`.
    fn believed(wall: Option<i64>) -> u64 {
        let began = Instant::now();
        let bounds = TimeBounds {
            earliest: Some(began),
            latest: Some(began + Duration::from_millis(12)),
        };
        let now = began + Duration::from_millis(20);
        let wall_now = 1_000_000 * MS;
        let then = wall.map(|ms| (1_000_000 - ms) as u64 * MS);
        bounds.passed(then, wall_now, now, now) / MS
    }

    #[test]
    fn wall_clocks_are_believed_as_far_as_they_can_be_right() {
        for (wall, passed) in [
            (Some(10), 10),
            (Some(8), 8),
            (Some(20), 20),
            // They differ by more than the way of the state: the middle of what can be.
            (Some(7), 14),
            (Some(21), 14),
            (Some(-3_600_000), 14),
            (Some(3_600_000_000), 14),
            (None, 14),
        ] {
            let wall = wall.map(|ms: i64| ms.min(900_000));
            assert_eq!(believed(wall), passed, "{wall:?}");
        }
    }

    #[test]
    fn without_bounds_a_wall_clock_takes_nothing_back() {
        let now = Instant::now();
        let open = TimeBounds::default();
        assert_eq!(open.passed(Some(100), 350, now, now), 250);
        assert_eq!(open.passed(Some(1_000), 900, now, now), 0);
        assert_eq!(open.passed(None, 900, now, now), 0);
        assert_eq!(open.passed(Some(0), u64::MAX, now, now), u64::MAX);
    }

    proptest! {
        #[test]
        fn whatever_a_peer_says_the_clock_moves_within_the_window(
            then in any::<u64>(), now in any::<u64>(), lag in 0_u64..1000, way in 0_u64..1000,
        ) {
            let began = Instant::now();
            let latest = began + Duration::from_millis(way);
            let bounds = TimeBounds { earliest: Some(began), latest: Some(latest) };
            let moment = latest + Duration::from_millis(lag);
            let passed = bounds.passed(Some(then), now, moment, moment);
            prop_assert!((lag * MS..=(lag + way) * MS).contains(&passed), "{passed}");
        }
    }

    #[test]
    fn the_same_host_keeps_the_offset_to_the_cycle() {
        let passed = Passed::between(&at(1_000_000, 10_000_000), &at(2_000_000, 12_000_007), RATE);
        assert_eq!((passed.ns, passed.tsc_behind), (1_000_000, 0));
    }

    #[test]
    fn another_host_continues_the_guests_tsc() {
        let then = at(1_000_000_000, 50_000_000_000);
        let now = at(1_500_000_000, 7_000_000_000);
        let passed = Passed::between(&then, &now, RATE);
        // Half a second at 2 GHz after the guest saw 50_000_000_040.
        let offset = 40_u64.wrapping_add(passed.tsc_behind);
        assert_eq!(7_000_000_000_u64.wrapping_add(offset), 51_000_000_040);
        assert_eq!(passed.cycles, 1_000_000_000);
        // And back again, to a host whose TSC is ahead.
        let back = Passed::between(&at(0, 7_000_000_000), &at(1000 * MS, 50_000_000_000), RATE);
        let offset = offset.wrapping_add(back.tsc_behind);
        assert_eq!(50_000_000_000_u64.wrapping_add(offset), 53_000_000_040);
    }

    #[test]
    fn a_clock_that_was_not_moved_on_makes_nothing_go_back() {
        let passed = Passed::between(&at(2_000, 10), &at(1_000, 10), RATE);
        assert_eq!((passed.ns, passed.cycles), (0, 0));
    }
}
