//! Hand-built kernels are loaded, refused and, where there is a KVM, run.
// The test guest's RAM is given to KVM by its address.
#![allow(unsafe_code)]

use std::io::Write;
use std::path::{Path, PathBuf};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use migration::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::testing::{LOAD_ADDRESS, bzimage, pvh_elf, ram, split_ram};
use super::*;

/// mov dx, 0x3f8; mov al, 'P'; out dx, al; hlt, in 32-bit code.
const PRINT_P_32: [u8; 8] = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'P', 0xee, 0xf4];
/// The same, in 64-bit code.
const PRINT_P_64: [u8; 8] = PRINT_P_32;

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn plan<'a>(kernel: &'a KernelSource, ram: &'a GuestRam) -> BootPlan<'a> {
    BootPlan {
        kernel,
        initrd: None,
        cmdline: "console=ttyS0",
        cpus: 2,
        ram,
        mmio_slots: &[],
        generation_id: *b"0123456789abcdef",
    }
}

fn read<const N: usize>(ram: &GuestRam, gpa: u64) -> [u8; N] {
    let mut bytes = [0; N];
    ram.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
    bytes
}

fn u32_at(ram: &GuestRam, gpa: u64) -> u32 {
    u32::from_le_bytes(read(ram, gpa))
}

fn u64_at(ram: &GuestRam, gpa: u64) -> u64 {
    u64::from_le_bytes(read(ram, gpa))
}

#[test]
fn pvh_kernel_gets_its_start_info() {
    let kernel = file(&pvh_elf(&PRINT_P_32, 4096));
    let initrd = file(&[7; 5000]);
    let source = KernelSource::File(kernel.path().to_owned());
    let ram = split_ram();
    let entry = load(&BootPlan {
        initrd: Some(initrd.path()),
        ..plan(&source, &ram)
    })
    .unwrap();
    let EntryPoint::Pvh { entry, start_info } = entry else {
        panic!("not PVH: {entry:?}");
    };
    assert_eq!(u64::from(entry), LOAD_ADDRESS);
    assert_eq!(read(&ram, LOAD_ADDRESS), PRINT_P_32);
    assert_eq!(u32_at(&ram, start_info), 0x336e_c578);
    assert_eq!(u32_at(&ram, start_info + 4), 1);
    assert_eq!(u32_at(&ram, start_info + 12), 1);
    let module = u64_at(&ram, start_info + 16);
    let (start, len) = (u64_at(&ram, module), u64_at(&ram, module + 8));
    assert_eq!((start, len), ((64 << 20) - 8192, 5000));
    assert_eq!(read(&ram, start + 4999), [7]);
    let cmdline = u64_at(&ram, start_info + 24);
    assert_eq!(read(&ram, cmdline), *b"console=ttyS0\0");
    assert_eq!(read(&ram, u64_at(&ram, start_info + 32)), *b"RSD PTR ");
    let map = u64_at(&ram, start_info + 40);
    assert_eq!(u32_at(&ram, start_info + 48), 4);
    assert_eq!(u64_at(&ram, map + 3 * 24), layout::HOLE_END);
    assert_eq!(read(&ram, layout::GENERATION_ID), *b"0123456789abcdef");
}

#[test]
fn bzimage_gets_its_zero_page() {
    let kernel = file(&bzimage(&PRINT_P_64));
    let initrd = file(&[7; 5000]);
    let source = KernelSource::File(kernel.path().to_owned());
    let ram = split_ram();
    let entry = load(&BootPlan {
        initrd: Some(initrd.path()),
        ..plan(&source, &ram)
    })
    .unwrap();
    let EntryPoint::Linux64 { entry, boot_params } = entry else {
        panic!("not Linux: {entry:?}");
    };
    assert_eq!(entry, 0x100_0200);
    assert_eq!(read(&ram, entry), PRINT_P_64);
    assert_eq!(read(&ram, boot_params + 0x202), *b"HdrS");
    assert_eq!(read(&ram, boot_params + 0x210), [0xff]);
    assert_eq!(
        u64::from(u32_at(&ram, boot_params + 0x228)),
        layout::CMDLINE
    );
    assert_eq!(u32_at(&ram, boot_params + 0x218), (64 << 20) - 8192);
    assert_eq!(u32_at(&ram, boot_params + 0x21c), 5000);
    assert_eq!(u64_at(&ram, boot_params + 0x70), layout::RSDP);
    assert_eq!(read(&ram, boot_params + 0x1e8), [4]);
    assert_eq!(u64_at(&ram, boot_params + 0x2d0 + 40), layout::HIGH_RAM);
}

#[test]
fn bzimage_moves_down_when_its_preferred_place_is_not_ram() {
    let kernel = file(&bzimage(&PRINT_P_64));
    let source = KernelSource::File(kernel.path().to_owned());
    let ram = ram(4);
    assert_eq!(
        load(&plan(&source, &ram)).unwrap(),
        EntryPoint::Linux64 {
            entry: 0x20_0200,
            boot_params: layout::BOOT_PARAMS
        }
    );
}

/// Runs the boot CPU until it halts; what it wrote to COM1.
fn run(ram: &GuestRam, entry: EntryPoint) -> Option<Vec<u8>> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("skipped: /dev/kvm cannot be opened: {error}");
            return None;
        }
    };
    let vm = kvm.create_vm().unwrap();
    vm.set_tss_address(0xfffb_d000).unwrap();
    for (slot, region) in ram.iter().enumerate() {
        let region = kvm_userspace_memory_region {
            slot: u32::try_from(slot).unwrap(),
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the mapping outlives the VM, which is dropped at the end of this function.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
    }
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let cpuid = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .unwrap();
    vcpu.set_cpuid2(&cpuid).unwrap();
    entry.set_registers(&vcpu, ram).unwrap();
    let mut output = Vec::new();
    loop {
        match vcpu.run().unwrap() {
            VcpuExit::IoOut(0x3f8, data) => output.extend_from_slice(data),
            VcpuExit::Hlt => return Some(output),
            exit => panic!("unexpected exit {exit:?}"),
        }
    }
}

#[test]
fn pvh_guest_runs() {
    let source = KernelSource::Embedded(Box::leak(pvh_elf(&PRINT_P_32, 0).into_boxed_slice()));
    let ram = ram(16);
    let entry = load(&plan(&source, &ram)).unwrap();
    if let Some(output) = run(&ram, entry) {
        assert_eq!(output, b"P");
    }
}

#[test]
fn linux_64_bit_entry_runs() {
    let source = KernelSource::Embedded(Box::leak(bzimage(&PRINT_P_64).into_boxed_slice()));
    let ram = ram(32);
    let entry = load(&plan(&source, &ram)).unwrap();
    if let Some(output) = run(&ram, entry) {
        assert_eq!(output, b"P");
    }
}

#[test]
fn bad_kernels_are_refused_with_their_name_and_cause() {
    let elf = pvh_elf(&PRINT_P_32, 0);
    let bz = bzimage(&PRINT_P_64);
    let patched = |good: &[u8], at: usize, bytes: &[u8]| {
        let mut bad = good.to_vec();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        bad
    };
    let far = (1_u64 << 40).to_le_bytes();
    let table: &[(&str, Vec<u8>)] = &[
        ("neither an ELF file", Vec::new()),
        ("neither an ELF file", b"#!/bin/sh\n".to_vec()),
        ("is truncated: the ELF header", elf[..40].to_vec()),
        (
            "is truncated: the program header table",
            elf[..100].to_vec(),
        ),
        ("is truncated: the notes", elf[..180].to_vec()),
        ("is truncated: a segment", elf[..elf.len() - 1].to_vec()),
        ("not a 64-bit", patched(&elf, 4, &[1])),
        ("for machine 183", patched(&elf, 18, &[183])),
        ("type 1, not an executable", patched(&elf, 16, &[1])),
        ("the number of program headers", patched(&elf, 56, &[0])),
        (
            "the number of program headers",
            patched(&elf, 56, &[0xff, 0xff]),
        ),
        ("the size of a program header", patched(&elf, 54, &[32])),
        ("no PVH entry point", patched(&elf, 64 + 56, &[6])),
        (
            "in none of its loaded segments",
            patched(&elf, 64 + 112 + 16, &[0xff; 4]),
        ),
        ("below 0x100000", patched(&elf, 64 + 24, &[0; 8])),
        ("does not fit into RAM", patched(&elf, 64 + 24, &far)),
        ("does not fit into RAM", patched(&elf, 64 + 40, &far)),
        ("does not fit into RAM", patched(&elf, 64 + 40, &[0xff; 8])),
        (
            "larger than that in memory",
            patched(&elf, 64 + 40, &[1, 0, 0, 0, 0, 0, 0, 0]),
        ),
        (
            "the size of the notes",
            patched(&elf, 64 + 56 + 32, &[0xff; 8]),
        ),
        ("is truncated: the Linux setup header", bz[..0x210].to_vec()),
        ("is truncated: the kernel", bz[..bz.len() - 16].to_vec()),
        ("version 2.11", patched(&bz, 0x206, &[11, 2])),
        ("without a 64-bit entry", patched(&bz, 0x236, &[0])),
        ("the kernel alignment", patched(&bz, 0x230, &[3])),
        ("the preferred address", patched(&bz, 0x258, &[0; 8])),
        ("the memory for decompression", patched(&bz, 0x260, &[0; 4])),
        ("does not fit into RAM", patched(&bz, 0x260, &[0xff; 4])),
        ("the size of the kernel", patched(&bz, 0x1f4, &[0; 4])),
    ];
    for (cause, bytes) in table {
        let kernel = file(bytes);
        let source = KernelSource::File(kernel.path().to_owned());
        let error = load(&plan(&source, &ram(32))).unwrap_err().to_string();
        assert!(error.contains(cause), "{error:?} does not say {cause:?}");
        let name = source.display_name();
        assert!(error.contains(&name), "{error:?} does not name {name}");
    }
}

#[test]
fn files_that_cannot_be_read_are_refused() {
    let open = |path: PathBuf| {
        let source = KernelSource::File(path);
        load(&plan(&source, &ram(4))).unwrap_err().to_string()
    };
    let folder = tempfile::tempdir().unwrap();
    assert!(open(folder.path().join("absent")).starts_with("cannot open"));
    assert!(open(folder.path().to_owned()).ends_with("not a regular file"));
    assert!(open("/dev/zero".into()).ends_with("not a regular file"));
    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    assert!(open(fifo).ends_with("not a regular file"));
}

#[test]
fn initrd_that_does_not_fit_or_is_empty_is_refused() {
    let kernel = file(&pvh_elf(&PRINT_P_32, 0));
    let source = KernelSource::File(kernel.path().to_owned());
    let ram = ram(4);
    let load_with = |path: &Path| {
        load(&BootPlan {
            initrd: Some(path),
            ..plan(&source, &ram)
        })
    };
    let huge = file(&[]);
    huge.as_file().set_len(10 << 30).unwrap();
    let error = load_with(huge.path()).unwrap_err();
    assert!(
        matches!(error, BootError::InitrdDoesNotFit { .. }),
        "{error}"
    );
    let error = load_with(file(&[]).path()).unwrap_err();
    assert!(matches!(error, BootError::EmptyInitrd { .. }), "{error}");
    let over_the_kernel = file(&[]);
    over_the_kernel.as_file().set_len(2 << 20).unwrap();
    let error = load_with(over_the_kernel.path()).unwrap_err();
    assert!(
        matches!(error, BootError::InitrdDoesNotFit { .. }),
        "{error}"
    );
}

#[test]
fn command_line_and_machine_are_checked() {
    let kernel = file(&bzimage(&PRINT_P_64));
    let source = KernelSource::File(kernel.path().to_owned());
    let ram = ram(32);
    let good = plan(&source, &ram);
    let long = "x".repeat(2048);
    let fits = "x".repeat(2047);
    load(&BootPlan {
        cmdline: &fits,
        ..good.clone()
    })
    .unwrap();
    let slot = MmioSlot {
        base: 0x1000,
        len: 0x1000,
        gsi: 16,
    };
    let table: &[(&str, BootPlan<'_>)] = &[
        (
            "2048 bytes long",
            BootPlan {
                cmdline: &long,
                ..good.clone()
            },
        ),
        (
            "zero byte at position 1",
            BootPlan {
                cmdline: "a\0b",
                ..good.clone()
            },
        ),
        (
            "1 to 254 CPUs, not 0",
            BootPlan {
                cpus: 0,
                ..good.clone()
            },
        ),
        (
            "1 to 254 CPUs, not 255",
            BootPlan {
                cpus: 255,
                ..good.clone()
            },
        ),
        (
            "do not lie in the hole",
            BootPlan {
                mmio_slots: &[slot],
                ..good.clone()
            },
        ),
    ];
    for (cause, plan) in table {
        let error = load(plan).unwrap_err().to_string();
        assert!(error.contains(cause), "{error:?} does not say {cause:?}");
    }
}
