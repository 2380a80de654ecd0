//! Guest RAM as KVM has it: a slot for each region, with the dirty log on or off.

// Giving guest RAM to KVM hands it raw addresses.
#![allow(unsafe_code)]

use std::io;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use migration::GuestRam;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::os_error;

/// Whether KVM records the guest's writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirtyLog {
    /// It does.
    On,
    /// It does not.
    Off,
}

/// Gives the RAM to KVM, a slot a region, with the dirty log on or off.
///
/// # Errors
/// When KVM refuses.
pub(crate) fn map_ram(vm: &VmFd, ram: &GuestRam, log: DirtyLog) -> io::Result<()> {
    for (slot, region) in ram.iter().enumerate() {
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: if log == DirtyLog::On {
                KVM_MEM_LOG_DIRTY_PAGES
            } else {
                0
            },
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is mapped for as long as `ram` lives, and the machine that owns this VM
        // keeps a clone of it until after the VM is gone; regions do not overlap.
        unsafe { vm.set_user_memory_region(slot) }.map_err(os_error)?;
    }
    Ok(())
}
