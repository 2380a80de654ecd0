//! Why a vCPU cannot go on, in one sentence.

// `kvm_run` is a union whose valid member the exit reason tells.
#![allow(unsafe_code)]

use kvm_bindings::{KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION};
use kvm_ioctls::VcpuFd;
use migration::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use crate::boot::refusal::{self, KvmBackend};

/// Longest x86 instruction.
const MAX_INSTRUCTION: usize = 15;
/// `KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES`: the exit carries the instruction.
const FLAG_INSTRUCTION_BYTES: u64 = 1;

/// Explains `KVM_EXIT_INTERNAL_ERROR` (KVM API 5): names the instruction and what is needed.
pub(super) fn internal_error(fd: &mut VcpuFd, ram: &GuestRam) -> String {
    let rip = fd.get_regs().map_or(0, |regs| regs.rip);
    let (suberror, data) = internal_data(fd);
    if suberror != KVM_INTERNAL_ERROR_EMULATION {
        return format!("KVM reports internal error {suberror} at {rip:#x}");
    }
    let mut bytes = instruction_in_exit(&data);
    if bytes.is_empty() {
        bytes = instruction_in_ram(fd, ram, rip);
    }
    refusal::describe_emulation_failure(&bytes, rip, KvmBackend::detect())
}

/// Address and bytes of the instruction at which the vCPU stands.
pub(super) fn instruction(fd: &VcpuFd, ram: &GuestRam) -> (u64, Vec<u8>) {
    let rip = fd.get_regs().map_or(0, |regs| regs.rip);
    (rip, instruction_in_ram(fd, ram, rip))
}

fn internal_data(fd: &mut VcpuFd) -> (u32, [u64; 16]) {
    let run = fd.get_kvm_run();
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return (0, [0; 16]);
    }
    // SAFETY: for this exit reason the kernel filled `internal`, plain integers.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let mut data = internal.data;
    // Only `ndata` words are this exit's; the others are of an earlier one.
    for word in data.iter_mut().skip(internal.ndata as usize) {
        *word = 0;
    }
    (internal.suberror, data)
}

/// The bytes behind `emulation_failure`'s flags: a length, then the instruction.
fn instruction_in_exit(data: &[u64; 16]) -> Vec<u8> {
    if data[0] & FLAG_INSTRUCTION_BYTES == 0 {
        return Vec::new();
    }
    let packed: Vec<u8> = data[1..3]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    let len = usize::from(packed[0]).min(MAX_INSTRUCTION);
    packed[1..=len].to_vec()
}

/// Bytes of the guest's code from `rip` on, as many as the longest instruction has; none where nothing is mapped.
pub(super) fn instruction_in_ram(fd: &VcpuFd, ram: &GuestRam, rip: u64) -> Vec<u8> {
    let Ok(at) = fd.translate_gva(rip) else {
        return Vec::new();
    };
    let mut bytes = [0; MAX_INSTRUCTION];
    let read = if at.valid == 0 {
        0
    } else {
        ram.read(&mut bytes, GuestAddress(at.physical_address))
            .unwrap_or(0)
    };
    bytes[..read].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exits_own_instruction_bytes_are_read() {
        let mut data = [0_u64; 16];
        data[0] = FLAG_INSTRUCTION_BYTES;
        data[1] = u64::from_le_bytes([3, 0xf3, 0x0f, 0xb8, 0, 0, 0, 0]);
        assert_eq!(instruction_in_exit(&data), [0xf3, 0x0f, 0xb8]);
        data[0] = 0;
        assert!(instruction_in_exit(&data).is_empty());
    }
}
