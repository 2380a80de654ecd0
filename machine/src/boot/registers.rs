//! Registers of the boot CPU at the kernel's first instruction.
//!
//! Other CPUs wait for the guest's INIT and start-up messages and need only [`set_msrs`].

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use migration::GuestRam;

use super::error::BootError;
use super::image::write;
use super::{EntryPoint, layout};

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The one bit of the flags that is always set; interrupts are off.
const RFLAGS: u64 = 1 << 1;

/// `__BOOT_CS` and `__BOOT_DS` of the Linux boot protocol.
const LINUX_CS: u16 = 0x10;
const LINUX_DS: u16 = 0x18;

/// Long enough for an I/O permission bitmap of all ports behind the TSS. The PVH interface says
/// 0x67, but `kvm_pvm` judges port I/O from CPL3 by the limit that is set here, whatever TSS the
/// guest loads later; elsewhere the guest's own LTR replaces it.
const TSS_LIMIT: u32 = 0x2067;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

const PAGE_PRESENT_WRITABLE: u64 = 0b11;
const PAGE_LARGE: u64 = 1 << 7;
const LARGE_PAGE: u64 = 2 << 20;

/// Sets what firmware would have set on every CPU: MTRRs on with write-back as the default (else
/// Linux turns PAT off), and fast string operations (else Linux avoids `rep movsb`).
///
/// # Errors
/// KVM refused an MSR.
pub fn set_msrs(vcpu: &VcpuFd) -> Result<(), BootError> {
    let wanted = [
        (MSR_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
        (
            MSR_MISC_ENABLE,
            MISC_ENABLE_FAST_STRING | misc_enable(vcpu)?,
        ),
    ];
    for (index, data) in wanted {
        let msrs = one_msr(index, data)?;
        let set = vcpu
            .set_msrs(&msrs)
            .map_err(|source| registers("set an MSR", source))?;
        if set != 1 {
            return Err(BootError::Msr { msr: index });
        }
    }
    Ok(())
}

fn misc_enable(vcpu: &VcpuFd) -> Result<u64, BootError> {
    let mut msrs = one_msr(MSR_MISC_ENABLE, 0)?;
    let got = vcpu
        .get_msrs(&mut msrs)
        .map_err(|source| registers("get an MSR", source))?;
    Ok(if got == 1 { msrs.as_slice()[0].data } else { 0 })
}

fn one_msr(index: u32, data: u64) -> Result<Msrs, BootError> {
    let entry = kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[entry]).map_err(|_| BootError::Msr { msr: index })
}

fn registers(operation: &'static str, source: kvm_ioctls::Error) -> BootError {
    BootError::Registers { operation, source }
}

impl EntryPoint {
    /// Makes `vcpu`, the boot CPU, ready to run the kernel that [`super::load`] put into `ram`;
    /// includes [`set_msrs`].
    ///
    /// # Errors
    /// KVM refused registers, or the page tables could not be written.
    pub fn set_registers(&self, vcpu: &VcpuFd, ram: &GuestRam) -> Result<(), BootError> {
        set_msrs(vcpu)?;
        match *self {
            Self::Pvh { entry, start_info } => set_pvh(vcpu, entry, start_info),
            Self::Linux64 { entry, boot_params } => set_linux64(vcpu, ram, entry, boot_params),
        }
    }
}

/// 32-bit protected mode, flat segments, paging off; `ebx` has the start info.
fn set_pvh(vcpu: &VcpuFd, entry: u32, start_info: u64) -> Result<(), BootError> {
    let mut sregs = vcpu
        .get_sregs()
        .map_err(|source| registers("get the special registers", source))?;
    // No selectors: the guest loads a GDT before it loads a segment.
    sregs.cs = code(0, false);
    let data = data(0);
    (sregs.ds, sregs.es, sregs.fs) = (data, data, data);
    (sregs.gs, sregs.ss) = (data, data);
    sregs.tr = tss();
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
    vcpu.set_sregs(&sregs)
        .map_err(|source| registers("set the special registers", source))?;
    vcpu.set_regs(&kvm_regs {
        rip: entry.into(),
        rbx: start_info,
        rflags: RFLAGS,
        ..Default::default()
    })
    .map_err(|source| registers("set the registers", source))
}

/// 64-bit mode with the first 4 GiB mapped one to one; `rsi` has the zero page.
fn set_linux64(
    vcpu: &VcpuFd,
    ram: &GuestRam,
    entry: u64,
    boot_params: u64,
) -> Result<(), BootError> {
    write_page_tables(ram)?;
    let gdt: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    let bytes: Vec<u8> = gdt.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    write(ram, "the GDT", layout::GDT, &bytes)?;

    let mut sregs = vcpu
        .get_sregs()
        .map_err(|source| registers("get the special registers", source))?;
    sregs.cs = code(LINUX_CS, true);
    let data = data(LINUX_DS);
    (sregs.ds, sregs.es, sregs.fs) = (data, data, data);
    (sregs.gs, sregs.ss) = (data, data);
    sregs.tr = tss();
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = 4 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr3 = layout::PML4;
    sregs.cr4 = CR4_PAE;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.efer = EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs)
        .map_err(|source| registers("set the special registers", source))?;
    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rsi: boot_params,
        rflags: RFLAGS,
        ..Default::default()
    })
    .map_err(|source| registers("set the registers", source))
}

fn write_page_tables(ram: &GuestRam) -> Result<(), BootError> {
    let table = |entries: &[u64]| -> Vec<u8> {
        entries
            .iter()
            .flat_map(|entry| entry.to_le_bytes())
            .collect()
    };
    write(
        ram,
        "a page table",
        layout::PML4,
        &table(&[layout::PDPT | PAGE_PRESENT_WRITABLE]),
    )?;
    let directories: Vec<u64> = (0..4)
        .map(|i| (layout::PAGE_DIRECTORIES + i * 0x1000) | PAGE_PRESENT_WRITABLE)
        .collect();
    write(ram, "a page table", layout::PDPT, &table(&directories))?;
    let pages: Vec<u64> = (0..4 * 512)
        .map(|i| (i * LARGE_PAGE) | PAGE_LARGE | PAGE_PRESENT_WRITABLE)
        .collect();
    write(
        ram,
        "a page table",
        layout::PAGE_DIRECTORIES,
        &table(&pages),
    )
}

fn code(selector: u16, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: 0xb,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

fn data(selector: u16) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: 3,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

/// A busy TSS over the first pages of RAM, which are zero.
fn tss() -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: TSS_LIMIT,
        type_: 0xb,
        present: 1,
        ..Default::default()
    }
}
