//! The guest's clocks: kvmclock and the TSC.
//!
//! # Policy
//! The guest's monotonic clock goes on by the real time that passed while it was stopped or on its
//! way: `KVM_SET_CLOCK` with the source's `CLOCK_REALTIME` (KVM API 4.30) does so for kvmclock (where
//! KVM does not know that clock, because the host's own is not the TSC, the same is done here), and
//! the TSC follows by the offset that the vCPU device attribute's documentation gives:
//! `offset' = t0 + offset + (k1 - k0) * frequency - t1`, with `t` the host's TSC and `k` kvmclock at
//! the same moment, 0 at the source and 1 at the destination. On the same host the formula gives the
//! old offset back but for rounding, so there the old one is kept to the cycle.

use kvm_bindings::{KVM_CAP_ADJUST_CLOCK, KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, kvm_clock_data};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use std::io;

use crate::kvm::os_error;

/// Saved clock; frozen: a change makes a `V2` with a conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockStateV1 {
    /// kvmclock in nanoseconds.
    pub kvmclock_ns: u64,
    /// `CLOCK_REALTIME` of the source host at that moment.
    pub realtime_ns: Option<u64>,
    /// The source host's TSC at that moment, where its KVM tells.
    pub host_tsc: Option<u64>,
}

/// Reads the clock of a paused VM.
///
/// # Errors
/// When KVM refuses.
pub fn save(vm: &VmFd) -> io::Result<ClockStateV1> {
    let data = vm.get_clock().map_err(os_error)?;
    let realtime = if data.flags & KVM_CLOCK_REALTIME != 0 {
        data.realtime
    } else {
        realtime_now()
    };
    Ok(ClockStateV1 {
        kvmclock_ns: data.clock,
        realtime_ns: Some(realtime),
        host_tsc: (data.flags & KVM_CLOCK_HOST_TSC != 0).then_some(data.host_tsc),
    })
}

/// Sets the clock of a VM that never ran, moved on by the real time that passed.
///
/// # Errors
/// When KVM refuses.
pub fn load(vm: &VmFd, state: &ClockStateV1) -> io::Result<()> {
    let ClockStateV1 {
        kvmclock_ns,
        realtime_ns,
        host_tsc: _,
    } = *state;
    let flags = vm.check_extension_raw(KVM_CAP_ADJUST_CLOCK.into()).max(0) as u32;
    let data = match realtime_ns {
        Some(realtime) if flags & KVM_CLOCK_REALTIME != 0 => kvm_clock_data {
            clock: kvmclock_ns,
            flags: KVM_CLOCK_REALTIME,
            realtime,
            ..Default::default()
        },
        _ => kvm_clock_data {
            clock: moved_on(kvmclock_ns, realtime_ns, realtime_now()),
            ..Default::default()
        },
    };
    vm.set_clock(&data).map_err(os_error)
}

/// A clock of `clock` nanoseconds at real time `then`, at real time `now`; it never goes back.
fn moved_on(clock: u64, then: Option<u64>, now: u64) -> u64 {
    clock.saturating_add(then.map_or(0, |then| now.saturating_sub(then)))
}

fn realtime_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// How far, in nanoseconds, two readings on one host may lie apart.
const SAME_HOST_NS: u64 = 50_000;

/// Offset of a vCPU's TSC on this host, whose clock was loaded and read again as `now`.
pub fn tsc_offset(saved: u64, then: &ClockStateV1, now: &ClockStateV1, khz: u32) -> u64 {
    let (Some(t0), Some(t1)) = (then.host_tsc, now.host_tsc) else {
        return saved;
    };
    let elapsed_ns = now.kvmclock_ns.wrapping_sub(then.kvmclock_ns);
    let cycles = |ns: u64| (u128::from(ns) * u128::from(khz) / 1_000_000) as u64;
    let expected = t0.wrapping_add(cycles(elapsed_ns));
    if expected.abs_diff(t1) <= cycles(SAME_HOST_NS) {
        return saved;
    }
    saved.wrapping_add(expected).wrapping_sub(t1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KHZ: u32 = 2_000_000;

    fn at(kvmclock_ns: u64, host_tsc: u64) -> ClockStateV1 {
        ClockStateV1 {
            kvmclock_ns,
            realtime_ns: None,
            host_tsc: Some(host_tsc),
        }
    }

    #[test]
    fn a_clock_moves_on_by_the_real_time_and_never_back() {
        assert_eq!(moved_on(100, Some(1_000), 1_250), 350);
        assert_eq!(moved_on(100, Some(1_000), 900), 100);
        assert_eq!(moved_on(100, None, 900), 100);
        assert_eq!(moved_on(100, Some(0), u64::MAX), u64::MAX);
    }

    #[test]
    fn the_same_host_keeps_the_offset_to_the_cycle() {
        let then = at(1_000_000, 10_000_000);
        let now = at(2_000_000, 12_000_007);
        assert_eq!(tsc_offset(123, &then, &now, KHZ), 123);
    }

    #[test]
    fn another_host_continues_the_guests_tsc() {
        let then = at(1_000_000_000, 50_000_000_000);
        let now = at(1_500_000_000, 7_000_000_000);
        let old = 40_u64;
        let offset = tsc_offset(old, &then, &now, KHZ);
        // Half a second at 2 GHz after the guest saw 50_000_000_040.
        assert_eq!(7_000_000_000_u64.wrapping_add(offset), 51_000_000_040);
    }
}
