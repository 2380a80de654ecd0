//! Virtio devices behind their transport: registers, rings and requests as a hostile driver makes
//! them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{BlockDevice, Buffer, Discarded, Durability, Extent, ExtentKind, Identity, ZeroMode};
use devices::virtio::{Block, BlockConfig, Console, ConsoleEnd, MmioTransport, Rng, VirtioDevice};
use devices::{BusDevice, Interrupt};
use migration::GuestRam;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::fs::File;
use std::sync::Mutex;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::descriptors::{describe, plain_seeds};
use super::network;
use crate::{Input, Memory, Target};

const MEMORY: Memory = Memory {
    base: 12 << 20,
    per_byte: 1 << 10,
};
const LONGEST: usize = 1024;

/// A disk.
pub(super) const BLOCK: Target =
    target("virtio-block", |bytes| run(Kind::Block, bytes), block_seeds);
/// A console.
pub(super) const CONSOLE: Target = target(
    "virtio-console",
    |bytes| run(Kind::Console, bytes),
    || plain_seeds(2),
);
/// A network interface with a control queue and two pairs.
pub(super) const NET: Target = target("virtio-net", |bytes| run(Kind::Net, bytes), network::seeds);
/// An entropy source.
pub(super) const RNG: Target = target(
    "virtio-rng",
    |bytes| run(Kind::Rng, bytes),
    || plain_seeds(1),
);

const fn target(name: &'static str, run: fn(&[u8]), seeds: fn() -> Vec<Vec<u8>>) -> Target {
    Target {
        name,
        run,
        seeds,
        words: &[],
        longest: LONGEST,
        memory: MEMORY,
    }
}

/// Which device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A disk of 64 KiB.
    Block,
    /// A console that prints nowhere.
    Console,
    /// An entropy source.
    Rng,
    /// A network interface whose network always has the same packets to give.
    Net,
}

/// Guest memory: two pieces with a hole between them.
const PIECE: u64 = 64 << 10;
const SECOND: u64 = 128 << 10;
/// Each queue's rings lie in a page: descriptors, then the available and the used ring.
const RING: u64 = 0x1000;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const ENTRIES: u16 = 16;
/// As many queues as any of the devices has.
const QUEUES: u8 = 5;
const DISK: usize = 64 << 10;

const STATUS: u64 = 0x70;
const QUEUE_NOTIFY: u64 = 0x50;

#[derive(Debug, Default)]
struct Counted(AtomicU64);

impl Interrupt for Counted {
    fn trigger(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A disk in memory that is never asked for what it does not have.
struct Disk {
    bytes: Mutex<Vec<u8>>,
    read_only: bool,
}

impl Disk {
    fn with(&self, offset: u64, len: u64, act: impl FnOnce(&mut [u8])) -> block::Result<()> {
        let mut bytes = self.bytes.lock().expect("no panic while it was held");
        let end = offset.checked_add(len).expect("no overflow");
        assert!(end <= bytes.len() as u64, "{len} bytes at {offset}");
        act(&mut bytes[offset as usize..end as usize]);
        Ok(())
    }

    fn change(&self, offset: u64, len: u64, act: impl FnOnce(&mut [u8])) -> block::Result<()> {
        assert!(!self.read_only, "a read-only disk is changed");
        self.with(offset, len, act)
    }
}

impl BlockDevice for Disk {
    fn size(&self) -> u64 {
        DISK as u64
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, buffers: &[Buffer<'_>], offset: u64) -> block::Result<()> {
        self.with(offset, Buffer::total_len(buffers), |mut bytes| {
            for buffer in buffers {
                let (now, later) = bytes.split_at_mut(buffer.len());
                buffer.as_volatile().copy_from(now);
                bytes = later;
            }
        })
    }

    fn write(&self, buffers: &[Buffer<'_>], offset: u64, _: Durability) -> block::Result<()> {
        self.change(offset, Buffer::total_len(buffers), |mut bytes| {
            for buffer in buffers {
                let (now, later) = bytes.split_at_mut(buffer.len());
                buffer.as_volatile().copy_to(now);
                bytes = later;
            }
        })
    }

    fn flush(&self) -> block::Result<()> {
        Ok(())
    }

    fn has_unflushed_writes(&self) -> bool {
        true
    }

    fn discard(&self, offset: u64, len: u64) -> block::Result<Discarded> {
        self.change(offset, len, |_| ())?;
        Ok(Discarded::Kept)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: ZeroMode) -> block::Result<()> {
        self.change(offset, len, |bytes| bytes.fill(0))
    }

    fn extents(&self, offset: u64, len: u64, _: usize) -> block::Result<Vec<Extent>> {
        let kind = ExtentKind::Data;
        Ok(vec![Extent { offset, len, kind }])
    }

    fn identity(&self) -> Identity {
        Identity {
            name: "memory".into(),
            device: 0,
            inode: 0,
            below: None,
            is_local: true,
        }
    }
}

/// Guest memory in a memory file; each mapping has marks of its own.
pub(super) fn memory() -> (File, GuestRam) {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memory file"));
    ftruncate(&file, 2 * PIECE).expect("room in memory");
    let ram = map(&file);
    (file, ram)
}

fn map(file: &File) -> GuestRam {
    let piece = |gpa, at| {
        let offset = FileOffset::new(file.try_clone().expect("a descriptor"), at);
        (GuestAddress(gpa), PIECE as usize, Some(offset))
    };
    GuestRam::from_ranges_with_files([piece(0, 0), piece(SECOND, PIECE)]).expect("guest memory")
}

/// A device, and the end for a console's input.
fn device(kind: Kind, read_only: bool) -> (Box<dyn VirtioDevice>, Option<ConsoleEnd>) {
    match kind {
        Kind::Block => {
            let disk = Disk {
                bytes: Mutex::new(vec![0xd5; DISK]),
                read_only,
            };
            let config = BlockConfig {
                serial: "disk0".into(),
                queues: 2,
            };
            let disk = Block::over(Arc::new(disk), config).expect("a disk");
            (Box::new(disk), None)
        }
        Kind::Console => {
            let (console, input) = Console::new(Box::new(io::sink())).expect("a console");
            (Box::new(console), Some(input))
        }
        Kind::Rng => (Box::new(Rng::new()), None),
        Kind::Net => (Box::new(network::interface()), None),
    }
}

/// A transport with such a device, over `ram`.
pub(super) fn transport(kind: Kind, ram: &GuestRam) -> Arc<MmioTransport> {
    let (device, _) = device(kind, false);
    MmioTransport::new(device, ram.clone(), Arc::new(Counted::default())).expect("a transport")
}

struct Guest {
    kind: Kind,
    read_only: bool,
    /// As the device sees memory.
    ram: GuestRam,
    /// As the driver does: its writes leave no marks in the other.
    own: GuestRam,
    /// What memory would hold if only the driver wrote.
    shadow: Vec<u8>,
    transport: Arc<MmioTransport>,
    input: Option<ConsoleEnd>,
    available: [u16; QUEUES as usize],
}

impl Guest {
    fn new(kind: Kind, read_only: bool) -> Self {
        let (file, ram) = memory();
        let (device, input) = device(kind, read_only);
        let interrupt = Arc::new(Counted::default());
        let transport = MmioTransport::new(device, ram.clone(), interrupt).expect("a transport");
        // As a machine that begins to run.
        let _ = (transport.pause(), transport.resume());
        Self {
            kind,
            read_only,
            own: map(&file),
            transport,
            ram,
            shadow: vec![0; 2 * PIECE as usize],
            input,
            available: [0; QUEUES as usize],
        }
    }

    fn put(&mut self, gpa: u64, bytes: &[u8]) {
        let end = gpa + bytes.len() as u64;
        let at = match gpa {
            _ if end <= PIECE => gpa,
            SECOND.. if end <= SECOND + PIECE => gpa - SECOND + PIECE,
            _ => return,
        } as usize;
        let written = self.own.write_slice(bytes, GuestAddress(gpa));
        written.expect("guest memory");
        self.shadow[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn write(&self, offset: u64, value: u32) {
        if offset == QUEUE_NOTIFY {
            self.transport.serve_now(value as usize);
        } else {
            self.transport.write(offset, &value.to_le_bytes());
        }
    }

    /// Brings the device up as a good driver does, with the features that it offers and `refused`
    /// does not name.
    fn start(&mut self, refused: u64) {
        let ready = |status| self.write(STATUS, status);
        ready(0);
        ready(3);
        let mut low = [0; 4];
        self.write(0x14, 0);
        self.transport.read(0x10, &mut low);
        self.write(0x24, 0);
        self.write(0x20, u32::from_le_bytes(low) & !(refused as u32));
        self.write(0x24, 1);
        self.write(0x20, 1);
        ready(11);
        for queue in 0..u32::from(QUEUES) {
            let base = u64::from(queue) * RING;
            self.write(0x30, queue);
            self.write(0x38, ENTRIES.into());
            for (register, gpa) in [(0x80, base), (0x90, base + AVAILABLE), (0xa0, base + USED)] {
                self.write(register, gpa as u32);
                self.write(register + 4, 0);
            }
            self.write(0x44, 1);
        }
        ready(15);
        self.available = [0; QUEUES as usize];
    }

    fn descriptor(&mut self, input: &mut Input<'_>) {
        let queue = u64::from(input.u8() % QUEUES);
        let index = u64::from(input.u8() % ENTRIES as u8);
        let gpa = place(input.u16());
        let len = match input.u8() {
            len @ 0..128 => u32::from(len),
            sectors @ 128..254 => u32::from(sectors - 128) * 512,
            254 => input.u32(),
            255 => u32::MAX,
        };
        let flags = u16::from(input.u8());
        let next = u16::from(input.u8());
        let mut raw = gpa.to_le_bytes().to_vec();
        raw.extend(len.to_le_bytes());
        raw.extend(flags.to_le_bytes());
        raw.extend(next.to_le_bytes());
        self.put(queue * RING + index * 16, &raw);
    }

    /// Makes a request available.
    fn offer(&mut self, queue: u8, head: u16) {
        let queue = usize::from(queue % QUEUES);
        let ring = queue as u64 * RING + AVAILABLE;
        let index = self.available[queue];
        self.put(
            ring + 4 + u64::from(index % ENTRIES) * 2,
            &head.to_le_bytes(),
        );
        self.available[queue] = index.wrapping_add(1);
        self.put(ring + 2, &self.available[queue].to_le_bytes());
    }

    /// Another process goes on with the device.
    fn move_away(&mut self) {
        let _ = self.transport.pause();
        let state = self.transport.save().expect("a paused device is saved");
        let (device, input) = device(self.kind, self.read_only);
        let next = MmioTransport::new(device, self.ram.clone(), Arc::new(Counted::default()));
        let next = next.expect("a transport");
        let _ = next.pause();
        let loaded = next.load(state.clone());
        assert!(loaded.is_ok(), "{loaded:?} of what was saved: {state:?}");
        assert_eq!(next.save().expect("a paused device is saved"), state);
        let _ = next.resume();
        (self.transport, self.input) = (next, input);
    }

    /// All that a device wrote is marked as such.
    fn check_marks(&self) {
        let _ = self.transport.pause();
        for (index, region) in self.ram.iter().enumerate() {
            let at = index * PIECE as usize;
            let mut now = vec![0; PIECE as usize];
            let start = region.start_addr();
            self.own.read_slice(&mut now, start).expect("guest memory");
            let expected = &self.shadow[at..at + now.len()];
            for (page, (now, then)) in now.chunks(4096).zip(expected.chunks(4096)).enumerate() {
                let marked = region.bitmap().dirty_at(page * 4096);
                assert!(
                    marked || now == then,
                    "page {page} of {start:?} is not marked"
                );
            }
        }
    }
}

/// An address that is mostly in memory.
fn place(number: u16) -> u64 {
    match number {
        0xfff0.. => (1 << 40) | u64::from(number),
        _ => u64::from(number) * 4,
    }
}

fn run(kind: Kind, bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let options = input.u8();
    let mut guest = Guest::new(kind, options & 1 == 1);
    if options & 2 == 0 {
        guest.start(u64::from(input.u32()));
    }
    let mut moves = 0;
    while !input.is_empty() {
        match input.u8() % 12 {
            0 => {
                let offset = u64::from(input.u16() % 0x200);
                guest.write(offset, input.u32());
            }
            1 => {
                let offset = u64::from(input.u16() % 0x1000);
                let mut data = [0; 8];
                let len = usize::from(input.u8() % 9);
                guest.transport.read(offset, &mut data[..len]);
            }
            2 => {
                let offset = u64::from(input.u16() % 0x1000);
                let len = usize::from(input.u8() % 9);
                if offset != QUEUE_NOTIFY {
                    guest.transport.write(offset, input.bytes(len));
                }
            }
            3 => {
                let gpa = place(input.u16());
                let len = usize::from(input.u8());
                guest.put(gpa, input.bytes(len));
            }
            4 | 5 => guest.descriptor(&mut input),
            6 => guest.offer(input.u8(), input.u8().into()),
            7 | 8 => guest.transport.serve_now(usize::from(input.u8() % QUEUES)),
            9 if moves < 4 => {
                moves += 1;
                guest.move_away();
            }
            10 => {
                if let Some(console) = &guest.input {
                    let len = usize::from(input.u8());
                    console.enqueue(input.bytes(len));
                }
            }
            11 => guest.start(u64::from(input.u32())),
            _ => {}
        }
    }
    guest.check_marks();
}

fn block_seeds() -> Vec<Vec<u8>> {
    const HEADER: u16 = 0x8000;
    let mut seeds = Vec::new();
    for (request, data) in [(0_u8, 2_u8), (1, 0), (4, 0), (8, 2), (11, 0), (13, 0)] {
        let mut seed = vec![0, 0, 0, 0, 0];
        seed.push(3);
        seed.extend((HEADER / 4).to_le_bytes());
        seed.extend([8, request, 0, 0, 0, 0, 0, 0, 0]);
        // A range of two sectors, for requests that take some.
        seed.push(3);
        seed.extend((0x9000_u16 / 4).to_le_bytes());
        seed.extend([16, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        let len = if request > 8 { 16 } else { 129 };
        seed.extend(describe(0, 0, HEADER, 16, 1));
        seed.extend(describe(0, 1, 0x9000, len, 1 | data));
        seed.extend(describe(0, 2, 0xa000, 1, 2));
        seed.extend([6, 0, 0, 7, 0, 9, 6, 0, 0, 7, 0]);
        seeds.push(seed);
    }
    seeds
}
