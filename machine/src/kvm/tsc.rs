//! The host's TSC, and the rate at which a guest's runs.

// RDTSC is an intrinsic that the compiler calls unsafe.
#![allow(unsafe_code)]

use std::io;
use std::sync::OnceLock;

use kvm_ioctls::{Cap, Kvm, VcpuFd};

use super::{create_vm, os_error};

/// How far two TSCs may differ in rate and count as the same, in parts per million: what a guest's
/// own discipline of its clock makes up for, and what KVM tolerates without scaling.
pub const TOLERANCE_PPM: u64 = 250;

/// The host's TSC now.
pub fn now() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction; user space may use it unless it asked for a
    // signal instead (PR_SET_TSC), which nothing here does.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Whether a guest of `guest` kHz can do with a TSC of `host` kHz as it is; zero is unknown.
pub fn near(guest: u32, host: u32) -> bool {
    let (guest, host) = (u64::from(guest), u64::from(host));
    guest == 0 || host == 0 || guest.abs_diff(host) * 1_000_000 <= TOLERANCE_PPM * host
}

/// The TSC that a host gives to its guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostTsc {
    /// Its rate; zero where KVM does not know it.
    pub khz: u32,
    /// Whether a guest may have another rate.
    pub scales: bool,
}

impl HostTsc {
    /// What this host has; `vcpu` was just made.
    pub fn of(kvm: &Kvm, vcpu: &VcpuFd) -> Self {
        Self {
            // EIO: KVM knows no rate, because the host's TSC is not constant.
            khz: vcpu.get_tsc_khz().unwrap_or(0),
            scales: kvm.check_extension(Cap::TscControl),
        }
    }

    /// What this host has, asked of a VM that is made for it and dropped. That takes tens of
    /// milliseconds, and the answer stays the same: only the first call asks.
    ///
    /// # Errors
    /// When no VM can be made.
    pub fn probe(kvm: &Kvm) -> io::Result<Self> {
        static KNOWN: OnceLock<HostTsc> = OnceLock::new();
        if let Some(known) = KNOWN.get() {
            return Ok(*known);
        }
        let vm = create_vm(kvm).map_err(io::Error::other)?;
        let vcpu = vm.create_vcpu(0).map_err(os_error)?;
        Ok(*KNOWN.get_or_init(|| Self::of(kvm, &vcpu)))
    }

    /// How a guest of `khz` runs here; `None` if it cannot.
    pub fn rate_for(self, khz: u32) -> Option<TscRate> {
        if near(khz, self.khz) {
            Some(TscRate::unscaled(self.khz))
        } else if self.scales {
            Some(TscRate {
                host: self.khz,
                guest: khz,
            })
        } else {
            None
        }
    }
}

/// Rates of the host's TSC and of the guest's, in kHz.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TscRate {
    /// The host's.
    pub host: u32,
    /// The guest's; the same unless KVM scales.
    pub guest: u32,
}

impl TscRate {
    /// A guest that has the host's rate.
    pub fn unscaled(khz: u32) -> Self {
        Self {
            host: khz,
            guest: khz,
        }
    }

    /// Whether KVM has to scale.
    pub fn is_scaled(self) -> bool {
        self.host != self.guest
    }

    /// A reading of the host's TSC at the guest's rate.
    pub fn scale(self, host_tsc: u64) -> u64 {
        if !self.is_scaled() || self.host == 0 {
            return host_tsc;
        }
        (u128::from(host_tsc) * u128::from(self.guest) / u128::from(self.host)) as u64
    }

    /// The guest's cycles in `ns` nanoseconds.
    pub fn cycles(self, ns: u64) -> u64 {
        (u128::from(ns) * u128::from(self.guest) / 1_000_000) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_within_the_tolerance_are_the_same() {
        for (guest, host, same) in [
            (2_000_000, 2_000_000, true),
            (2_000_500, 2_000_000, true),
            (2_000_501, 2_000_000, false),
            (1_999_500, 2_000_000, true),
            (1_999_499, 2_000_000, false),
            (0, 2_000_000, true),
            (2_000_000, 0, true),
            (u32::MAX, 1, false),
        ] {
            assert_eq!(near(guest, host), same, "{guest} {host}");
        }
    }

    #[test]
    fn another_rate_is_scaled_or_impossible() {
        let host = |scales| HostTsc {
            khz: 2_000_000,
            scales,
        };
        let same = TscRate::unscaled(2_000_000);
        assert_eq!(host(false).rate_for(2_000_100), Some(same));
        assert_eq!(host(false).rate_for(3_000_000), None);
        let scaled = host(true).rate_for(3_000_000).unwrap();
        assert!(scaled.is_scaled());
        assert_eq!(scaled.scale(1 << 60), 3 << 59);
        assert_eq!(scaled.cycles(1_000_000_000), 3_000_000_000);
        assert_eq!(same.scale(12_345), 12_345);
    }

    #[test]
    fn the_hosts_tsc_counts() {
        let before = now();
        while now() == before {}
    }
}
