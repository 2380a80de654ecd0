//! The KVM ioctls that kvm-ioctls 0.25 does not wrap; each names its section of the KVM API
//! (Documentation/virt/kvm/api.rst).

// Talking to the kernel by ioctl is the purpose of this module.
#![allow(unsafe_code)]

use std::io;

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_device_attr, kvm_dtable, kvm_segment,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `struct kvm_sregs2`: the special registers with the PDPTRs that a PAE guest has loaded.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, FromBytes, IntoBytes, Immutable)]
pub struct Sregs2 {
    /// Code segment.
    pub cs: kvm_segment,
    /// Data segment.
    pub ds: kvm_segment,
    /// Extra segment.
    pub es: kvm_segment,
    /// FS segment.
    pub fs: kvm_segment,
    /// GS segment.
    pub gs: kvm_segment,
    /// Stack segment.
    pub ss: kvm_segment,
    /// Task register.
    pub tr: kvm_segment,
    /// Local descriptor table.
    pub ldt: kvm_segment,
    /// Global descriptor table.
    pub gdt: kvm_dtable,
    /// Interrupt descriptor table.
    pub idt: kvm_dtable,
    /// Control register 0.
    pub cr0: u64,
    /// Control register 2.
    pub cr2: u64,
    /// Control register 3.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Control register 8, the task priority.
    pub cr8: u64,
    /// Extended feature enable register.
    pub efer: u64,
    /// Address and mode of the local APIC.
    pub apic_base: u64,
    /// Bit 0: `pdptrs` is valid.
    pub flags: u64,
    /// Page directory pointers of a PAE guest.
    pub pdptrs: [u64; 4],
}

const _: () = assert!(size_of::<Sregs2>() == size_of::<kvm_bindings::kvm_sregs2>());

/// Request numbers, as the kernel's header names them.
#[allow(missing_docs)]
mod number {
    use super::{KVMIO, kvm_clear_dirty_log, kvm_device_attr};
    use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

    ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
    ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_bindings::kvm_sregs2);
    ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_bindings::kvm_sregs2);
    ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
    ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
}

fn check(ret: i32) -> io::Result<()> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Write-protects the pages of `slot` whose bits are set in `bits` and clears their dirty marks
/// (KVM API 4.117). Bit `i` is page `first_page + i`; `pages` pages are looked at.
///
/// # Errors
/// `EINVAL` when `first_page` is no multiple of 64, or `pages` is neither one nor reaches the end of
/// the slot, or fewer bits were given than pages.
pub fn clear_dirty_log(
    vm: &VmFd,
    slot: u32,
    first_page: u64,
    pages: u32,
    bits: &[u64],
) -> io::Result<()> {
    if (bits.len() as u64) * 64 < u64::from(pages) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let request = kvm_clear_dirty_log {
        slot,
        num_pages: pages,
        first_page,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: bits.as_ptr().cast_mut().cast(),
        },
    };
    // SAFETY: the kernel reads `pages` bits, rounded up to 64, from `bits`, which holds as many
    // (checked above) and outlives the call; it does not write to them.
    check(unsafe { ioctl_with_ref(vm, number::KVM_CLEAR_DIRTY_LOG(), &request) })
}

/// Reads the special registers with PDPTRs (KVM API 4.131).
///
/// # Errors
/// When the kernel lacks `KVM_CAP_SREGS2`.
pub fn get_sregs2(vcpu: &VcpuFd) -> io::Result<Sregs2> {
    let mut sregs = Sregs2::default();
    // SAFETY: `Sregs2` has the size and layout of `struct kvm_sregs2`, which the kernel fills.
    check(unsafe { ioctl_with_mut_ref(vcpu, number::KVM_GET_SREGS2(), &mut sregs) })?;
    Ok(sregs)
}

/// Writes the special registers with PDPTRs (KVM API 4.132).
///
/// # Errors
/// When the kernel refuses a value.
pub fn set_sregs2(vcpu: &VcpuFd, sregs: &Sregs2) -> io::Result<()> {
    // SAFETY: `Sregs2` has the size and layout of `struct kvm_sregs2`, which the kernel only reads.
    check(unsafe { ioctl_with_ref(vcpu, number::KVM_SET_SREGS2(), sregs) })
}

/// Reads the offset from the host's TSC to the vCPU's (KVM vCPU device attribute 4.1).
///
/// # Errors
/// `ENXIO` when this KVM has no such attribute.
pub fn get_tsc_offset(vcpu: &VcpuFd) -> io::Result<u64> {
    let mut offset = 0_u64;
    let attr = kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: std::ptr::from_mut(&mut offset) as u64,
    };
    // SAFETY: for this attribute the kernel writes 8 bytes to `addr`, which is `offset`.
    check(unsafe { ioctl_with_ref(vcpu, number::KVM_GET_DEVICE_ATTR(), &attr) })?;
    Ok(offset)
}

/// Sets the offset from the host's TSC to the vCPU's (KVM vCPU device attribute 4.1).
///
/// # Errors
/// `ENXIO` when this KVM has no such attribute.
pub fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> io::Result<()> {
    let attr = kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: std::ptr::from_ref(&offset) as u64,
    };
    // SAFETY: for this attribute the kernel reads 8 bytes from `addr`, which is `offset`.
    check(unsafe { ioctl_with_ref(vcpu, number::KVM_SET_DEVICE_ATTR(), &attr) })
}
