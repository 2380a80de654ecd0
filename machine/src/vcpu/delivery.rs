//! Exceptions that KVM has taken note of and not yet given to the guest, before a vCPU is saved.
//!
//! Of the exception of a breakpoint `KVM_GET_VCPU_EVENTS` tells nothing: it relies on the instruction being run again.
//! kvm_pvm has the processor itself run the guest's `int3`, and takes the exception when the instruction is past. One
//! that is saved between that and its delivery is lost: the guest goes on as if its `int3` had not been there. Whether
//! that is so cannot be asked, but only a vCPU can be concerned that stands right behind one.

use kvm_ioctls::VcpuFd;
use migration::GuestRam;

use super::exit;

/// `int3`.
const BREAKPOINT: u8 = 0xcc;
/// Privilege level at which the guest's code is run by the processor itself.
const USER: u8 = 3;

/// Whether the exception of a breakpoint may be waiting for its delivery.
pub(super) fn may_be_due(fd: &VcpuFd, ram: &GuestRam) -> bool {
    let (Ok(regs), Ok(sregs)) = (fd.get_regs(), fd.get_sregs()) else {
        return false;
    };
    if sregs.cs.dpl != USER {
        return false;
    }
    let before = exit::instruction_in_ram(fd, ram, regs.rip.wrapping_sub(1));
    before.first() == Some(&BREAKPOINT)
}
