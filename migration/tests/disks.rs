//! Disks that travel with their guest: what arrives is what the guest wrote last, and nothing of it that is not data
//! goes over the wire or takes storage.

mod double;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use double::disks::MemoryDisk;
use double::players::serve;
use double::scene::{Scene, ignore};
use double::{Flaw, Guest};
use migration::journal::MemoryJournal;
use migration::progress::{Event, Limits, Verify};
use migration::steering::Steering;
use migration::transport::memory;
use migration::vm::Wish;
use migration::wire::control::Message;
use migration::{Outcome, source};
use proptest::prelude::*;

const BLOCK: usize = 64 << 10;

fn scene(sizes: &[usize]) -> Scene {
    let mut scene = Scene::new(Guest::Idle);
    let disks = sizes.iter().enumerate();
    scene.vm.disks = disks
        .map(|(number, &size)| MemoryDisk::new(&format!("disk{number}"), size))
        .collect();
    scene
}

/// A sector that says where it was written, and in which turn.
fn sector(disk: usize, offset: usize, turn: u64) -> Vec<u8> {
    let words = [disk as u64 + 1, offset as u64 + 1, turn + 1];
    let words = words.map(u64::to_le_bytes).concat();
    words.iter().copied().cycle().take(512).collect()
}

fn assert_moved(scene: &Scene, [here, there]: &[Outcome; 2]) {
    for outcome in [here, there] {
        assert!(matches!(outcome, Outcome::Completed(_)), "{outcome:?}");
    }
    assert_eq!(scene.witness.running(), (false, true));
    assert_eq!(scene.into.disks.len(), scene.vm.disks.len());
    for (ours, theirs) in scene.vm.disks.iter().zip(&scene.into.disks) {
        assert!(ours.bytes() == theirs.bytes(), "a disk differs");
        assert!(theirs.is_flushed(), "the guest runs on what may be lost");
    }
}

#[test]
fn what_was_written_before_arrives_and_what_holds_nothing_does_not_travel() {
    for verify in [Verify::Stream, Verify::Full, Verify::Off] {
        // The last page, and the last block, are short.
        let mut scene = scene(&[40 * BLOCK + 1536, 512, 3 * BLOCK]);
        scene.options.request.verify = verify;
        let writes = [
            (0, 0),
            (0, BLOCK - 512),
            (0, BLOCK),
            (0, 33 * BLOCK + 4096),
            (0, 40 * BLOCK + 1024),
            (1, 0),
        ];
        for (disk, offset) in writes {
            scene.vm.disks[disk].guest_writes(offset, &sector(disk, offset, 0));
        }
        // Storage that holds zeroes is no data either.
        scene.vm.disks[0].guest_writes(5 * BLOCK, &[0; 2 * BLOCK]);
        let outcomes = scene.run(ignore);
        assert_moved(&scene, &outcomes);
        let [Outcome::Completed(report), _] = &outcomes else {
            panic!()
        };
        assert_eq!(report.verified, verify != Verify::Off);
        let sent: u64 = report
            .iterations
            .iter()
            .flatten()
            .filter_map(|i| i.disk_bytes)
            .sum();
        // A page for each write: 5 of whole pages, one of three sectors, one of one sector.
        assert_eq!(sent, 4 * 4096 + 1536 + 512, "{verify:?}");
        let stored: usize = scene.into.disks.iter().map(|disk| disk.allocated()).sum();
        assert_eq!(stored as u64, sent);
    }
}

#[test]
fn what_is_written_meanwhile_arrives_as_it_was_written_last() {
    for streams in [1, 4] {
        let mut scene = scene(&[64 * BLOCK, 16 * BLOCK]);
        scene.options.request.streams = Some(streams);
        scene.limit(Limits {
            downtime: Duration::from_millis(50),
            bandwidth: Some(16 << 20),
        });
        for disk in [0, 1] {
            for block in 0..16 {
                scene.vm.disks[disk].guest_writes(block * BLOCK, &vec![7; BLOCK]);
            }
        }
        let outcomes = scene.run_with(|vm, _, events| {
            let mut random = 1_u64;
            for turn in 0.. {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let disk = (turn % 2) as usize;
                let size = vm.disks[disk].bytes().len();
                let offset = (random >> 33) as usize % (size / 512) * 512;
                let runs = vm.with_disk(disk, |of| match turn % 7 {
                    0 => of.guest_discards(offset..(offset + 8192).min(size)),
                    _ => of.guest_writes(offset, &sector(disk, offset, turn)),
                });
                let ended = events.recv_timeout(Duration::from_millis(8));
                if !runs || ended == Err(RecvTimeoutError::Disconnected) {
                    break;
                }
            }
        });
        assert_moved(&scene, &outcomes);
        let [Outcome::Completed(report), _] = &outcomes else {
            panic!()
        };
        let passes = report.iterations.iter().flatten();
        let sent: Vec<_> = passes.filter_map(|pass| pass.disk_bytes).collect();
        assert!(
            sent.len() > 1 && sent[1] > 0,
            "nothing was sent again: {sent:?}"
        );
    }
}

#[test]
fn a_disk_that_fails_on_either_side_leaves_the_guest_where_it_was() {
    for at_source in [true, false] {
        let mut scene = scene(&[8 * BLOCK]);
        scene.vm.disks[0].guest_writes(0, &[1; 8 * BLOCK]);
        if at_source {
            scene.vm.disks[0].broken.store(true, Ordering::SeqCst);
        } else {
            scene.into.flaw = Flaw::Broken;
        }
        let [here, there] = scene.run(ignore);
        for outcome in [here, there] {
            let Outcome::Failed(report) = outcome else {
                panic!("{outcome:?}")
            };
            let error = report.error.unwrap().to_string();
            assert!(error.contains("it is broken"), "{error}");
        }
        scene.assert_kept();
    }
}

#[test]
fn a_destination_that_takes_no_disks_is_not_asked() {
    let scene = scene(&[BLOCK]);
    let (connect, listen) = memory::network(&[]);
    let here = std::thread::scope(|scope| {
        scope.spawn(|| {
            serve(&listen, 3, &|message| {
                assert!(!matches!(message, Message::Negotiate(_)));
                Some(Vec::new())
            });
        });
        let (steering, journal) = (Steering::new(), MemoryJournal::default());
        source::migrate(&scene.vm, &connect, &scene.options, &steering, &journal)
    });
    let Outcome::Failed(report) = here else {
        panic!("{here:?}")
    };
    assert_eq!(report.error.unwrap().causes[0].id, "migration.no-volumes");
    scene.assert_kept();
}

/// The destination chooses, of those that need not travel; all others do, also where it reaches them.
#[test]
fn a_disk_that_may_travel_does_where_the_destination_does_not_reach_it() {
    let mut scene = scene(&[4 * BLOCK, 4 * BLOCK, 4 * BLOCK]);
    for disk in &scene.vm.disks {
        disk.guest_writes(BLOCK, &[9; BLOCK]);
    }
    for disk in [0, 1] {
        *scene.vm.disks[disk].wish.lock().unwrap() = Wish::MayTravel;
    }
    scene.into.reaches = vec!["disk0".into(), "disk2".into()];
    let outcomes = scene.run(ignore);
    let [Outcome::Completed(report), Outcome::Completed(_)] = &outcomes else {
        panic!("{outcomes:?}")
    };
    let travelling = &report.disks.as_ref().unwrap().travelling;
    let told: Vec<_> = travelling
        .iter()
        .map(|disk| (&*disk.id, disk.why.is_some()))
        .collect();
    assert_eq!(told, [("disk1", true), ("disk2", false)]);
    for (ours, theirs) in [(1, 0), (2, 1)] {
        assert!(scene.vm.disks[ours].bytes() == scene.into.disks[theirs].bytes());
    }
    assert_eq!(*scene.vm.agreed_disks.lock().unwrap(), ["disk1", "disk2"]);
}

#[test]
fn passes_tell_what_they_sent_of_disks() {
    let mut scene = scene(&[4 * BLOCK]);
    scene.vm.disks[0].guest_writes(BLOCK, &[1; BLOCK]);
    let mut told = 0;
    scene.run(|_, events| {
        let passes = events.iter().filter_map(|event| match event {
            Event::Iteration(pass) => pass.disk_bytes,
            _ => None,
        });
        told = passes.sum();
    });
    assert_eq!(told, BLOCK as u64);
}

/// A block that is written again and again travels when passes are short or the guest stands still, not in every pass.
#[test]
fn blocks_that_change_often_are_put_off() {
    const HOT: usize = 3;
    let mut scene = scene(&[64 * BLOCK]);
    scene.options.request.streams = Some(1);
    scene.limit(Limits {
        downtime: Duration::from_millis(50),
        bandwidth: Some(32 << 20),
    });
    scene.vm.disks[0].guest_writes(0, &vec![7; 64 * BLOCK]);
    let outcomes = scene.run_with(|vm, _, events| {
        for turn in 0.. {
            let block = 60 + turn as usize % HOT;
            let offset = block * BLOCK;
            let runs = vm.with_disk(0, |disk| {
                disk.guest_writes(offset, &sector(0, offset, turn));
            });
            let ended = events.recv_timeout(Duration::from_micros(300));
            if !runs || ended == Err(RecvTimeoutError::Disconnected) {
                break;
            }
        }
    });
    assert_moved(&scene, &outcomes);
    let [Outcome::Completed(report), _] = &outcomes else {
        panic!()
    };
    let disks = report.disks.as_ref().unwrap();
    assert!(disks.deferred_blocks > 0, "{disks:?}");
    // Not in the first pass, which took a hundred times as long as they need to be written again.
    let first = report.iterations.as_ref().unwrap()[0].disk_bytes.unwrap();
    assert!(first < 64 * BLOCK as u64, "{disks:?}");
}

#[derive(Debug, Clone)]
enum Step {
    Write(usize, usize, usize),
    Discard(usize, usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = (0..2_usize, 0..256_usize, 1..200_usize);
    let step = prop_oneof![
        3 => place.clone().prop_map(|(d, at, len)| Step::Write(d, at, len)),
        1 => place.prop_map(|(d, at, len)| Step::Discard(d, at, len)),
    ];
    proptest::collection::vec(step, 0..40)
}

fn carry_out(disks: &[Arc<MemoryDisk>], steps: &[Step], turn: u64) {
    for (number, step) in steps.iter().enumerate() {
        let (Step::Write(disk, at, len) | Step::Discard(disk, at, len)) = *step;
        let end = (at + len).min(disks[disk].bytes().len() / 512);
        for sectors in at.min(end)..end {
            let offset = sectors * 512;
            match step {
                Step::Write(..) => {
                    let bytes = sector(disk, offset, turn + number as u64);
                    disks[disk].guest_writes(offset, &bytes);
                }
                Step::Discard(..) => disks[disk].guest_discards(offset..offset + 512),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_was_written_before_and_meanwhile_arrives(
        before in steps(),
        meanwhile in steps(),
        streams in 1..4_u8,
    ) {
        let mut scene = scene(&[2 * BLOCK + 512, 256 * 512]);
        scene.options.request.streams = Some(streams);
        carry_out(&scene.vm.disks, &before, 0);
        let outcomes = scene.run_with(|vm, _, _| {
            vm.with_disk(0, |_| carry_out(&vm.disks, &meanwhile, 1000));
        });
        assert_moved(&scene, &outcomes);
    }
}
