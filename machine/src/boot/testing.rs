//! Hand-built kernels for the tests of this module.

use migration::GuestRam;
use vm_memory::GuestAddress;

use super::layout;

/// Where hand-built kernels are loaded.
pub(super) const LOAD_ADDRESS: u64 = 2 << 20;

pub(super) fn ram(mib: usize) -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), mib << 20)]).unwrap()
}

/// RAM on both sides of the hole; only the low part is ever touched by the tests.
pub(super) fn split_ram() -> GuestRam {
    GuestRam::from_ranges(&[
        (GuestAddress(0), 64 << 20),
        (GuestAddress(layout::HOLE_END), 32 << 20),
    ])
    .unwrap()
}

/// An ELF file with one segment (`code`, with `bss` bytes behind it) and a PVH note.
pub(crate) fn pvh_elf(code: &[u8], bss: u64) -> Vec<u8> {
    let note_at = 64 + 2 * 56_u64;
    let mut note = Vec::new();
    for word in [4_u32, 4, 18] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(&u32::try_from(LOAD_ADDRESS).unwrap().to_le_bytes());
    let code_at = note_at + note.len() as u64;

    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend_from_slice(&2_u16.to_le_bytes());
    file.extend_from_slice(&62_u16.to_le_bytes());
    file.extend_from_slice(&1_u32.to_le_bytes());
    for word in [LOAD_ADDRESS, 64, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&0_u32.to_le_bytes());
    for half in [64_u16, 56, 2, 0, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    let code_len = code.len() as u64;
    program_header(
        &mut file,
        1,
        code_at,
        LOAD_ADDRESS,
        code_len,
        code_len + bss,
    );
    program_header(&mut file, 4, note_at, 0, note.len() as u64, 0);
    file.extend_from_slice(&note);
    file.extend_from_slice(code);
    file
}

fn program_header(file: &mut Vec<u8>, kind: u32, offset: u64, address: u64, len: u64, memory: u64) {
    file.extend_from_slice(&kind.to_le_bytes());
    file.extend_from_slice(&5_u32.to_le_bytes());
    for word in [offset, address, address, len, memory, 4] {
        file.extend_from_slice(&word.to_le_bytes());
    }
}

/// A bzImage whose 64-bit entry point is `code`; it prefers 16 MiB and needs 1 MiB there.
pub(super) fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 2 * 512 + 0x200];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x230, &0x20_0000_u32.to_le_bytes());
    put(0x234, &[1]);
    put(0x236, &1_u16.to_le_bytes());
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &0x100_0000_u64.to_le_bytes());
    put(0x260, &0x10_0000_u32.to_le_bytes());
    file.extend_from_slice(code);
    file.resize(file.len().next_multiple_of(16), 0x90);
    let paragraphs = u32::try_from((file.len() - 2 * 512) / 16).unwrap();
    file[0x1f4..0x1f8].copy_from_slice(&paragraphs.to_le_bytes());
    file
}
