//! A guest that writes its disk without end, faster than the link carries.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use migration::Outcome;
use migration::disk_modes::{DiskChoice, DiskMode};
use migration::progress::Limits;
use migration::steering::Events;

use super::disks::MemoryDisk;
use super::scene::Scene;
use super::{Guest, Source};

pub const BLOCK: usize = 64 << 10;
pub const BLOCKS: usize = 256;

/// A full disk of a guest that may be down for `downtime`, over a link of 16 MiB/s.
pub fn scene(mode: DiskMode, streams: u8, downtime: Duration) -> Scene {
    let mut scene = Scene::new(Guest::Idle);
    scene.vm.disks = vec![MemoryDisk::new("disk0", BLOCKS * BLOCK)];
    scene.vm.disks[0].guest_writes(0, &vec![7; BLOCKS * BLOCK]);
    scene.options.request.disks = vec![DiskChoice::new(None, mode)];
    scene.options.request.streams = Some(streams);
    scene.limit(Limits {
        downtime,
        bandwidth: Some(16 << 20),
    });
    scene
}

/// Writes all over the disk as fast as it is let, until the guest has gone or `over` says so; how many blocks.
fn writes_on(vm: &Source, over: &AtomicBool) -> u64 {
    let mut written = 0_u64;
    let mut random = 1_u64;
    while !over.load(Ordering::SeqCst) {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let offset = (random >> 33) as usize % BLOCKS * BLOCK;
        let bytes: Vec<u8> = random.to_le_bytes().repeat(BLOCK / 8);
        let mut was_let_in = false;
        let runs = vm.with_disk(0, |disk| {
            was_let_in = disk.guest_writes_in_turn(offset, &bytes, Duration::ZERO);
        });
        if !runs {
            break;
        }
        match was_let_in {
            true => written += 1,
            false => std::thread::yield_now(),
        }
    }
    written
}

/// A guest that never stops to write, while `watch` sees the events.
pub fn run(scene: &mut Scene, watch: impl FnOnce(&Events) + Send) -> ([Outcome; 2], u64) {
    let mut written = 0;
    let over = AtomicBool::new(false);
    let outcomes = scene.run_with(|vm, _, events| {
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| writes_on(vm, &over));
            watch(&events);
            // Until the migration has ended, whatever came of it.
            events.iter().for_each(drop);
            over.store(true, Ordering::SeqCst);
            written = writing.join().unwrap();
        });
    });
    (outcomes, written)
}
