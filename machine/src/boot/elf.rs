//! Loads an ELF file that has a PVH entry point: `vmlinux` or a bare-metal guest.
//!
//! Segments go to their physical addresses. What a segment has in memory but not in the file is
//! left alone: RAM is zero before boot.
//!
//! Sources: System V ABI chapters 4 and 5; Xen `docs/misc/pvh.pandoc` and the note type
//! `XEN_ELFNOTE_PHYS32_ENTRY` (18).

use migration::GuestRam;

use super::error::BootError;
use super::image::{Image, field};
use super::layout;

const HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;
/// A kernel has about five; more than this is garbage.
const MAX_PROGRAM_HEADERS: u16 = 128;
/// The notes of a kernel take a few hundred bytes.
const MAX_NOTES_LEN: u64 = 64 << 10;

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;
const NOTE_XEN_PHYS32_ENTRY: u32 = 18;

/// An ELF kernel in RAM.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LoadedElf {
    /// 32-bit entry point with paging off.
    pub(super) entry: u32,
    /// First byte behind the highest segment.
    pub(super) end: u64,
}

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
    align: u64,
}

/// Whether the file begins like an ELF file.
pub(super) fn is_elf(start: &[u8]) -> bool {
    start.starts_with(b"\x7fELF")
}

pub(super) fn load(image: &Image, ram: &GuestRam) -> Result<LoadedElf, BootError> {
    let segments = read_segments(image)?;
    let entry = pvh_entry(image, &segments)?;
    let loaded: Vec<&Segment> = segments
        .iter()
        .filter(|s| s.kind == SEGMENT_LOAD && s.memory_size > 0)
        .collect();
    check_placement(image, &loaded, layout::low_ram_end(ram))?;
    let inside = |s: &&Segment| (s.address..s.address + s.memory_size).contains(&u64::from(entry));
    if !loaded.iter().any(inside) {
        return Err(BootError::EntryOutsideKernel {
            file: image.name().to_owned(),
            entry: u64::from(entry),
        });
    }
    for segment in &loaded {
        image.load(
            "a segment",
            segment.offset,
            segment.file_size,
            ram,
            segment.address,
        )?;
    }
    Ok(LoadedElf {
        entry,
        end: loaded
            .iter()
            .map(|s| s.address + s.memory_size)
            .max()
            .unwrap_or(0),
    })
}

fn read_segments(image: &Image) -> Result<Vec<Segment>, BootError> {
    let file = || image.name().to_owned();
    let malformed = |what, value| BootError::MalformedElf {
        file: file(),
        what,
        value,
    };
    let mut header = [0; HEADER_LEN];
    image.read("the ELF header", 0, &mut header)?;
    if header[4] != CLASS_64 || header[5] != LITTLE_ENDIAN {
        return Err(BootError::WrongElfClass { file: file() });
    }
    let machine = u16::from_le_bytes(field(&header, 18));
    if machine != MACHINE_X86_64 {
        return Err(BootError::WrongMachine {
            file: file(),
            machine,
        });
    }
    let kind = u16::from_le_bytes(field(&header, 16));
    if kind != TYPE_EXECUTABLE && kind != TYPE_SHARED {
        return Err(BootError::NotExecutable { file: file(), kind });
    }
    let table = u64::from_le_bytes(field(&header, 32));
    let entry_len = u16::from_le_bytes(field(&header, 54));
    if usize::from(entry_len) != PROGRAM_HEADER_LEN {
        return Err(malformed("the size of a program header", entry_len.into()));
    }
    let count = u16::from_le_bytes(field(&header, 56));
    if count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(malformed("the number of program headers", count.into()));
    }
    let mut bytes = vec![0; usize::from(count) * PROGRAM_HEADER_LEN];
    image.read("the program header table", table, &mut bytes)?;
    bytes
        .chunks_exact(PROGRAM_HEADER_LEN)
        .map(|header| {
            let segment = Segment {
                kind: u32::from_le_bytes(field(header, 0)),
                offset: u64::from_le_bytes(field(header, 8)),
                address: u64::from_le_bytes(field(header, 24)),
                file_size: u64::from_le_bytes(field(header, 32)),
                memory_size: u64::from_le_bytes(field(header, 40)),
                align: u64::from_le_bytes(field(header, 48)),
            };
            if segment.kind == SEGMENT_LOAD && segment.file_size > segment.memory_size {
                return Err(malformed(
                    "the size in the file of a segment larger than that in memory, which",
                    segment.memory_size,
                ));
            }
            Ok(segment)
        })
        .collect()
}

/// Refuses segments below 1 MiB, outside low RAM or over one another.
fn check_placement(image: &Image, loaded: &[&Segment], ram_end: u64) -> Result<(), BootError> {
    let file = || image.name().to_owned();
    let mut ranges: Vec<(u64, u64)> = Vec::with_capacity(loaded.len());
    for segment in loaded {
        let end = segment.address.saturating_add(segment.memory_size);
        if segment.address < layout::HIGH_RAM {
            return Err(BootError::SegmentTooLow {
                file: file(),
                start: segment.address,
                min: layout::HIGH_RAM,
            });
        }
        if end > ram_end {
            return Err(BootError::KernelDoesNotFit {
                file: file(),
                start: segment.address,
                end,
                ram_end,
            });
        }
        ranges.push((segment.address, end));
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if pair[1].0 < pair[0].1 {
            return Err(BootError::MalformedElf {
                file: file(),
                what: "the start of a segment that overlaps another",
                value: pair[1].0,
            });
        }
    }
    Ok(())
}

/// The entry point from the Xen note among the note segments.
fn pvh_entry(image: &Image, segments: &[Segment]) -> Result<u32, BootError> {
    for segment in segments.iter().filter(|s| s.kind == SEGMENT_NOTE) {
        if segment.file_size > MAX_NOTES_LEN {
            return Err(BootError::MalformedElf {
                file: image.name().to_owned(),
                what: "the size of the notes",
                value: segment.file_size,
            });
        }
        let mut notes = vec![0; usize::try_from(segment.file_size).unwrap_or(0)];
        image.read("the notes", segment.offset, &mut notes)?;
        let align = if segment.align == 8 { 8 } else { 4 };
        if let Some(entry) = find_entry(&notes, align) {
            return u32::try_from(entry).map_err(|_| BootError::EntryOutsideKernel {
                file: image.name().to_owned(),
                entry,
            });
        }
    }
    Err(BootError::NoPvhNote {
        file: image.name().to_owned(),
    })
}

fn find_entry(notes: &[u8], align: usize) -> Option<u64> {
    let mut at = 0_usize;
    loop {
        let header = notes.get(at..at + 12)?;
        let name_len = u32::from_le_bytes(field(header, 0)) as usize;
        let desc_len = u32::from_le_bytes(field(header, 4)) as usize;
        let kind = u32::from_le_bytes(field(header, 8));
        // Lengths are below 2^32 and `at` is below 64 KiB: nothing here overflows.
        let name_at = at + 12;
        let desc_at = at + (12 + name_len).next_multiple_of(align);
        let name = notes.get(name_at..name_at + name_len)?;
        let desc = notes.get(desc_at..desc_at + desc_len)?;
        if kind == NOTE_XEN_PHYS32_ENTRY && name == b"Xen\0" {
            return match desc.len() {
                4 => Some(u32::from_le_bytes(field(desc, 0)).into()),
                8 => Some(u64::from_le_bytes(field(desc, 0))),
                _ => None,
            };
        }
        at = desc_at + desc_len.next_multiple_of(align);
    }
}
