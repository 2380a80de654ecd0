//! A thread that plays the guest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use migration::observation::Side;
use migration::vm::RamRegion;
use migration::{GuestRam, PAGE_SIZE};
use vm_memory::{Bytes, GuestAddress};

use super::memory::{By, Marks};
use super::witness::Witness;

/// How the guest of a double writes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    Idle,
    /// Writes to pages of the first `pages` of each region, with a pause after each write.
    Writes {
        pages: u64,
        pause: Duration,
    },
}

/// The guest's memory, and whether it runs.
pub(super) struct Inner {
    pub layout: Vec<RamRegion>,
    pub ram: GuestRam,
    pub by_vcpus: Marks,
    pub by_devices: Marks,
    /// Held while the guest writes: pausing takes it away.
    pub runs: Mutex<bool>,
    pub end: AtomicBool,
    pub witness: Arc<Witness>,
}

impl Inner {
    /// Of a guest that runs.
    pub fn new(layout: Vec<RamRegion>, ram: GuestRam, witness: &Arc<Witness>) -> Arc<Self> {
        witness.set(Side::Source, true);
        Arc::new(Self {
            by_vcpus: Marks::none(&layout),
            by_devices: Marks::none(&layout),
            layout,
            ram,
            runs: Mutex::new(true),
            end: AtomicBool::new(false),
            witness: witness.clone(),
        })
    }

    /// Writes as `guest` does, on a thread of its own, while it runs.
    pub fn start(self: &Arc<Self>, guest: Guest) -> Option<JoinHandle<()>> {
        match guest {
            Guest::Idle => None,
            Guest::Writes { pages, pause } => {
                let inner = self.clone();
                Some(std::thread::spawn(move || {
                    let mut random = 0x9e37_79b9_7f4a_7c15u64;
                    while !inner.end.load(Ordering::Relaxed) {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        {
                            let runs = inner.runs.lock().unwrap();
                            if *runs {
                                inner.write(random, pages);
                            }
                        }
                        std::thread::sleep(pause);
                    }
                }))
            }
        }
    }

    pub fn write(&self, random: u64, pages: u64) {
        let index = (random >> 60) as usize % self.layout.len();
        let region = self.layout[index];
        let page = random % pages.min(region.len / PAGE_SIZE);
        let at = region.gpa + page * PAGE_SIZE + (random >> 20) % 500 * 8;
        // Some writes make a page all zeroes again.
        if random.is_multiple_of(7) {
            let start = GuestAddress(region.gpa + page * PAGE_SIZE);
            self.ram
                .write_slice(&[0; PAGE_SIZE as usize], start)
                .unwrap();
        } else {
            self.ram.write_obj(random, GuestAddress(at)).unwrap();
        }
        let by = if random.is_multiple_of(5) {
            By::Device
        } else {
            By::Vcpu
        };
        self.mark(by, index, page);
    }

    pub fn mark(&self, by: By, region: usize, page: u64) {
        match by {
            By::Vcpu => self.by_vcpus.set(region, page),
            By::Device => self.by_devices.set(region, page),
        }
    }
}
