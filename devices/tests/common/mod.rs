//! The driver's side of virtio-mmio, small and without any trust in the device.
#![allow(dead_code)] // Each test file uses its part.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use devices::virtio::{MmioTransport, VirtioDevice};
use devices::{BusDevice, Interrupt};
use migration::GuestRam;
use vm_memory::{Bytes, GuestAddress};

pub const RAM_SIZE: usize = 8 << 20;
/// Rings live here, 64 KiB per queue.
pub const RINGS: u64 = 0x10_0000;
/// Buffers live here.
pub const BUFFERS: u64 = 0x40_0000;

pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT: u64 = 1 << 28;
pub const VERSION_1: u64 = 1 << 32;

pub const STATUS: u64 = 0x70;
pub const DRIVER_OK: u32 = 4;
pub const NEEDS_RESET: u32 = 64;

/// Two regions, so that buffers may span them.
pub fn ram() -> GuestRam {
    GuestRam::from_ranges(&[
        (GuestAddress(0), RAM_SIZE / 2),
        (GuestAddress(RAM_SIZE as u64 / 2), RAM_SIZE / 2),
    ])
    .unwrap()
}

/// Polls until `condition` holds; panics when it does not in time.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_micros(50));
    }
}

#[derive(Debug, Default)]
pub struct CountedInterrupt(AtomicU64);

impl CountedInterrupt {
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Interrupt for CountedInterrupt {
    fn trigger(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Segment {
    pub addr: u64,
    pub len: u32,
    pub writable: bool,
}

pub fn readable(addr: u64, len: u32) -> Segment {
    Segment {
        addr,
        len,
        writable: false,
    }
}

pub fn writable(addr: u64, len: u32) -> Segment {
    Segment {
        addr,
        len,
        writable: true,
    }
}

/// The driver's view of one queue.
#[derive(Debug, Clone)]
pub struct Ring {
    pub index: u32,
    pub size: u16,
    pub base: u64,
    next_desc: u16,
    pub avail_idx: u16,
    pub used_idx: u16,
}

impl Ring {
    pub fn desc(&self) -> u64 {
        self.base
    }
    pub fn avail(&self) -> u64 {
        self.base + 0x4000
    }
    pub fn used(&self) -> u64 {
        self.base + 0x8000
    }
    fn indirect(&self) -> u64 {
        self.base + 0xc000
    }
}

pub struct Driver {
    pub ram: GuestRam,
    pub transport: Arc<MmioTransport>,
    pub interrupt: Arc<CountedInterrupt>,
    pub features: u64,
    pub rings: Vec<Ring>,
}

impl Driver {
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::with_ram(device, ram())
    }

    pub fn with_ram(device: Box<dyn VirtioDevice>, ram: GuestRam) -> Self {
        let interrupt = Arc::new(CountedInterrupt::default());
        let transport = MmioTransport::new(device, ram.clone(), interrupt.clone()).unwrap();
        Self {
            ram,
            transport,
            interrupt,
            features: 0,
            rings: Vec::new(),
        }
    }

    /// A driver that goes on with another device in the same memory.
    pub fn moved_to(&self, device: Box<dyn VirtioDevice>) -> Self {
        let mut driver = Self::with_ram(device, self.ram.clone());
        driver.features = self.features;
        driver.rings = self.rings.clone();
        driver
    }

    pub fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    pub fn status(&self) -> u32 {
        self.read(STATUS)
    }

    pub fn offered(&self) -> u64 {
        self.write(0x14, 0);
        let low = self.read(0x10);
        self.write(0x14, 1);
        u64::from(self.read(0x10)) << 32 | u64::from(low)
    }

    pub fn accept(&self, features: u64) {
        self.write(0x24, 0);
        self.write(0x20, features as u32);
        self.write(0x24, 1);
        self.write(0x20, (features >> 32) as u32);
    }

    /// Resets the device and brings it up with what it offers, without the features in `without`.
    pub fn start(&mut self, without: u64) {
        self.write(STATUS, 0);
        assert_eq!(self.status(), 0);
        self.write(STATUS, 1);
        self.write(STATUS, 3);
        self.features = self.offered() & !without;
        self.accept(self.features);
        self.write(STATUS, 11);
        assert_eq!(self.status(), 11, "features refused");
        self.rings.clear();
        for index in 0.. {
            self.write(0x30, index);
            let size = self.read(0x34) as u16;
            if size == 0 {
                break;
            }
            let base = RINGS + u64::from(index) * 0x1_0000;
            self.ram
                .write_slice(&[0; 0x1_0000], GuestAddress(base))
                .unwrap();
            let ring = Ring {
                index,
                size,
                base,
                next_desc: 0,
                avail_idx: 0,
                used_idx: 0,
            };
            self.set_up(&ring);
            self.rings.push(ring);
        }
        self.write(STATUS, 15);
        assert_eq!(self.status(), 15);
    }

    pub fn set_up(&self, ring: &Ring) {
        self.write(0x30, ring.index);
        self.write(0x38, u32::from(ring.size));
        for (offset, addr) in [
            (0x80, ring.desc()),
            (0x90, ring.avail()),
            (0xa0, ring.used()),
        ] {
            self.write(offset, addr as u32);
            self.write(offset + 4, (addr >> 32) as u32);
        }
        self.write(0x44, 1);
    }

    fn put_desc(&self, table: u64, index: u16, segment: Segment, flags: u16, next: u16) {
        let at = table + u64::from(index) * 16;
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&segment.addr.to_le_bytes());
        raw[8..12].copy_from_slice(&segment.len.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        self.ram.write_slice(&raw, GuestAddress(at)).unwrap();
    }

    /// Makes a chain available, without a notification; its head.
    pub fn offer(&mut self, queue: usize, segments: &[Segment], indirect: bool) -> u16 {
        let ring = self.rings[queue].clone();
        let count = segments.len() as u16;
        let flags = |i: u16, segment: &Segment| {
            u16::from(i + 1 < count) | if segment.writable { 2 } else { 0 }
        };
        let head = ring.next_desc % ring.size;
        if indirect {
            // One indirect table per head.
            let table = ring.indirect() + u64::from(head) * 64;
            assert!(count <= 4);
            for (i, segment) in (0..).zip(segments) {
                self.put_desc(table, i, *segment, flags(i, segment), i + 1);
            }
            let whole = readable(table, u32::from(count) * 16);
            self.put_desc(ring.desc(), head, whole, 4, 0);
            self.rings[queue].next_desc += 1;
        } else {
            for (i, segment) in (0..).zip(segments) {
                let at = (head + i) % ring.size;
                let next = (at + 1) % ring.size;
                self.put_desc(ring.desc(), at, *segment, flags(i, segment), next);
            }
            self.rings[queue].next_desc = head.wrapping_add(count);
        }
        let slot = u64::from(ring.avail_idx % ring.size);
        self.ram
            .write_obj(head, GuestAddress(ring.avail() + 4 + slot * 2))
            .unwrap();
        let idx = ring.avail_idx.wrapping_add(1);
        self.rings[queue].avail_idx = idx;
        self.ram
            .store(idx, GuestAddress(ring.avail() + 2), Ordering::Release)
            .unwrap();
        head
    }

    /// Makes an indirect chain available by a descriptor of the caller's choice, which is not in use.
    pub fn offer_as(&mut self, queue: usize, head: u16, segments: &[Segment]) {
        self.rings[queue].next_desc = head;
        self.offer(queue, segments, true);
    }

    pub fn notify(&self, queue: usize) {
        self.write(0x50, queue as u32);
    }

    /// The next completed request, when there is one: its head, and the bytes written.
    pub fn poll(&mut self, queue: usize) -> Option<(u16, u32)> {
        let ring = &mut self.rings[queue];
        let idx: u16 = self
            .ram
            .load(GuestAddress(ring.used() + 2), Ordering::Acquire)
            .unwrap();
        if idx == ring.used_idx {
            return None;
        }
        let at = ring.used() + 4 + u64::from(ring.used_idx % ring.size) * 8;
        let head: u32 = self.ram.read_obj(GuestAddress(at)).unwrap();
        let len: u32 = self.ram.read_obj(GuestAddress(at + 4)).unwrap();
        ring.used_idx = ring.used_idx.wrapping_add(1);
        // Interrupt again for the next one.
        let used_event = ring.avail() + 4 + u64::from(ring.size) * 2;
        self.ram
            .store(ring.used_idx, GuestAddress(used_event), Ordering::SeqCst)
            .unwrap();
        Some((head as u16, len))
    }

    pub fn wait_used(&mut self, queue: usize) -> (u16, u32) {
        let mut used = None;
        wait_until("request completes", || {
            used = self.poll(queue);
            used.is_some()
        });
        used.unwrap()
    }

    /// Carries out one request; bytes that the device says it wrote.
    pub fn request(&mut self, queue: usize, segments: &[Segment], indirect: bool) -> u32 {
        let head = self.offer(queue, segments, indirect);
        self.notify(queue);
        let (done, len) = self.wait_used(queue);
        assert_eq!(done, head);
        len
    }

    pub fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    pub fn put(&self, addr: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub fn ack(&self) -> u32 {
        let pending = self.read(0x60);
        self.write(0x64, pending);
        pending
    }
}
