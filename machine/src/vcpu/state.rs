//! State of one vCPU: save and load.
//!
//! # Order
//! *Save*, with the vCPU parked (its pending I/O was completed by a re-entry with `immediate_exit`, and no exception is
//! left of which KVM would not tell, see `delivery.rs`):
//! 1. `MP_STATE` first: reading it makes KVM take in a pending INIT or SIPI, which changes the rest.
//! 2. Events, whose values are not kept: reading them makes KVM move what a pending exception carries
//!    into CR2 and DR6, which are read next.
//! 3. Registers, special registers, FPU and XCRs in any order.
//! 4. MSRs, with `TSC_DEADLINE` among them, before the LAPIC: a timer that expires in between is then
//!    seen twice, which a guest must bear, and not lost.
//! 5. Events last: the reads above may have moved a pending exception into them.
//!
//! *Load*, into a vCPU that never ran:
//! 1. CPUID was set when the vCPU was made: it decides which of the following KVM accepts.
//! 2. `MP_STATE`, then registers; special registers carry the APIC base and EFER, which the LAPIC
//!    and the MSRs build on.
//! 3. XCRs before XSAVE: they decide which parts of the FPU state are on.
//! 4. LAPIC before MSRs: `TSC_DEADLINE` is ignored unless the LAPIC timer is in that mode. The TSC
//!    before both, as the deadline is one of the guest's TSC; by its offset, or, where this KVM has
//!    none to set, by its MSR, which KVM lists before `TSC_DEADLINE`. A guest that reads the host's TSC
//!    finds another one on another host: there the deadline moves instead.
//! 5. Events last: nothing after them may add or drop a pending exception or interrupt.

// XSAVE areas are variable-sized structures of the kernel.
#![allow(unsafe_code)]

use std::io;

use kvm_bindings::{
    KVM_CAP_SREGS2, Msrs, Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{msrs, timer};
use crate::clock::Passed;
use crate::cpuid::CpuidLeaf;
use crate::kvm::ioctl::{self, Sregs2};
use crate::kvm::{XsaveArea, os_error};
use crate::snapshot::bytes::{self, BytesError};

/// `IA32_TSC`: carried as an offset where there is one, for its value has passed by the time it is
/// loaded.
const MSR_IA32_TSC: u32 = 0x10;
/// `IA32_TSC_DEADLINE`: when the LAPIC's timer fires, in that mode; zero is never.
const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;
/// Leaf that tells of the XSAVE area.
const CPUID_XSAVE: u32 = 0xd;
/// Bound on what a peer may ask to load; KVM knows some hundreds.
const MAX_MSRS: usize = 4096;
/// MSRs that go to KVM at once; it takes fewer than 256.
const MSR_CHUNK: usize = 128;

/// Saved vCPU; frozen: a change makes a `V2` with a conversion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VcpuStateV1 {
    /// `struct kvm_mp_state`.
    pub mp_state: Vec<u8>,
    /// `struct kvm_regs`.
    pub regs: Vec<u8>,
    /// `struct kvm_sregs2` where KVM has it, else `struct kvm_sregs`; the length tells.
    pub sregs: Vec<u8>,
    /// `struct kvm_xcrs`.
    pub xcrs: Vec<u8>,
    /// `struct kvm_xsave`, as long as `KVM_CAP_XSAVE2` says.
    pub xsave: Vec<u8>,
    /// `struct kvm_debugregs`.
    pub debugregs: Vec<u8>,
    /// `struct kvm_lapic_state`.
    pub lapic: Vec<u8>,
    /// MSRs by index; the TSC is among them only where it has no offset that can be set.
    pub msrs: Vec<(u32, u64)>,
    /// `struct kvm_vcpu_events`.
    pub events: Vec<u8>,
    /// Offset from the host's TSC; `None` where the guest reads the host's TSC itself (kvm_pvm).
    pub tsc_offset: Option<u64>,
}

/// A step of saving or loading a vCPU that failed.
#[derive(Debug, Error)]
pub enum VcpuStateError {
    /// KVM refused a read.
    #[error("cannot read {0}")]
    Get(&'static str, #[source] io::Error),
    /// KVM refused a value.
    #[error("cannot load {0}")]
    Set(&'static str, #[source] io::Error),
    /// KVM refused one MSR.
    #[error("cannot load MSR {0:#x} with {1:#x}")]
    Msr(u32, u64),
    /// There are more MSRs than any CPU has.
    #[error("{0} MSRs are more than {MAX_MSRS}")]
    TooManyMsrs(usize),
    /// A structure has the wrong length.
    #[error(transparent)]
    Bytes(#[from] BytesError),
}

/// What this host's KVM can read and write of a vCPU, found out once.
#[derive(Debug, Clone)]
pub struct VcpuStateCaps {
    /// MSRs that can be read and that the guest may have used.
    msrs: Vec<u32>,
    sregs2: bool,
    xsave: XsaveArea,
    /// Bytes of it that the guest can use.
    guest_xsave: usize,
    tsc_offset: bool,
}

impl VcpuStateCaps {
    /// Asks KVM and a vCPU that sees `leaves`; `tsc` says whether the backend gives a guest a TSC of
    /// its own.
    ///
    /// # Errors
    /// When the list of MSRs cannot be read.
    pub fn probe(
        kvm: &Kvm,
        vcpu: &VcpuFd,
        leaves: &[CpuidLeaf],
        xsave: XsaveArea,
        tsc: GuestTsc,
    ) -> Result<Self, VcpuStateError> {
        let failed = |e| VcpuStateError::Get("the list of MSRs", os_error(e));
        let tsc_offset = tsc == GuestTsc::Offset && ioctl::get_tsc_offset(vcpu).is_ok();
        let tsc_by_value = tsc == GuestTsc::Offset && !tsc_offset;
        let list = kvm.get_msr_index_list().map_err(failed)?;
        let mut indices: Vec<u32> = list
            .as_slice()
            .iter()
            .copied()
            .filter(|i| *i != MSR_IA32_TSC || tsc_by_value)
            .filter(|i| msrs::is_of_guest(*i, leaves))
            .collect();
        // KVM lists some that this vCPU's CPUID hides: reading stops at the first of them.
        let mut at = 0;
        while at < indices.len() {
            let chunk = indices.len().min(at + MSR_CHUNK);
            let mut request = msr_request(&indices[at..chunk])?;
            at += vcpu.get_msrs(&mut request).map_err(failed)?;
            if at < chunk {
                indices.remove(at);
            }
        }
        Ok(Self {
            msrs: indices,
            sregs2: kvm.check_extension_raw(KVM_CAP_SREGS2.into()) > 0,
            xsave,
            guest_xsave: guest_xsave(leaves),
            tsc_offset,
        })
    }

    /// MSRs that are saved of this guest.
    pub fn msrs(&self) -> &[u32] {
        &self.msrs
    }

    /// Bytes of the XSAVE area that are saved of this guest.
    pub fn xsave_bytes(&self) -> usize {
        self.guest_xsave.min(self.xsave.size())
    }
}

/// How much of an XSAVE area a guest with these leaves can use; at least what is always saved.
fn guest_xsave(leaves: &[CpuidLeaf]) -> usize {
    let told = leaves
        .iter()
        .find(|leaf| (leaf.function, leaf.index) == (CPUID_XSAVE, 0))
        .map_or(0, |leaf| leaf.ecx as usize);
    told.max(XsaveArea::Fixed.size()).next_multiple_of(4)
}

/// Where a guest's TSC comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestTsc {
    /// The host's plus an offset of the vCPU.
    Offset,
    /// The host's itself: kvm_pvm runs `rdtsc` natively.
    Host,
}

fn msr_request(indices: &[u32]) -> Result<Msrs, VcpuStateError> {
    let entries: Vec<kvm_msr_entry> = indices
        .iter()
        .map(|&index| kvm_msr_entry {
            index,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries).map_err(|_| VcpuStateError::TooManyMsrs(indices.len()))
}

/// Saves a parked vCPU; see the module for the order.
///
/// # Errors
/// When KVM refuses a read.
pub fn save(vcpu: &VcpuFd, caps: &VcpuStateCaps) -> Result<VcpuStateV1, VcpuStateError> {
    let get = |what| move |e: kvm_ioctls::Error| VcpuStateError::Get(what, os_error(e));
    let mp_state = bytes::of(&vcpu.get_mp_state().map_err(get("MP_STATE"))?);
    // Only for what the reading does, see above.
    vcpu.get_vcpu_events().map_err(get("the events"))?;
    let regs = bytes::of(&vcpu.get_regs().map_err(get("the registers"))?);
    let sregs = if caps.sregs2 {
        let sregs = ioctl::get_sregs2(vcpu).map_err(|e| VcpuStateError::Get("SREGS2", e))?;
        bytes::of(&sregs)
    } else {
        bytes::of(&vcpu.get_sregs().map_err(get("SREGS"))?)
    };
    let xcrs = bytes::of(&vcpu.get_xcrs().map_err(get("the XCRs"))?);
    let mut xsave = save_xsave(vcpu, caps.xsave)?;
    xsave.truncate(caps.xsave_bytes());
    let debugregs = bytes::of(&vcpu.get_debug_regs().map_err(get("the debug registers"))?);
    let msrs = save_msrs(vcpu, &caps.msrs)?;
    let lapic = bytes::of(&vcpu.get_lapic().map_err(get("the LAPIC"))?);
    let events = bytes::of(&vcpu.get_vcpu_events().map_err(get("the events"))?);
    let tsc_offset = if caps.tsc_offset {
        Some(ioctl::get_tsc_offset(vcpu).map_err(|e| VcpuStateError::Get("the TSC offset", e))?)
    } else {
        None
    };
    Ok(VcpuStateV1 {
        mp_state,
        regs,
        sregs,
        xcrs,
        xsave,
        debugregs,
        lapic,
        msrs,
        events,
        tsc_offset,
    })
}

/// Loads a vCPU that never ran; see the module for the order.
///
/// `passed` is what went by since it was saved (see [`crate::clock`]).
///
/// # Errors
/// When a structure has the wrong length or KVM refuses a value.
pub fn load(
    vcpu: &VcpuFd,
    caps: &VcpuStateCaps,
    state: &VcpuStateV1,
    passed: Passed,
) -> Result<(), VcpuStateError> {
    let VcpuStateV1 {
        mp_state,
        regs,
        sregs,
        xcrs,
        xsave,
        debugregs,
        lapic,
        msrs,
        events,
        tsc_offset,
    } = state;
    let set = |what| move |e: kvm_ioctls::Error| VcpuStateError::Set(what, os_error(e));
    vcpu.set_mp_state(bytes::to::<kvm_mp_state>("MP_STATE", mp_state)?)
        .map_err(set("MP_STATE"))?;
    vcpu.set_regs(&bytes::to::<kvm_regs>("the registers", regs)?)
        .map_err(set("the registers"))?;
    if sregs.len() == size_of::<Sregs2>() {
        ioctl::set_sregs2(vcpu, &bytes::to::<Sregs2>("SREGS2", sregs)?)
            .map_err(|e| VcpuStateError::Set("SREGS2", e))?;
    } else {
        vcpu.set_sregs(&bytes::to::<kvm_sregs>("SREGS", sregs)?)
            .map_err(set("SREGS"))?;
    }
    vcpu.set_xcrs(&bytes::to::<kvm_xcrs>("the XCRs", xcrs)?)
        .map_err(set("the XCRs"))?;
    load_xsave(vcpu, caps.xsave.size(), xsave)?;
    vcpu.set_debug_regs(&bytes::to::<kvm_debugregs>(
        "the debug registers",
        debugregs,
    )?)
    .map_err(set("the debug registers"))?;
    let mut lapic = lapic.clone();
    timer::move_on(&mut lapic, passed.ns);
    vcpu.set_lapic(&bytes::to::<kvm_lapic_state>("the LAPIC", &lapic)?)
        .map_err(set("the LAPIC"))?;
    if let Some(offset) = tsc_offset {
        ioctl::set_tsc_offset(vcpu, offset.wrapping_add(passed.tsc_behind))
            .map_err(|e| VcpuStateError::Set("the TSC offset", e))?;
    }
    load_msrs(vcpu, &moved_on(msrs, tsc_offset.is_some(), passed))?;
    vcpu.set_vcpu_events(&bytes::to::<kvm_vcpu_events>("the events", events)?)
        .map_err(set("the events"))?;
    Ok(())
}

/// MSRs that hold a moment, moved on by what passed; `has_offset` says that the TSC is set already.
fn moved_on(msrs: &[(u32, u64)], has_offset: bool, passed: Passed) -> Vec<(u32, u64)> {
    let by_value = msrs.iter().any(|(index, _)| *index == MSR_IA32_TSC);
    let moved = |&(index, value): &(u32, u64)| match index {
        MSR_IA32_TSC => (index, value.wrapping_add(passed.cycles)),
        MSR_IA32_TSC_DEADLINE if value != 0 && !has_offset && !by_value => {
            // Zero would be no deadline at all.
            let later = (passed.tsc_behind as i64).wrapping_neg();
            (index, value.saturating_add_signed(later).max(1))
        }
        _ => (index, value),
    };
    msrs.iter().map(moved).collect()
}

fn save_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, VcpuStateError> {
    let mut msrs = Vec::with_capacity(indices.len());
    for chunk in indices.chunks(MSR_CHUNK) {
        let mut request = msr_request(chunk)?;
        let read = vcpu
            .get_msrs(&mut request)
            .map_err(|e| VcpuStateError::Get("the MSRs", os_error(e)))?;
        if let Some(index) = chunk.get(read) {
            let short = io::Error::other(format!("MSR {index:#x} cannot be read"));
            return Err(VcpuStateError::Get("the MSRs", short));
        }
        msrs.extend(request.as_slice().iter().map(|m| (m.index, m.data)));
    }
    Ok(msrs)
}

/// Loads the MSRs in few calls; one that KVM refuses may be left out if it already has the value,
/// for KVM lists some that can be read but not written.
fn load_msrs(vcpu: &VcpuFd, msrs: &[(u32, u64)]) -> Result<(), VcpuStateError> {
    if msrs.len() > MAX_MSRS {
        return Err(VcpuStateError::TooManyMsrs(msrs.len()));
    }
    let mut left = msrs;
    while !left.is_empty() {
        let chunk = &left[..left.len().min(MSR_CHUNK)];
        let entries: Vec<kvm_msr_entry> = chunk
            .iter()
            .map(|&(index, data)| kvm_msr_entry {
                index,
                data,
                ..Default::default()
            })
            .collect();
        let request =
            Msrs::from_entries(&entries).map_err(|_| VcpuStateError::TooManyMsrs(left.len()))?;
        let done = vcpu
            .set_msrs(&request)
            .map_err(|e| VcpuStateError::Set("the MSRs", os_error(e)))?;
        let Some(&(index, data)) = chunk.get(done) else {
            left = &left[chunk.len()..];
            continue;
        };
        let mut current = msr_request(&[index])?;
        let same =
            vcpu.get_msrs(&mut current).is_ok_and(|n| n == 1) && current.as_slice()[0].data == data;
        if !same {
            return Err(VcpuStateError::Msr(index, data));
        }
        left = &left[done + 1..];
    }
    Ok(())
}

fn xsave_buffer(size: usize) -> Result<Xsave, VcpuStateError> {
    let fixed = size_of::<kvm_bindings::kvm_xsave>();
    let invalid = || BytesError {
        what: "XSAVE",
        expected: fixed,
        found: size,
    };
    // Intel's AMX is the largest known state, at 11 KiB; the bound keeps a peer from asking for more.
    if size < fixed || !size.is_multiple_of(4) || size > 1 << 20 {
        return Err(invalid().into());
    }
    Xsave::new((size - fixed) / 4).map_err(|_| invalid().into())
}

fn save_xsave(vcpu: &VcpuFd, area: XsaveArea) -> Result<Vec<u8>, VcpuStateError> {
    let failed = |e| VcpuStateError::Get("XSAVE", os_error(e));
    let size = match area {
        XsaveArea::Fixed => {
            let saved = vcpu.get_xsave().map_err(failed)?;
            return Ok(to_bytes(&saved.region));
        }
        XsaveArea::Sized(size) => size,
    };
    let mut area = xsave_buffer(size)?;
    // SAFETY: `size` is what KVM_CAP_XSAVE2 reported for this VM, and the area holds as much.
    unsafe { vcpu.get_xsave2(&mut area) }.map_err(failed)?;
    let mut saved = to_bytes(&area.as_fam_struct_ref().xsave.region);
    saved.extend(to_bytes(area.as_slice()));
    Ok(saved)
}

fn to_bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Loads an area that was saved where KVM's has at most this host's `size`; what is missing at its end
/// is of components that the guest does not have, as the area's own header says.
fn load_xsave(vcpu: &VcpuFd, size: usize, saved: &[u8]) -> Result<(), VcpuStateError> {
    let fixed = size_of::<kvm_bindings::kvm_xsave>();
    if !(fixed..=size).contains(&saved.len()) || !saved.len().is_multiple_of(4) {
        return Err(BytesError {
            what: "XSAVE",
            expected: size,
            found: saved.len(),
        }
        .into());
    }
    let mut area = xsave_buffer(size)?;
    let mut words = saved
        .chunks_exact(4)
        .map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]));
    // SAFETY: only the fixed part is written; the length of the variable part stays as it is.
    let fixed = unsafe { area.as_mut_fam_struct() };
    for (to, from) in fixed.xsave.region.iter_mut().zip(&mut words) {
        *to = from;
    }
    for (to, from) in area.as_mut_slice().iter_mut().zip(words) {
        *to = from;
    }
    // SAFETY: KVM reads at most the size that KVM_CAP_XSAVE2 reports, which is how long the area is.
    unsafe { vcpu.set_xsave2(&area) }.map_err(|e| VcpuStateError::Set("XSAVE", os_error(e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSED: Passed = Passed {
        ns: 10,
        cycles: 20,
        tsc_behind: 1000,
    };

    #[test]
    fn a_tsc_that_is_saved_by_its_value_goes_on() {
        let msrs = [
            (0x174, 7),
            (MSR_IA32_TSC, 100),
            (MSR_IA32_TSC_DEADLINE, 5000),
        ];
        let moved = moved_on(&msrs, false, PASSED);
        assert_eq!(
            moved,
            [
                (0x174, 7),
                (MSR_IA32_TSC, 120),
                (MSR_IA32_TSC_DEADLINE, 5000)
            ]
        );
    }

    #[test]
    fn a_deadline_moves_only_where_the_guest_reads_the_hosts_tsc() {
        let msrs = [(MSR_IA32_TSC_DEADLINE, 5000)];
        assert_eq!(moved_on(&msrs, true, PASSED), msrs);
        assert_eq!(
            moved_on(&msrs, false, PASSED),
            [(MSR_IA32_TSC_DEADLINE, 4000)]
        );
        let none = [(MSR_IA32_TSC_DEADLINE, 0)];
        assert_eq!(moved_on(&none, false, PASSED), none);
        let exactly = [(MSR_IA32_TSC_DEADLINE, 1000)];
        assert_eq!(moved_on(&exactly, false, PASSED)[0].1, 1);
    }

    #[test]
    fn the_area_is_as_long_as_the_guest_can_use() {
        let leaf = |ecx| CpuidLeaf {
            function: CPUID_XSAVE,
            ecx,
            ..CpuidLeaf::default()
        };
        assert_eq!(guest_xsave(&[]), 4096);
        assert_eq!(guest_xsave(&[leaf(2696)]), 4096);
        assert_eq!(guest_xsave(&[leaf(11_008)]), 11_008);
    }
}
