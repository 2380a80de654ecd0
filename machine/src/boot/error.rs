//! Why a guest could not be brought to its first instruction.

use std::io;

use vm_memory::GuestMemoryError;

/// Why a guest could not be brought to its first instruction; names the file, the operation and
/// the cause.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages say what the fields are.
pub enum BootError {
    #[error("cannot open {file}")]
    Open { file: String, source: io::Error },
    #[error("cannot load {file}: not a regular file")]
    NotRegular { file: String },
    #[error("cannot read {len} bytes at offset {offset:#x} of {file}")]
    Read {
        file: String,
        offset: u64,
        len: u64,
        source: io::Error,
    },
    #[error("{file} is truncated: {what} ends at byte {needed}, the file at byte {have}")]
    Truncated {
        file: String,
        what: &'static str,
        needed: u64,
        have: u64,
    },
    #[error("{file} is neither an ELF file with a PVH entry nor a Linux bzImage")]
    UnknownFormat { file: String },
    #[error("{file} is not a 64-bit little-endian ELF file")]
    WrongElfClass { file: String },
    #[error("{file} is an ELF file for machine {machine}, not for x86-64 (62)")]
    WrongMachine { file: String, machine: u16 },
    #[error("{file} is an ELF file of type {kind}, not an executable (2 or 3)")]
    NotExecutable { file: String, kind: u16 },
    #[error("{file} is a malformed ELF file: {what} is {value:#x}")]
    MalformedElf {
        file: String,
        what: &'static str,
        value: u64,
    },
    #[error(
        "{file} has no PVH entry point (no Xen note of type 18): build the kernel with CONFIG_PVH=y or use its bzImage"
    )]
    NoPvhNote { file: String },
    #[error("the PVH entry point {entry:#x} of {file} is in none of its loaded segments")]
    EntryOutsideKernel { file: String, entry: u64 },
    #[error(
        "a segment of {file} would be loaded at {start:#x}, below {min:#x}, where the boot tables lie"
    )]
    SegmentTooLow { file: String, start: u64, min: u64 },
    #[error(
        "{file} does not fit into RAM: it needs {start:#x} to {end:#x}, and the guest's low RAM ends at {ram_end:#x}"
    )]
    KernelDoesNotFit {
        file: String,
        start: u64,
        end: u64,
        ram_end: u64,
    },
    #[error(
        "{file} speaks version {major}.{minor:02} of the Linux boot protocol; 2.12 or newer is needed"
    )]
    OldBootProtocol { file: String, major: u8, minor: u8 },
    #[error("{file} is a Linux kernel without a 64-bit entry point: a 64-bit kernel is needed")]
    No64BitEntry { file: String },
    #[error("{file} has a malformed Linux setup header: {what} is {value:#x}")]
    MalformedSetupHeader {
        file: String,
        what: &'static str,
        value: u64,
    },
    #[error("the initrd {file} is empty")]
    EmptyInitrd { file: String },
    #[error(
        "the initrd {file} of {size} bytes does not fit between the kernel's end at {kernel_end:#x} and {limit:#x}"
    )]
    InitrdDoesNotFit {
        file: String,
        size: u64,
        kernel_end: u64,
        limit: u64,
    },
    #[error("the command line is {len} bytes long; {file} takes at most {max}")]
    CmdlineTooLong {
        file: String,
        len: usize,
        max: usize,
    },
    #[error("the command line has a zero byte at position {position}")]
    CmdlineNul { position: usize },
    #[error("guest RAM does not begin at address 0 or is smaller than 1 MiB")]
    NoLowRam,
    #[error("a guest has 1 to {max} CPUs, not {cpus}")]
    Cpus { cpus: u32, max: u32 },
    #[error("the device registers at {base:#x}, {len:#x} long, do not lie in the hole below 4 GiB")]
    MmioSlot { base: u64, len: u64 },
    #[error("the ACPI tables take {len} bytes, and there is room for {max}")]
    AcpiTooLarge { len: usize, max: usize },
    #[error("cannot write {what} into guest RAM at {gpa:#x}")]
    WriteRam {
        what: &'static str,
        gpa: u64,
        source: GuestMemoryError,
    },
    #[error("cannot {operation} of the boot CPU")]
    Registers {
        operation: &'static str,
        source: kvm_ioctls::Error,
    },
    #[error("KVM refused to set MSR {msr:#x}")]
    Msr { msr: u32 },
}
