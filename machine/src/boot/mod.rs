//! From kernel, initrd and command line to a guest that can execute its first instruction.
//!
//! [`load`] does, in this order: checks of the plan; recognises the kernel by its first bytes (an
//! ELF file with a PVH entry, or a Linux bzImage); checks the command line against what that kernel
//! takes; copies the kernel and then the initrd, straight from the file, into RAM that is zero;
//! writes the command line, the start info (PVH) or the zero page (Linux), the ACPI tables, and what a kernel
//! that restarts finds of a [`firmware`].
//! [`EntryPoint::set_registers`] then prepares the boot CPU; the others wait for the guest's
//! start-up messages and get only [`set_msrs`]. [`layout`] has the memory map.
//!
//! What comes from files is bounded before it is used: nothing larger than guest RAM is read, and
//! no file is read into the VMM's own memory beyond its headers.

pub mod acpi;
mod board;
mod bzimage;
mod dsdt;
mod elf;
mod error;
pub mod firmware;
mod image;
mod initrd;
mod instruction;
pub mod layout;
mod plan;
mod pvh;
pub mod refusal;
mod registers;

pub use error::BootError;
pub use image::KernelSource;
pub use plan::{BootPlan, EntryPoint, MmioSlot};
pub use registers::set_msrs;

use image::{Image, write};

/// Most CPUs that a machine can have: their APIC ids fit into a byte, and 255 is broadcast.
pub const MAX_CPUS: u32 = 254;

/// The command line that x86 Linux takes by PVH; it would silently cut off the rest.
const PVH_CMDLINE_MAX: usize = 2047;

/// Writes kernel, initrd, command line, boot information and ACPI tables into RAM.
///
/// # Errors
/// The kernel or initrd cannot be read, is not of a kind that boots here or does not fit into RAM;
/// the command line is too long; the plan describes no possible machine. RAM may then have been
/// written in part.
pub fn load(plan: &BootPlan<'_>) -> Result<EntryPoint, BootError> {
    let ram = plan.ram;
    if layout::low_ram_end(ram) < layout::HIGH_RAM {
        return Err(BootError::NoLowRam);
    }
    if !(1..=MAX_CPUS).contains(&plan.cpus) {
        return Err(BootError::Cpus {
            cpus: plan.cpus,
            max: MAX_CPUS,
        });
    }
    let image = Image::kernel(plan.kernel)?;
    let mut start = [0; 0x206];
    let len = image.len().min(start.len() as u64);
    let start = &mut start[..usize::try_from(len).unwrap_or(0)];
    image.read("the header", 0, start)?;
    let entry = if elf::is_elf(start) {
        check_cmdline(plan, &image, PVH_CMDLINE_MAX)?;
        load_pvh(plan, &image)?
    } else if bzimage::is_bzimage(start) {
        let kernel = bzimage::BzImage::read(&image)?;
        check_cmdline(plan, &image, kernel.cmdline_max)?;
        let entry = kernel.load(ram, plan.initrd, plan.cmdline.len())?;
        EntryPoint::Linux64 {
            entry,
            boot_params: layout::BOOT_PARAMS,
        }
    } else {
        return Err(BootError::UnknownFormat {
            file: image.name().to_owned(),
        });
    };
    let mut cmdline = plan.cmdline.as_bytes().to_vec();
    cmdline.push(0);
    write(ram, "the command line", layout::CMDLINE, &cmdline)?;
    acpi::write_tables(plan, ram)?;
    firmware::write_firmware(ram)?;
    Ok(entry)
}

fn load_pvh(plan: &BootPlan<'_>, image: &Image) -> Result<EntryPoint, BootError> {
    let kernel = elf::load(image, plan.ram)?;
    let initrd = plan
        .initrd
        .map(|path| initrd::load(path, plan.ram, kernel.end, u64::MAX))
        .transpose()?;
    let start_info = pvh::write_start_info(plan.ram, initrd.as_ref())?;
    Ok(EntryPoint::Pvh {
        entry: kernel.entry,
        start_info,
    })
}

fn check_cmdline(plan: &BootPlan<'_>, image: &Image, kernel_max: usize) -> Result<(), BootError> {
    if let Some(position) = plan.cmdline.bytes().position(|byte| byte == 0) {
        return Err(BootError::CmdlineNul { position });
    }
    let room = usize::try_from(layout::CMDLINE_SPACE).unwrap_or(usize::MAX) - 1;
    let max = kernel_max.min(room);
    if plan.cmdline.len() > max {
        return Err(BootError::CmdlineTooLong {
            file: image.name().to_owned(),
            len: plan.cmdline.len(),
            max,
        });
    }
    Ok(())
}

#[cfg(test)]
mod acpi_tests;
#[cfg(test)]
mod garbage;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
