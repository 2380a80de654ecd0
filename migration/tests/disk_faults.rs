//! Disks that fail, or whose migration is ended, at any moment: the guest stays with them as they were, and nothing of
//! it is left at the destination.

mod double;

use double::disks::{MemoryDisk, Operation};
use double::scene::{Scene, ignore};
use double::{Flaw, Guest, Refuse};
use migration::Outcome;
use migration::progress::{Event, Limits, Phase};
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

const BLOCK: usize = 64 << 10;

/// Two disks, of which one has a last block and a last page that are short, with some content.
fn scene() -> Scene {
    let mut scene = Scene::new(Guest::Idle);
    let sizes = [3 * BLOCK, 40 * BLOCK + 1536];
    scene.vm.disks = (0..)
        .zip(sizes)
        .map(|(number, size)| MemoryDisk::new(&format!("disk{number}"), size))
        .collect();
    for disk in &scene.vm.disks {
        let end = disk.bytes().len() - 512;
        for offset in [0, 2 * BLOCK, end] {
            disk.guest_writes(offset, &[7; 512]);
        }
    }
    scene
}

/// Moves the guest, which writes to its second disk and discards there meanwhile.
fn run(scene: &mut Scene) -> [Outcome; 2] {
    scene.run_with(|vm, _, events| {
        for turn in 0.. {
            let runs = vm.with_disk(1, |disk| {
                let block = turn % 6 * BLOCK;
                match turn % 3 {
                    0 => disk.guest_discards(block..block + BLOCK),
                    _ => disk.guest_writes(block, &[turn as u8 | 1; 1024]),
                }
            });
            let ended = events.recv_timeout(Duration::from_micros(200));
            if !runs || ended == Err(RecvTimeoutError::Disconnected) {
                break;
            }
        }
    })
}

#[track_caller]
fn assert_moved(scene: &Scene) {
    assert_eq!(scene.witness.running(), (false, true));
    assert!(scene.vm.disks_marked.load(Ordering::SeqCst));
    assert_eq!(scene.into.disks.len(), scene.vm.disks.len());
    for (ours, theirs) in scene.vm.disks.iter().zip(&scene.into.disks) {
        assert!(ours.bytes() == theirs.bytes(), "a disk differs");
        assert!(theirs.is_flushed(), "the guest runs on what may be lost");
    }
}

/// Lets an operation fail the first time, the second, and so on, until it is done less often than that; how often that was.
fn fails_each_time(operation: Operation) -> usize {
    let is_at_source = matches!(
        operation,
        Operation::Map | Operation::Read | Operation::TakeChanges
    );
    for times in 0.. {
        let mut scene = scene();
        if is_at_source {
            scene.vm.disks[1].fail_after((operation, times));
        } else {
            scene.into.flaw = Flaw::FailsAfter(operation, times);
        }
        let [here, there] = run(&mut scene);
        match here {
            Outcome::Completed(_) => {
                assert!(matches!(there, Outcome::Completed(_)), "{there:?}");
                assert_moved(&scene);
                return times;
            }
            Outcome::Failed(report) => {
                let error = report.error.unwrap().to_string();
                assert!(
                    error.contains("it is broken"),
                    "{operation:?} {times}: {error}"
                );
                assert!(matches!(there, Outcome::Failed(_)), "{there:?}");
                scene.assert_kept();
            }
            other => panic!("{operation:?} {times}: {other:?}"),
        }
    }
    unreachable!("it fails for ever")
}

#[test]
fn a_source_disk_that_fails_at_any_time_leaves_the_guest_where_it_was() {
    for (operation, least) in [
        (Operation::Map, 2),
        (Operation::Read, 3),
        (Operation::TakeChanges, 2),
    ] {
        let times = fails_each_time(operation);
        assert!(times >= least, "{operation:?}: {times}");
    }
}

#[test]
fn a_destination_disk_that_fails_at_any_time_leaves_the_guest_where_it_was() {
    for (operation, least) in [
        (Operation::Write, 3),
        (Operation::WriteZeroes, 1),
        (Operation::Flush, 2),
    ] {
        let times = fails_each_time(operation);
        assert!(times >= least, "{operation:?}: {times}");
    }
}

#[test]
fn a_disk_that_holds_something_else_there_is_found_out() {
    let mut scene = scene();
    scene.into.flaw = Flaw::Damages;
    let [here, there] = run(&mut scene);
    for outcome in [here, there] {
        let Outcome::Failed(report) = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(report.error.unwrap().root().id, "migration.digest-mismatch");
    }
    scene.assert_kept();
}

#[test]
fn a_guest_whose_disks_cannot_be_marked_or_tracked_stays_unmarked_and_untracked() {
    for refuse in [
        Refuse::MarkDisks,
        Refuse::TrackDisks,
        Refuse::OfferDisks,
        Refuse::FlushDisks,
        Refuse::Pause,
        Refuse::SaveState,
        Refuse::Prepare,
        Refuse::LoadState,
        Refuse::Start,
    ] {
        let mut scene = scene();
        scene.vm.refuse = refuse;
        scene.into.refuse = refuse;
        let [here, _] = scene.run(ignore);
        assert!(matches!(here, Outcome::Failed(_)), "{refuse:?}: {here:?}");
        scene.assert_kept();
    }
}

#[test]
fn cancel_in_any_phase_leaves_the_disks_where_they_were() {
    let phases = [
        Phase::Negotiate,
        Phase::Prepare,
        Phase::Precopy,
        Phase::StopAndCopy,
        Phase::Ready,
    ];
    let mut cancelled = 0;
    for at in phases {
        for _ in 0..5 {
            let mut scene = scene();
            scene.limit(Limits {
                downtime: Duration::from_millis(20),
                bandwidth: Some(32 << 20),
            });
            let [here, _] = scene.run(|steering, events| {
                let is_there =
                    |event: &Event| matches!(event, Event::Phase { phase } if *phase == at);
                if events.iter().any(|event| is_there(&event)) {
                    steering.cancel();
                }
            });
            match here {
                Outcome::Cancelled(_) => {
                    cancelled += 1;
                    scene.assert_kept();
                }
                // The cancel came too late to be granted.
                Outcome::Completed(_) => assert_moved(&scene),
                other => panic!("{at:?}: {other:?}"),
            }
        }
    }
    assert!(cancelled >= 10, "{cancelled} were cancelled");
}
