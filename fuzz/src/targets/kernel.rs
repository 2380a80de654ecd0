//! Kernel images and initial RAM disks: ELF with a PVH entry, Linux bzImage.

use std::cell::OnceCell;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use machine::boot::{self, BootPlan, EntryPoint, KernelSource, MmioSlot};
use migration::GuestRam;
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::GuestAddress;

use crate::input::counted;
use crate::{Input, Memory, Target};

/// Kernel, initial RAM disk and command line.
pub(super) const KERNEL: Target = Target {
    name: "kernel",
    run,
    seeds,
    words: &["\u{7f}ELF", "HdrS", "Xen\0", "console=ttyS0"],
    longest: 4096,
    memory: Memory {
        base: 1 << 20,
        per_byte: 16,
    },
};

/// Guest RAM of the machines here, used again and again: a loader only writes to it.
const RAM: usize = 32 << 20;

thread_local! {
    static GUEST: OnceCell<GuestRam> = const { OnceCell::new() };
}

/// A file in memory and a path to it.
fn file(bytes: &[u8]) -> (File, PathBuf) {
    let mut file = File::from(memfd_create("input", MemfdFlags::CLOEXEC).expect("a memory file"));
    file.write_all(bytes).expect("room in memory");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
    (file, path)
}

fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let cpus = u32::from(input.u8());
    let initrd = (input.u8() & 1 == 1).then(|| file(input.counted()));
    let cmdline = String::from_utf8_lossy(input.counted()).into_owned();
    let (_kernel, path) = file(input.rest());
    GUEST.with(|guest| {
        let ram = guest.get_or_init(|| {
            GuestRam::from_ranges(&[(GuestAddress(0), RAM)]).expect("guest memory")
        });
        let plan = BootPlan {
            kernel: &KernelSource::File(path),
            initrd: initrd.as_ref().map(|(_, path)| path.as_path()),
            cmdline: &cmdline,
            cpus,
            ram,
            mmio_slots: &[MmioSlot {
                base: 0xd000_0000,
                len: 0x1000,
                gsi: 16,
            }],
            generation_id: [7; 16],
        };
        match boot::load(&plan) {
            Ok(EntryPoint::Pvh { entry, start_info }) => {
                assert!(u64::from(entry) < RAM as u64 && start_info < RAM as u64);
            }
            Ok(EntryPoint::Linux64 { entry, boot_params }) => {
                assert!(entry < RAM as u64 && boot_params < RAM as u64);
            }
            Err(error) => {
                let _ = error.to_string();
            }
        }
    });
}

fn seeds() -> Vec<Vec<u8>> {
    let input = |initrd: &[u8], kernel: &[u8]| {
        let mut bytes = vec![1, u8::from(!initrd.is_empty())];
        if !initrd.is_empty() {
            bytes.extend(counted(initrd));
        }
        bytes.extend(counted(b"console=ttyS0"));
        bytes.extend_from_slice(kernel);
        bytes
    };
    vec![
        input(b"", &elf()),
        input(b"initrd", &elf()),
        input(b"", &bzimage()),
        input(b"initrd", &bzimage()),
        input(b"", b"MZ"),
    ]
}

/// An ELF file with one segment at 2 MiB and a PVH note.
fn elf() -> Vec<u8> {
    const AT: u64 = 2 << 20;
    let mut note = Vec::new();
    for word in [4_u32, 4, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend((AT as u32).to_le_bytes());
    let note_at = 64 + 2 * 56_u64;
    let code_at = note_at + note.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2_u16, 62, 1, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [AT, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    for half in [0_u16, 0, 64, 56, 2, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let segments = [
        (1_u32, code_at, AT, 2_u64, 4096_u64),
        (4, note_at, 0, note.len() as u64, 0),
    ];
    for (kind, offset, address, len, memory) in segments {
        file.extend(kind.to_le_bytes());
        file.extend(5_u32.to_le_bytes());
        for word in [offset, address, address, len, memory, 4] {
            file.extend(word.to_le_bytes());
        }
    }
    file.extend(&note);
    file.extend(b"\xf4\xf4");
    file
}

/// A bzImage that prefers 16 MiB and needs 1 MiB there.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 2 * 512 + 0x210];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &0x21_u32.to_le_bytes());
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
    file
}
