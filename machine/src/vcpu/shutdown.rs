//! What is known of a vCPU that ended in a triple fault (`KVM_EXIT_SHUTDOWN`, KVM API 5).

use kvm_bindings::{kvm_regs, kvm_sregs, kvm_vcpu_events};
use kvm_ioctls::VcpuFd;
use migration::observation::{Observation, Side};

use crate::boot::refusal::{self, KvmBackend};

/// Where a CPU begins after INIT (Intel SDM 3, table 10-1): offset, and base of its code segment.
const INIT_RIP: u64 = 0xfff0;
const INIT_CS_BASE: u64 = 0xffff_0000;
/// Protected mode.
const CR0_PE: u64 = 1;

/// State of the vCPU when KVM told.
pub(super) struct Shutdown {
    regs: kvm_regs,
    sregs: kvm_sregs,
    events: kvm_vcpu_events,
}

impl Shutdown {
    /// Reads the state; what KVM refuses to tell stays zero, as of a vCPU that is given up anyway.
    pub(super) fn of(fd: &VcpuFd) -> Self {
        Self {
            regs: fd.get_regs().unwrap_or_default(),
            sregs: fd.get_sregs().unwrap_or_default(),
            events: fd.get_vcpu_events().unwrap_or_default(),
        }
    }

    /// Whether what is here is not the guest's: on a shutdown the hardware leaves its copy of the state
    /// undefined (AMD APM 2, 15.14.3), so `kvm_amd` puts the vCPU through INIT before it tells.
    fn is_after_init(&self) -> bool {
        self.regs.rip == INIT_RIP
            && self.sregs.cs.base == INIT_CS_BASE
            && self.sregs.cr0 & CR0_PE == 0
    }

    /// The condition, caused by the registers where they are the guest's.
    pub(super) fn observation(&self, vcpu: usize, backend: KvmBackend) -> Observation {
        let told = |id, message: String| {
            Observation::new(Side::Source, id, format!("vCPU {vcpu}: {message}"))
        };
        let id = "guest.triple-fault";
        if self.is_after_init() {
            return told(id, refusal::describe_shutdown(None, backend));
        }
        told(id, refusal::describe_shutdown(Some(self.regs.rip), backend))
            .caused_by(told("guest.registers", self.registers()))
    }

    fn registers(&self) -> String {
        let (regs, sregs) = (&self.regs, &self.sregs);
        format!(
            "rip {:#x} rsp {:#x} rflags {:#x} cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x} \
             cs {:#x} ss {:#x} tr {:#x} idt {:#x} limit {:#x} gdt {:#x} limit {:#x}, {}",
            regs.rip,
            regs.rsp,
            regs.rflags,
            sregs.cr0,
            sregs.cr2,
            sregs.cr3,
            sregs.cr4,
            sregs.efer,
            sregs.cs.selector,
            sregs.ss.selector,
            sregs.tr.selector,
            sregs.idt.base,
            sregs.idt.limit,
            sregs.gdt.base,
            sregs.gdt.limit,
            self.exception(),
        )
    }

    fn exception(&self) -> String {
        let exception = &self.events.exception;
        if exception.injected == 0 && exception.pending == 0 {
            return "no exception pending".to_owned();
        }
        match exception.has_error_code {
            0 => format!("exception {} pending", exception.nr),
            _ => format!(
                "exception {} pending with error code {:#x}",
                exception.nr, exception.error_code
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shutdown(rip: u64, cs_base: u64, cr0: u64) -> Shutdown {
        let mut state = Shutdown {
            regs: kvm_regs::default(),
            sregs: kvm_sregs::default(),
            events: kvm_vcpu_events::default(),
        };
        state.regs.rip = rip;
        state.sregs.cs.base = cs_base;
        state.sregs.cr0 = cr0;
        state
    }

    #[test]
    fn registers_of_the_guest_are_the_cause() {
        let mut state = shutdown(0xffff_ffff_8100_0000, 0, 0x8005_0033);
        state.sregs.cr2 = 0xdead_b000;
        state.events.exception.pending = 1;
        state.events.exception.nr = 14;
        state.events.exception.has_error_code = 1;
        state.events.exception.error_code = 2;
        let told = state.observation(1, KvmBackend::Intel);
        assert_eq!(told.id, "guest.triple-fault");
        assert!(told.message.starts_with("vCPU 1: "), "{}", told.message);
        assert!(told.message.contains("0xffffffff81000000"));
        let cause = &told.causes[0].message;
        for part in ["cr2 0xdeadb000", "exception 14 pending with error code 0x2"] {
            assert!(cause.contains(part), "{cause:?} does not say {part:?}");
        }
    }

    #[test]
    fn registers_after_init_are_not_passed_off_as_the_guests() {
        let told = shutdown(0xfff0, 0xffff_0000, 0x6000_0010).observation(0, KvmBackend::Amd);
        assert!(told.causes.is_empty(), "{told:?}");
        assert!(!told.message.contains("0xfff0"), "{}", told.message);
        assert!(told.message.contains("not known"), "{}", told.message);
    }

    #[test]
    fn a_guest_that_is_at_this_address_itself_is_told_apart() {
        let told = shutdown(0xfff0, 0, 0x8005_0033).observation(0, KvmBackend::Amd);
        assert!(told.message.contains("at 0xfff0"), "{}", told.message);
    }
}
