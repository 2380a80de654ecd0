//! Presence maps: files that say which blocks of a disk are here.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use block::on_demand::{About, Allocation, BLOCK, PresenceMap};
use block::{Access, BlockDevice, Content, RawImage};
use rustix::fs::{MemfdFlags, memfd_create};

use super::seeds::no_seeds;
use crate::{Memory, Target};

/// A map of which an input has changed bytes: three for each, where and what.
pub(super) const PRESENCE_MAP: Target = Target {
    name: "presence-map",
    run,
    seeds: no_seeds,
    words: &["vmm-map\n"],
    longest: 3 * 64,
    memory: Memory {
        base: 1 << 20,
        per_byte: 128,
    },
};

/// Blocks of the disk; every second one is missing.
const BLOCKS: u64 = 100;
const DISK: u64 = BLOCKS * BLOCK;

fn run(bytes: &[u8]) {
    let file = File::from(memfd_create("map", MemfdFlags::CLOEXEC).expect("a memory file"));
    file.set_len(PresenceMap::length(DISK))
        .expect("room in memory");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let opened = || -> Arc<dyn BlockDevice> {
        let image = RawImage::open(&path, Access::ReadWrite, Content::Container);
        Arc::new(image.expect("the memory file"))
    };
    let allocation = Allocation::none(DISK);
    for block in (0..BLOCKS).step_by(2) {
        allocation.add(&(block * BLOCK..(block + 1) * BLOCK));
    }
    let about = About {
        disk: DISK,
        id: [1; 16],
        note: b"/srv/old.raw".to_vec(),
    };
    let made = PresenceMap::create(opened(), about.clone(), &allocation);
    drop(made.expect("a map"));
    let mut changed = false;
    for change in bytes.chunks_exact(3) {
        let at = u64::from(u16::from_le_bytes([change[0], change[1]]));
        let at = at % PresenceMap::length(DISK);
        changed |= change[2] != 0;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("a byte of it");
        byte[0] ^= change[2];
        file.write_all_at(&byte, at).expect("room in memory");
    }
    // The header's own word for the bits is a digest: what is read at all is what was written.
    match PresenceMap::open(opened(), DISK) {
        Ok(map) => {
            assert_eq!(map.missing(), BLOCKS / 2);
            assert_eq!(map.about(), &about);
        }
        Err(block::Error::PresenceMap { .. }) => assert!(changed, "a map that is as it was made"),
        Err(error) => panic!("{error}"),
    }
}
