//! Disks that are written over what is there already: what is the same is not sent, whatever else happens, and nothing of
//! what was there before is left.

mod double;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use double::disks::{MemoryDisk, Operation};
use double::scene::{Scene, ignore};
use double::{Flaw, Guest, Source};
use migration::Outcome;
use migration::disk_modes::{DiskChoice, DiskMode};
use migration::observation::Side;
use migration::progress::{DisksReport, Limits, Verify};
use migration::transport::memory::{Fault, Injection};
use migration::units::Span;

const BLOCK: usize = 64 << 10;

/// Block `number` of a disk as it was written in `turn`: no two are the same.
fn block(number: usize, turn: u64) -> Vec<u8> {
    let words = [number as u64 + 1, turn + 1].map(u64::to_le_bytes).concat();
    words.iter().copied().cycle().take(BLOCK).collect()
}

/// A disk of so many blocks and a half.
fn disk(blocks: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..=blocks).flat_map(|number| block(number, 0)).collect();
    bytes.truncate(blocks * BLOCK + BLOCK / 2);
    bytes
}

/// A guest whose disk is `ours`, of which the destination has `theirs`.
fn scene(ours: &[u8], theirs: &[u8]) -> Scene {
    let mut scene = Scene::new(Guest::Idle);
    scene.vm.disks = vec![MemoryDisk::new("disk0", ours.len())];
    for (number, bytes) in ours.chunks(4096).enumerate() {
        if bytes.iter().any(|&byte| byte != 0) {
            scene.vm.disks[0].guest_writes(number * 4096, bytes);
        }
    }
    scene.into.existing = vec![("disk0".into(), theirs.to_vec())];
    scene.options.request.streams = Some(3);
    scene
}

/// The disk has moved; what was told of it.
#[track_caller]
fn moved(scene: &Scene, [here, there]: &[Outcome; 2]) -> DisksReport {
    let (Outcome::Completed(report), Outcome::Completed(_)) = (here, there) else {
        panic!("{here:?} {there:?}")
    };
    assert_eq!(scene.witness.running(), (false, true));
    let (ours, theirs) = (&scene.vm.disks[0], &scene.into.disks[0]);
    assert!(ours.bytes() == theirs.bytes(), "the disk differs");
    assert!(theirs.is_flushed());
    assert!(theirs.allocated() <= ours.allocated());
    report.disks.clone().unwrap()
}

#[test]
fn of_a_disk_that_is_there_nothing_is_sent() {
    for verify in [Verify::Stream, Verify::Full, Verify::Off] {
        let bytes = disk(200);
        let mut scene = scene(&bytes, &bytes);
        scene.options.request.verify = verify;
        let outcomes = scene.run(ignore);
        let disks = moved(&scene, &outcomes);
        assert_eq!((disks.bytes, disks.zero_bytes), (0, 0), "{verify:?}");
        assert_eq!(disks.present_bytes as usize, bytes.len());
        // A digest of 16 bytes for each block, and a head for each 64 of them and the first few.
        let most = 201 * 16 + 5 * 48;
        assert!((1..=most).contains(&disks.digest_bytes), "{disks:?}");
        let there = outcomes[1].report();
        assert_eq!(there.verified, verify != Verify::Off);
    }
}

#[test]
fn of_an_older_copy_only_what_has_changed_is_sent() {
    let theirs = disk(400);
    let mut ours = theirs.clone();
    for number in (7..400).step_by(20) {
        // A byte is enough.
        ours[number * BLOCK + 12345] ^= 1;
    }
    let mut scene = scene(&ours, &theirs);
    let outcomes = scene.run(ignore);
    let disks = moved(&scene, &outcomes);
    assert_eq!(disks.bytes as usize, 20 * BLOCK, "{disks:?}");
    assert_eq!(disks.bytes + disks.present_bytes, ours.len() as u64);
}

#[test]
fn what_reads_as_zeroes_here_does_so_there_and_takes_no_storage() {
    let theirs = disk(200);
    let mut ours = theirs.clone();
    // Blocks, a stripe, and pages within blocks that go on as they are and of one that changes.
    ours[3 * BLOCK..5 * BLOCK].fill(0);
    ours[64 * BLOCK..96 * BLOCK].fill(0);
    ours[7 * BLOCK + 4096..8 * BLOCK].fill(0);
    let mut theirs = theirs;
    theirs[9 * BLOCK..9 * BLOCK + 8192].fill(0);
    ours[9 * BLOCK..9 * BLOCK + 8192].fill(0);
    let mut scene = scene(&ours, &theirs);
    // Storage that holds zeroes is no data either.
    scene.vm.disks[0].guest_writes(4 * BLOCK, &[0; 4096]);
    let outcomes = scene.run(ignore);
    let disks = moved(&scene, &outcomes);
    assert_eq!(disks.bytes, 4096, "{disks:?}");
    assert_eq!(
        scene.into.disks[0].allocated(),
        ours.len() - 34 * BLOCK - 60 * 1024 - 8192
    );
}

#[test]
fn of_a_disk_that_is_another_all_is_sent() {
    let ours = disk(1000);
    let theirs: Vec<u8> = ours.iter().map(|byte| byte ^ 0xff).collect();
    let mut scene = scene(&ours, &theirs);
    let outcomes = scene.run(ignore);
    let disks = moved(&scene, &outcomes);
    assert_eq!((disks.bytes as usize, disks.present_bytes), (ours.len(), 0));
    // Soon it is asked no more.
    assert!(disks.digest_bytes < 1000 * 16 / 4, "{disks:?}");
}

#[test]
fn a_guest_that_comes_back_brings_only_what_it_has_written() {
    let bytes = disk(300);
    let mut away = scene(&bytes, &vec![0; bytes.len()]);
    let outcomes = away.run(ignore);
    let disks = moved(&away, &outcomes);
    assert_eq!(disks.bytes as usize, bytes.len());
    // There it writes, and comes back to what it has left.
    let mut ours = away.into.disks[0].bytes();
    for number in [5, 250] {
        ours[number * BLOCK..(number + 1) * BLOCK].copy_from_slice(&block(number, 1));
    }
    let mut back = scene(&ours, &away.vm.disks[0].bytes());
    let outcomes = back.run(ignore);
    let disks = moved(&back, &outcomes);
    assert_eq!(disks.bytes as usize, 2 * BLOCK, "{disks:?}");
}

/// Writes all over the disk for as long as the guest is here.
fn write_all_over(vm: &Source, over: &AtomicBool) {
    let mut random = 1_u64;
    let blocks = vm.disks[0].bytes().len() / BLOCK;
    while !over.load(Ordering::SeqCst) {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let runs = vm.with_disk(0, |disk| {
            let number = (random >> 33) as usize % blocks;
            // What was there before among them, so that what is found may be gone when it is said.
            let bytes = block(number, random >> 20 & 1);
            disk.guest_writes_in_turn(number * BLOCK, &bytes, Duration::ZERO);
        });
        if !runs {
            break;
        }
        std::thread::sleep(Duration::from_micros(300));
    }
}

#[test]
fn what_the_guest_writes_meanwhile_counts_whatever_was_found() {
    for (mode, turn) in [
        (DiskMode::Precopy, 0),
        (DiskMode::Mirror, 0),
        (DiskMode::Mirror, 1),
    ] {
        let bytes = disk(150);
        let mut scene = scene(&bytes, &bytes);
        scene.options.request.disks = vec![DiskChoice::new(None, mode)];
        scene.limit(Limits {
            downtime: Duration::from_millis(500),
            bandwidth: Some((16 + 48 * turn) << 20),
        });
        let over = AtomicBool::new(false);
        let outcomes = scene.run_with(|vm, _, events| {
            std::thread::scope(|scope| {
                scope.spawn(|| write_all_over(vm, &over));
                // Long enough that all of it overlaps.
                events.iter().take(6).for_each(drop);
                if mode == DiskMode::Precopy {
                    over.store(true, Ordering::SeqCst);
                }
                events.iter().for_each(drop);
                over.store(true, Ordering::SeqCst);
            });
        });
        let disks = moved(&scene, &outcomes);
        assert!(disks.present_bytes > 0, "{mode:?}: {disks:?}");
    }
}

#[test]
fn what_cannot_be_read_of_what_was_there_is_sent() {
    for fault in [Operation::ReadBefore, Operation::MapBefore] {
        let bytes = disk(100);
        let mut scene = scene(&bytes, &bytes);
        scene.into.flaw = Flaw::FailsAfter(fault, 1);
        let outcomes = scene.run(ignore);
        let disks = moved(&scene, &outcomes);
        assert!(
            (1..=16).contains(&(disks.bytes as usize / BLOCK)),
            "{disks:?}"
        );
    }
}

#[test]
fn storage_that_fails_as_it_is_given_back_ends_it() {
    let mut bytes = disk(100);
    bytes[4096..8192].fill(0);
    let mut scene = scene(&bytes, &bytes);
    scene.into.flaw = Flaw::FailsAfter(Operation::WriteZeroes, 0);
    let outcomes = scene.run(ignore);
    assert!(matches!(&outcomes[0], Outcome::Failed(_)), "{outcomes:?}");
    scene.assert_kept();
}

/// Cut at one frame after the other, in both directions: blocks that were asked about, found, said or sent, on the old link, on
/// the new one, or on neither.
#[test]
fn a_new_link_goes_on_with_what_was_found() {
    // A destination says little.
    for (side, mode, step) in [
        (Side::Source, DiskMode::Precopy, 7),
        (Side::Destination, DiskMode::Precopy, 1),
        (Side::Source, DiskMode::Mirror, 7),
    ] {
        let (mut reconnects, mut most) = (0, 0);
        for frame in (0..).map(|turn| turn * step + 1) {
            let theirs = disk(150);
            let mut ours = theirs.clone();
            for number in (0..150).step_by(3) {
                ours[number * BLOCK] ^= 1;
            }
            let mut scene = scene(&ours, &theirs);
            scene.options.request.disks = vec![DiskChoice::new(None, mode)];
            scene.options.request.reconnect_for = Span(Duration::from_secs(20));
            scene.options.io_timeout = Duration::from_millis(500);
            scene.injections = vec![Injection {
                side,
                frame,
                fault: Fault::Cut,
            }];
            let over = AtomicBool::new(false);
            let outcomes = scene.run_with(|vm, _, events| {
                std::thread::scope(|scope| {
                    scope.spawn(|| write_all_over(vm, &over));
                    events.iter().take(4).for_each(drop);
                    over.store(true, Ordering::SeqCst);
                });
            });
            // The guest stood still, or the commit was under way.
            let report = outcomes[0].report().clone();
            if report.reconnects > 0 {
                let disks = moved(&scene, &outcomes);
                most = most.max(disks.present_bytes);
                reconnects += 1;
            } else if let Outcome::Completed(_) = outcomes[0] {
                moved(&scene, &outcomes);
            }
            if scene.struck == 0 {
                break;
            }
        }
        assert!(reconnects > 0, "{side:?}: none was made anew");
        assert!(most > 0, "{side:?}: nothing was found");
    }
}
