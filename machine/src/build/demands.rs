//! What a guest's CPU needs of a host beyond CPUID: MSRs, their values, the rate of its TSC, the size of
//! its register state; and whether a host has it.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use crate::build::spec::{CpuDemands, MachineSpec};
use crate::cpuid::{self, CpuidLeaf, HostCpu};
use crate::error::MachineError;
use crate::kvm::tsc::{HostTsc, TscRate};
use crate::kvm::{XsaveArea, os_error};
use crate::vcpu::msrs;
use crate::vcpu::state::VcpuStateCaps;

const ARCH_CAPABILITIES: u32 = 0x10a;
const PLATFORM_INFO: u32 = 0xce;
const DE_CFG: u32 = 0xc001_1029;

/// MSRs whose bits promise something to the guest, the bits that do, and their names from bit 0 on.
#[rustfmt::skip]
const PROMISES: &[(u32, u64, &[&str])] = &[
    (PLATFORM_INFO, 1 << 31, &[]),
    (ARCH_CAPABILITIES, !0, &[
        "rdcl_no", "ibrs_all", "rsba", "skip_l1dfl_vmentry", "ssb_no", "mds_no", "pschange_mc_no",
        "tsx_ctrl", "taa_no", "mcu_control", "misc_package_ctls", "energy_filtering_ctl", "doitm",
        "sbdr_ssdp_no", "fbsdp_no", "psdp_no", "mcu_extended_service", "fb_clear", "fb_clear_ctrl",
        "rrsba", "bhi_no", "xapic_disable_status", "mcu_extended_status", "overclocking_status",
        "pbrsb_no", "gds_ctrl", "gds_no", "rfds_no", "rfds_clear",
    ]),
    (DE_CFG, 1 << 1, &["", "lfence_serialize"]),
];

/// Asks this host what takes long to answer, so that no guest waits for it later.
///
/// # Errors
/// When KVM gives no answer: no guest could be taken in.
pub fn ask_beforehand(kvm: &Kvm) -> Result<(), MachineError> {
    host_tsc(kvm).map(drop)
}

fn host_tsc(kvm: &Kvm) -> Result<HostTsc, MachineError> {
    HostTsc::probe(kvm).map_err(|e| MachineError::Build("read the rate of the TSC", e))
}

/// What a host has beyond CPUID.
#[derive(Debug)]
struct Host {
    tsc: HostTsc,
    xsave_bytes: usize,
    msrs: Vec<u32>,
    promises: Vec<(u32, u64)>,
}

fn is_promised(index: u32, leaves: &[CpuidLeaf]) -> bool {
    index != ARCH_CAPABILITIES || msrs::is_of_guest(index, leaves)
}

/// What KVM on this host can promise at most.
fn host_promises(kvm: &Kvm) -> Result<Vec<(u32, u64)>, MachineError> {
    let failed = |e| MachineError::State("read the feature MSRs", os_error(e));
    let list = kvm.get_msr_feature_index_list().map_err(failed)?;
    let mut promises = Vec::new();
    for (index, _, _) in PROMISES {
        if !list.as_slice().contains(index) {
            continue;
        }
        let entry = kvm_msr_entry {
            index: *index,
            ..Default::default()
        };
        let Ok(mut request) = Msrs::from_entries(&[entry]) else {
            continue;
        };
        // One that is listed and not read is one that is not there.
        if kvm.get_msrs(&mut request).is_ok_and(|read| read == 1) {
            promises.push((*index, request.as_slice()[0].data));
        }
    }
    Ok(promises)
}

impl CpuDemands {
    /// What the vCPUs need that were made for `spec`; what came from another host with it stays, since
    /// the guest has seen it.
    pub(crate) fn of(
        spec: &MachineSpec,
        kvm: &Kvm,
        vcpu: &VcpuFd,
        caps: &VcpuStateCaps,
        rate: TscRate,
    ) -> Result<Self, MachineError> {
        let came_here = spec.cpu.xsave_bytes != 0;
        let before = spec.cpu.clone();
        let feature_msrs = if came_here {
            before.feature_msrs
        } else {
            promises_to(kvm, vcpu, &spec.cpuid[0])?
        };
        Ok(Self {
            model: before.model,
            tsc_khz: if before.tsc_khz == 0 {
                rate.guest
            } else {
                before.tsc_khz
            },
            xsave_bytes: caps.xsave_bytes() as u32,
            msrs: caps.msrs().to_vec(),
            feature_msrs,
        })
    }

    /// What the guest needs and the host does not have, by name.
    fn missing(&self, host: &Host) -> Vec<String> {
        let mut lacks = Vec::new();
        for index in &self.msrs {
            if !host.msrs.contains(index) {
                lacks.push(msrs::told(*index));
            }
        }
        for (index, promised) in &self.feature_msrs {
            let Some((_, mask, names)) = PROMISES.iter().find(|(known, _, _)| known == index)
            else {
                lacks.push(msrs::told(*index));
                continue;
            };
            let here = host.promises.iter().find(|(known, _)| known == index);
            let bits = promised & !here.map_or(0, |(_, value)| *value) & mask;
            for bit in (0..64).filter(|bit| bits >> bit & 1 != 0) {
                let place = format!("{} bit {bit}", msrs::told(*index));
                lacks.push(match names.get(bit) {
                    Some(name) if !name.is_empty() => format!("{name} ({place})"),
                    _ => place,
                });
            }
        }
        if self.xsave_bytes as usize > host.xsave_bytes {
            lacks.push(format!(
                "an XSAVE area of {} bytes (here {})",
                self.xsave_bytes, host.xsave_bytes
            ));
        }
        if host.tsc.rate_for(self.tsc_khz).is_none() {
            lacks.push(format!(
                "a TSC of {} kHz (here {} kHz, which KVM cannot scale)",
                self.tsc_khz, host.tsc.khz
            ));
        }
        lacks
    }
}

/// What a fresh vCPU with these leaves is promised.
fn promises_to(
    kvm: &Kvm,
    vcpu: &VcpuFd,
    leaves: &[CpuidLeaf],
) -> Result<Vec<(u32, u64)>, MachineError> {
    let mut promises = host_promises(kvm)?;
    promises.retain(|(index, _)| is_promised(*index, leaves));
    for (index, value) in &mut promises {
        // The guest itself may set as much of this one as the host has.
        if *index == DE_CFG {
            continue;
        }
        let entry = kvm_msr_entry {
            index: *index,
            ..Default::default()
        };
        let read = Msrs::from_entries(&[entry]).ok().and_then(|mut request| {
            let read = vcpu.get_msrs(&mut request).ok()?;
            (read == 1).then(|| request.as_slice()[0].data)
        });
        *value = read.unwrap_or(0);
    }
    Ok(promises)
}

/// What a guest like this needs and this host does not have, by name; empty if it can go on here.
///
/// # Errors
/// When KVM does not tell what it has.
pub(crate) fn missing(
    spec: &MachineSpec,
    kvm: &Kvm,
    here: &HostCpu,
) -> Result<Vec<String>, MachineError> {
    let mut lacks = Vec::new();
    for leaves in &spec.cpuid {
        for lacking in cpuid::missing(leaves, here.leaves()) {
            if !lacks.contains(&lacking) {
                lacks.push(lacking);
            }
        }
    }
    let list = kvm
        .get_msr_index_list()
        .map_err(|e| MachineError::State("read the list of MSRs", os_error(e)))?;
    let host = Host {
        tsc: host_tsc(kvm)?,
        xsave_bytes: XsaveArea::of_host(kvm).size(),
        msrs: list.as_slice().to_vec(),
        promises: host_promises(kvm)?,
    };
    lacks.extend(spec.cpu.missing(&host));
    Ok(lacks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host {
            tsc: HostTsc {
                khz: 2_600_000,
                scales: false,
            },
            xsave_bytes: 4096,
            msrs: vec![0x174, 0x6e0],
            promises: vec![(ARCH_CAPABILITIES, 0b1)],
        }
    }

    fn demands() -> CpuDemands {
        CpuDemands {
            model: "host".into(),
            tsc_khz: 2_600_100,
            xsave_bytes: 4096,
            msrs: vec![0x174],
            feature_msrs: vec![(ARCH_CAPABILITIES, 0b1)],
        }
    }

    #[test]
    fn a_guest_that_needs_no_more_than_there_is_goes() {
        assert_eq!(demands().missing(&host()), Vec::<String>::new());
        assert_eq!(CpuDemands::default().missing(&host()), Vec::<String>::new());
    }

    #[test]
    fn each_thing_that_is_not_there_is_named() {
        let demands = CpuDemands {
            tsc_khz: 3_000_000,
            xsave_bytes: 11_008,
            msrs: vec![0x174, 0xda0, 0x999],
            feature_msrs: vec![
                (ARCH_CAPABILITIES, 0b10_0001),
                (PLATFORM_INFO, 0x8000_0000),
                (0x123, 0),
            ],
            ..demands()
        };
        assert_eq!(
            demands.missing(&host()),
            [
                "MSR XSS (0xda0)",
                "MSR 0x999",
                "mds_no (MSR ARCH_CAPABILITIES (0x10a) bit 5)",
                "MSR PLATFORM_INFO (0xce) bit 31",
                "MSR 0x123",
                "an XSAVE area of 11008 bytes (here 4096)",
                "a TSC of 3000000 kHz (here 2600000 kHz, which KVM cannot scale)",
            ]
        );
    }

    #[test]
    fn a_host_that_scales_takes_any_rate() {
        let mut host = host();
        host.tsc.scales = true;
        let demands = CpuDemands {
            tsc_khz: 3_000_000,
            ..demands()
        };
        assert!(demands.missing(&host).is_empty());
    }
}
