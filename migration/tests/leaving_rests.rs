//! Disks of which the rest is left when their time is over: what the destination is not told to lack is there as the guest wrote it
//! last.

mod double;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use double::Flaw;
use double::busy::{BLOCK, BLOCKS, run, scene};
use double::disks::{MemoryDisk, Operation};
use double::scene::{Scene, ignore};
use migration::disk_modes::{DiskMode, DiskPull};
use migration::observation::Side;
use migration::progress::{Event, Limits, Report, TimeoutAction, Verify};
use migration::request::ServedDisk;
use migration::source_loss::OnSourceLoss;
use migration::transport::memory::{Fault, Injection};
use migration::units::Span;
use migration::vm::Served;
use migration::wire::capabilities::Capabilities;
use migration::{Outcome, PullSecret};

/// A disk that passes do not get away, as its first half is written without end, of which the rest is left after so long.
fn leaving(streams: u8, time: Duration) -> Scene {
    let mut scene = scene(DiskMode::Precopy, streams, Duration::from_millis(400));
    let disk = MemoryDisk::new("disk0", 2 * BLOCKS * BLOCK);
    disk.guest_writes(0, &vec![7; 2 * BLOCKS * BLOCK]);
    scene.vm.disks = vec![disk];
    let request = &mut scene.options.request;
    request.timeout = Some(Span(time));
    request.on_timeout = TimeoutAction::OnDemand;
    request.served = vec![ServedDisk {
        disk: "disk0".into(),
        by: Served {
            at: "127.0.0.1:7".into(),
            id: "11".repeat(16),
            secret: PullSecret([9; 16]),
            pull: DiskPull::Background,
            on_source_loss: OnSourceLoss::default(),
        },
    }];
    scene
}

/// How many blocks the destination lacks; all others are as they are at the source.
#[track_caller]
fn lacking(scene: &Scene) -> usize {
    let (ours, theirs) = (&scene.vm.disks[0], &scene.into.disks[0]);
    let told = theirs.lacks();
    assert_eq!(told.len(), 1, "it is told once");
    let (ours, theirs) = (ours.bytes(), theirs.bytes());
    let is_lacking = |block: usize| {
        let word = told[0].get(block / 64).copied().unwrap_or(0);
        word >> (block % 64) & 1 == 1
    };
    let blocks = ours.chunks(BLOCK).zip(theirs.chunks(BLOCK)).enumerate();
    blocks
        .filter(|(block, (ours, theirs))| {
            let lacks = is_lacking(*block);
            assert!(lacks || ours == theirs, "block {block} differs");
            lacks
        })
        .count()
}

#[track_caller]
fn moved(scene: &Scene, [here, there]: &[Outcome; 2]) -> Report {
    let (Outcome::Completed(report), Outcome::Completed(_)) = (here, there) else {
        panic!("{here:?} {there:?}")
    };
    assert_eq!(scene.witness.running(), (false, true));
    assert!(report.verified);
    report.clone()
}

/// How often its user was warned that disks go over.
fn warnings(events: &migration::steering::Events) -> usize {
    let warned = events.iter().filter_map(|event| match event {
        Event::Warning { observation } => Some(observation.id),
        _ => None,
    });
    warned
        .filter(|id| id == "migration.over-to-on-demand")
        .count()
}

#[test]
fn what_the_guest_wrote_last_is_there_or_is_known_to_be_missing() {
    for (streams, time) in [(1, 3000), (3, 3000), (2, 300)] {
        let mut scene = leaving(streams, Duration::from_millis(time));
        let mut told = 0;
        let (outcomes, written) = run(&mut scene, |events| told = warnings(events));
        let report = moved(&scene, &outcomes);
        assert!(written > 0);
        assert_eq!(told, 1);
        let lacking = lacking(&scene);
        // What is not written has come, if there was time for that.
        let most = if time > 2500 { BLOCKS } else { 2 * BLOCKS - 1 };
        assert!(lacking > 0 && lacking <= most, "{lacking} of {most}");
        let disks = report.disks.unwrap();
        assert!(disks.on_demand[0].disk_bytes_before_commit > 0, "{disks:?}");
        assert!(!disks.left[0].whole, "{disks:?}");
        assert!(scene.vm.disks[0].bounds().iter().all(Option::is_none));
    }
}

#[test]
fn nothing_is_missing_of_a_disk_that_gets_away_in_time() {
    for verify in [Verify::Stream, Verify::Off] {
        let mut scene = leaving(2, Duration::from_secs(60));
        scene.options.request.verify = verify;
        scene.limit(Limits {
            bandwidth: None,
            downtime: Duration::from_secs(1),
        });
        let outcomes = scene.run(ignore);
        let [Outcome::Completed(report), Outcome::Completed(_)] = &outcomes else {
            panic!("{outcomes:?}")
        };
        assert_eq!(lacking(&scene), 0);
        let disks = report.disks.as_ref().unwrap();
        assert!(disks.on_demand.is_empty(), "{disks:?}");
        assert!(disks.left[0].whole, "{disks:?}");
    }
}

#[test]
fn a_guest_without_a_disk_that_may_be_fetched_later_is_not_moved_when_its_time_is_over() {
    let mut scene = leaving(1, Duration::from_millis(500));
    scene.options.request.served.clear();
    let (outcomes, _) = run(&mut scene, |_| {});
    let [Outcome::Failed(report), _] = &outcomes else {
        panic!("{outcomes:?}")
    };
    let why = report.error.as_ref().unwrap();
    assert_eq!(why.causes[0].id, "migration.timed-out", "{why}");
    assert_eq!(scene.witness.running(), (true, false));
}

#[test]
fn a_destination_that_cannot_note_what_is_missing_leaves_the_guest_where_it_is() {
    let mut scene = leaving(2, Duration::from_millis(500));
    scene.into.flaw = Flaw::FailsAfter(Operation::Lack, 0);
    let (outcomes, _) = run(&mut scene, |_| {});
    assert!(matches!(&outcomes[0], Outcome::Failed(_)), "{outcomes:?}");
    assert_eq!(scene.witness.running(), (true, false));
}

#[test]
fn a_destination_that_cannot_fetch_a_rest_is_not_gone_to() {
    let mut scene = leaving(2, Duration::from_secs(60));
    let why = scene.refused_without(Capabilities::DISK_RESTS);
    assert_eq!(why.id, "migration.no-disk-rests");
    assert!(why.message.contains("disk0"), "{why}");
}

#[test]
fn a_link_that_is_lost_makes_no_block_count_as_there_that_is_not() {
    // At each frame that the source sends, until there is none.
    let (next, again, over) = (AtomicU64::new(6), AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let frame = next.fetch_add(1, Ordering::Relaxed);
                    again.fetch_add(loses_its_link_at(frame, &over), Ordering::Relaxed);
                }
            });
        }
    });
    assert!(again.into_inner() > 0, "no link was made anew");
}

/// A move whose link is cut at a frame of its source; how often it was made anew. Without such a frame it is `over`.
fn loses_its_link_at(frame: u64, over: &AtomicBool) -> u64 {
    let mut scene = leaving(2, Duration::from_millis(300));
    scene.options.request.reconnect_for = Span(Duration::from_secs(10));
    scene.injections = vec![Injection {
        side: Side::Source,
        frame,
        fault: Fault::Cut,
    }];
    let (outcomes, _) = run(&mut scene, |_| {});
    if scene.struck == 0 {
        over.store(true, Ordering::Relaxed);
    }
    match &outcomes[0] {
        Outcome::Completed(report) => {
            let _ = moved(&scene, &outcomes);
            let _ = lacking(&scene);
            report.reconnects.into()
        }
        // The commit, or its answer, was lost.
        Outcome::HandoverUnknown(_) => 0,
        // The guest stood still.
        _ => {
            assert_eq!(scene.witness.running(), (true, false), "{outcomes:?}");
            0
        }
    }
}
