//! Loads a Linux bzImage by the 64-bit boot protocol.
//!
//! Source: Linux `Documentation/arch/x86/boot.rst` and `zero-page.rst`.

use std::path::Path;

use migration::{GuestRam, PAGE_SIZE};

use super::error::BootError;
use super::image::{Image, field, write};
use super::initrd::{self, Initrd};
use super::layout::{self, MemoryKind};

/// The setup header as far as this loader reads it, from the start of the file.
const HEADER_LEN: usize = 0x290;
const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const BOOT_FLAG: usize = 0x1fe;
/// Second byte of the jump at 0x200: the header ends that many bytes behind 0x202.
const HEADER_END: usize = 0x201;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const INITRD_ADDR_MAX: usize = 0x22c;
const KERNEL_ALIGNMENT: usize = 0x230;
const RELOCATABLE: usize = 0x234;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;

/// Fields of the zero page outside of the setup header.
const ZERO_ACPI_RSDP: usize = 0x070;
const ZERO_E820_ENTRIES: usize = 0x1e8;
const ZERO_E820_TABLE: usize = 0x2d0;
const E820_MAX: usize = 128;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
const LOADER_UNDEFINED: u8 = 0xff;
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;
const MIN_VERSION: u16 = 0x020c;

/// What the setup header says and the loader needs.
pub(super) struct BzImage<'a> {
    image: &'a Image,
    header: Vec<u8>,
    payload_offset: u64,
    payload_len: u64,
    pub(super) cmdline_max: usize,
}

/// Whether the file has the marks of a Linux boot sector.
pub(super) fn is_bzimage(start: &[u8]) -> bool {
    start.len() >= VERSION
        && start[BOOT_FLAG..BOOT_FLAG + 2] == [0x55, 0xaa]
        && start[MAGIC..MAGIC + 4] == *b"HdrS"
}

impl<'a> BzImage<'a> {
    /// Reads and checks the setup header.
    pub(super) fn read(image: &'a Image) -> Result<Self, BootError> {
        let file = || image.name().to_owned();
        let mut header = vec![0; HEADER_LEN];
        image.read("the Linux setup header", 0, &mut header)?;
        let version = u16::from_le_bytes(field(&header, VERSION));
        if version < MIN_VERSION {
            let [minor, major] = version.to_le_bytes();
            return Err(BootError::OldBootProtocol {
                file: file(),
                major,
                minor,
            });
        }
        let xloadflags = u16::from_le_bytes(field(&header, XLOADFLAGS));
        if header[LOADFLAGS] & LOADED_HIGH == 0 || xloadflags & XLF_KERNEL_64 == 0 {
            return Err(BootError::No64BitEntry { file: file() });
        }
        let setup_sectors = match header[SETUP_SECTS] {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let payload_offset = (setup_sectors + 1) * SECTOR;
        let paragraphs = u32::from_le_bytes(field(&header, SYSSIZE));
        // The size is rounded up to a whole paragraph; the file need not be.
        let available = image.len().saturating_sub(payload_offset);
        let payload_len = (u64::from(paragraphs) * 16).min(available);
        if u64::from(paragraphs) * 16 - payload_len >= 16 {
            return Err(BootError::Truncated {
                file: file(),
                what: "the kernel",
                needed: payload_offset + u64::from(paragraphs) * 16,
                have: image.len(),
            });
        }
        if payload_len <= ENTRY_64 {
            return Err(BootError::MalformedSetupHeader {
                file: file(),
                what: "the size of the kernel",
                value: payload_len,
            });
        }
        let cmdline_size = u32::from_le_bytes(field(&header, CMDLINE_SIZE)) as usize;
        Ok(Self {
            image,
            header,
            payload_offset,
            payload_len,
            cmdline_max: cmdline_size,
        })
    }

    /// Loads kernel and initrd and writes the zero page; the 64-bit entry point.
    pub(super) fn load(
        &self,
        ram: &GuestRam,
        initrd: Option<&Path>,
        cmdline_len: usize,
    ) -> Result<u64, BootError> {
        let (start, end) = self.place(layout::low_ram_end(ram))?;
        self.image.load(
            "the kernel",
            self.payload_offset,
            self.payload_len,
            ram,
            start,
        )?;
        let highest = u64::from(u32::from_le_bytes(field(&self.header, INITRD_ADDR_MAX))) + 1;
        let initrd = initrd
            .map(|path| initrd::load(path, ram, end, highest))
            .transpose()?;
        let zero_page = self.zero_page(ram, initrd.as_ref(), cmdline_len);
        write(ram, "the Linux zero page", layout::BOOT_PARAMS, &zero_page)?;
        Ok(start + ENTRY_64)
    }

    /// Where the kernel goes and where the memory that it needs ends: at the address that it
    /// prefers or, if that does not fit and it can be moved, as low as its alignment allows.
    fn place(&self, ram_end: u64) -> Result<(u64, u64), BootError> {
        let malformed = |what, value| BootError::MalformedSetupHeader {
            file: self.image.name().to_owned(),
            what,
            value,
        };
        let align = u64::from(u32::from_le_bytes(field(&self.header, KERNEL_ALIGNMENT)));
        if !align.is_power_of_two() || align < PAGE_SIZE {
            return Err(malformed("the kernel alignment", align));
        }
        let init_size = u64::from(u32::from_le_bytes(field(&self.header, INIT_SIZE)));
        if init_size < self.payload_len {
            return Err(malformed("the memory for decompression", init_size));
        }
        let preferred = u64::from_le_bytes(field(&self.header, PREF_ADDRESS));
        if preferred < layout::HIGH_RAM || !preferred.is_multiple_of(align) {
            return Err(malformed("the preferred address", preferred));
        }
        let lowest = layout::HIGH_RAM.next_multiple_of(align);
        let moved = (self.header[RELOCATABLE] != 0).then_some(lowest);
        [Some(preferred), moved]
            .into_iter()
            .flatten()
            .map(|start| (start, start.saturating_add(init_size)))
            .find(|&(_, end)| end <= ram_end)
            .ok_or_else(|| BootError::KernelDoesNotFit {
                file: self.image.name().to_owned(),
                start: moved.unwrap_or(preferred),
                end: moved.unwrap_or(preferred).saturating_add(init_size),
                ram_end,
            })
    }

    fn zero_page(&self, ram: &GuestRam, initrd: Option<&Initrd>, cmdline_len: usize) -> Vec<u8> {
        let mut page = vec![0; usize::try_from(PAGE_SIZE).unwrap_or(4096)];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        // Of the header, only what the kernel declares to be header may be copied: what follows
        // has another meaning in the zero page.
        let header_end = (MAGIC + usize::from(self.header[HEADER_END])).min(HEADER_LEN);
        if header_end > SETUP_SECTS {
            put(SETUP_SECTS, &self.header[SETUP_SECTS..header_end]);
        }
        put(TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
        if cmdline_len > 0 {
            put(CMD_LINE_PTR, &low_address(layout::CMDLINE));
        }
        if let Some(initrd) = initrd {
            put(RAMDISK_IMAGE, &low_address(initrd.start));
            put(RAMDISK_SIZE, &low_address(initrd.len));
        }
        put(ZERO_ACPI_RSDP, &layout::RSDP.to_le_bytes());
        let mut entries = 0_u8;
        for range in layout::memory_map(ram).iter().take(E820_MAX) {
            let kind = match range.kind {
                MemoryKind::Ram => E820_RAM,
                MemoryKind::Reserved => E820_RESERVED,
            };
            let at = ZERO_E820_TABLE + usize::from(entries) * 20;
            put(at, &range.start.to_le_bytes());
            put(at + 8, &range.len.to_le_bytes());
            put(at + 16, &kind.to_le_bytes());
            entries += 1;
        }
        put(ZERO_E820_ENTRIES, &[entries]);
        page
    }
}

/// An address or length in low RAM, which ends below 4 GiB.
fn low_address(value: u64) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes()
}
