//! Where virtio devices are looked for.

use crate::options::Options;
use crate::virtio;

/// Where devices may be, each place once.
pub struct Places {
    bases: [u64; MAX_PLACES],
    count: usize,
}

const MAX_PLACES: usize = 80;

impl Places {
    /// Those that the command line names, ours and those of QEMU's microvm.
    pub fn of(options: &Options) -> Self {
        let named = options.windows[..options.window_count].iter().copied();
        let ours = (0..17u64).map(|i| 0xd000_0000 + i * 0x1000);
        let qemu = (0..24u64).map(|i| 0xfeb0_0000 + i * 0x200);
        let mut places = Self {
            bases: [0; MAX_PLACES],
            count: 0,
        };
        for base in named.chain(ours).chain(qemu) {
            if !places.all().contains(&base) && places.count < MAX_PLACES {
                places.bases[places.count] = base;
                places.count += 1;
            }
        }
        places
    }

    pub fn all(&self) -> &[u64] {
        &self.bases[..self.count]
    }

    /// Those where a disk is, 64 at most.
    pub fn disks(&self) -> Self {
        let mut disks = Self {
            bases: [0; MAX_PLACES],
            count: 0,
        };
        for &base in self.all() {
            if disks.count < 64 && virtio::probe(base) == Some(virtio::BLOCK) {
                disks.bases[disks.count] = base;
                disks.count += 1;
            }
        }
        disks
    }

    /// Forgets the place `base`, whose device is somebody's.
    pub fn take(&mut self, base: u64) {
        let (kept, count) = (self.bases, self.count);
        self.count = 0;
        for &base in kept[..count].iter().filter(|&&kept| kept != base) {
            self.bases[self.count] = base;
            self.count += 1;
        }
    }
}
