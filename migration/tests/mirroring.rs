//! Mirrored disks: a guest that writes faster than the link carries waits for it, and moves; whatever becomes of the link, what
//! it wrote last is where it runs.

mod double;

use std::sync::mpsc::TryRecvError;
use std::time::Duration;

use double::busy::{BLOCK, BLOCKS, run, scene};
use double::scene::Scene;
use migration::Outcome;
use migration::disk_bytes::ClassBytes;
use migration::disk_modes::DiskMode;
use migration::progress::{Event, Limits, Report, TimeoutAction};
use migration::units::Span;

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(60);

#[track_caller]
fn moved(scene: &Scene, [here, there]: &[Outcome; 2]) -> Report {
    let (Outcome::Completed(report), Outcome::Completed(_)) = (here, there) else {
        panic!("{here:?} {there:?}")
    };
    assert_eq!(scene.witness.running(), (false, true));
    let (ours, theirs) = (&scene.vm.disks[0], &scene.into.disks[0]);
    assert!(ours.bytes() == theirs.bytes(), "the disk differs");
    assert!(theirs.is_flushed());
    assert!(report.verified);
    report.clone()
}

#[test]
fn a_guest_that_writes_faster_than_the_link_carries_moves_with_a_mirrored_disk() {
    for streams in [1, 3] {
        let mut scene = scene(DiskMode::Mirror, streams, Duration::from_millis(400));
        let (outcomes, written) = run(&mut scene, |_| {});
        let report = moved(&scene, &outcomes);
        assert!(written > 16, "the guest was not let in");
        let disks = report.disks.unwrap();
        assert!(disks.mirrored_bytes > 0, "{disks:?}");
        let [of_one] = &disks.by_disk[..] else {
            panic!("{disks:?}")
        };
        let ClassBytes {
            write, background, ..
        } = of_one.class_bytes;
        assert_eq!(of_one.id, "disk0");
        assert_eq!(write + background, disks.bytes, "{disks:?}");
        // All blocks hold data, so each travels as a whole.
        assert_eq!(write, disks.mirrored_bytes, "{disks:?}");
        assert!(background > 0, "{disks:?}");
        // What was left when it was stopped is a part of what it may be down for.
        let bounds = scene.vm.disks[0].bounds();
        let most = bounds.iter().flatten().max().unwrap();
        assert!((1..=2 << 20).contains(most), "{bounds:?}");
    }
}

#[test]
fn a_guest_is_ahead_of_the_link_by_no_more_than_its_user_says() {
    for said in [0, 64 << 10, 1 << 40] {
        let mut scene = scene(DiskMode::Mirror, 2, Duration::from_millis(400));
        scene.options.request.disks[0].backlog = Some(said);
        let (outcomes, written) = run(&mut scene, |_| {});
        let _ = moved(&scene, &outcomes);
        assert!(written > 0, "the guest was not let in");
        // By what the downtime asks for where that is less.
        let bounds = scene.vm.disks[0].bounds();
        let most = bounds.iter().flatten().max().unwrap();
        assert!(*most <= said.min(2 << 20), "{said}: {bounds:?}");
        assert_eq!(*most == 0, said == 0, "{said}: {bounds:?}");
    }
}

#[test]
fn a_disk_that_passes_do_not_get_away_goes_over_to_mirror_when_its_time_is_over() {
    let mut scene = scene(DiskMode::Precopy, 2, Duration::from_millis(400));
    scene.options.request.timeout = Some(Span(Duration::from_secs(3)));
    scene.options.request.on_timeout = TimeoutAction::Mirror;
    let mut told = 0;
    let (outcomes, _) = run(&mut scene, |events| {
        let warned = events.iter().filter_map(|event| match event {
            Event::Warning { observation } => Some(observation.id),
            _ => None,
        });
        told = warned.filter(|id| id == "migration.over-to-mirror").count();
    });
    let report = moved(&scene, &outcomes);
    assert_eq!(told, 1);
    assert!(report.iterations.unwrap().len() > 1);
    assert!(report.disks.unwrap().mirrored_bytes > 0);
    let bounds = scene.vm.disks[0].bounds();
    assert!(bounds.iter().any(Option::is_some), "{bounds:?}");
}

#[test]
fn a_disk_goes_over_to_mirror_within_the_pass_in_which_its_time_is_over() {
    let mut scene = scene(DiskMode::Precopy, 2, Duration::from_millis(400));
    scene.limit(Limits {
        downtime: Duration::from_millis(400),
        // Its first pass takes two seconds.
        bandwidth: Some(8 << 20),
    });
    scene.options.request.timeout = Some(Span(Duration::from_millis(500)));
    scene.options.request.on_timeout = TimeoutAction::Mirror;
    let mut told = Vec::new();
    let (outcomes, _) = run(&mut scene, |events| {
        let named = events.iter().filter_map(|event| match event {
            Event::Warning { observation } => Some(observation.id),
            Event::Iteration(pass) => Some(format!("pass {}", pass.n)),
            _ => None,
        });
        told = named
            .filter(|id| id.starts_with("pass") || id == "migration.over-to-mirror")
            .collect();
    });
    let _ = moved(&scene, &outcomes);
    assert_eq!(
        told[..2],
        ["migration.over-to-mirror", "pass 1"],
        "{told:?}"
    );
    let over = |id: &&String| *id == "migration.over-to-mirror";
    assert_eq!(told.iter().filter(over).count(), 1);
    assert!(scene.vm.disks[0].bounds().iter().any(Option::is_some));
}

#[test]
fn a_cancel_lets_a_guest_go_on_that_waits_for_the_link() {
    let mut scene = scene(DiskMode::Mirror, 2, Duration::from_millis(100));
    scene.limit(Limits {
        downtime: Duration::from_millis(100),
        // So slow that it waits nearly all of the time.
        bandwidth: Some(256 << 10),
    });
    let outcomes = scene.run_with(|vm, steering, events| {
        let disk = &vm.disks[0];
        let block = vec![9; BLOCK];
        // Until one is not let in at once.
        while disk.guest_writes_in_turn(0, &block, Duration::ZERO) {
            let ended = events.iter().next().is_none();
            assert!(!ended, "it ended before");
        }
        steering.cancel();
        assert!(
            disk.guest_writes_in_turn(BLOCK, &block, LONG),
            "it waits on"
        );
    });
    assert!(
        matches!(&outcomes[0], Outcome::Cancelled(_)),
        "{outcomes:?}"
    );
    scene.assert_kept();
    assert_eq!(scene.vm.disks[0].bounds().last(), Some(&None));
}

/// It waits for as long as a peer may take, and no longer.
#[test]
fn a_link_that_stands_still_does_not_hold_the_guest_up_for_ever() {
    let mut scene = scene(DiskMode::Mirror, 2, Duration::from_millis(100));
    scene.options.io_timeout = Duration::from_millis(700);
    scene.limit(Limits {
        downtime: Duration::from_millis(100),
        bandwidth: Some(1),
    });
    let outcomes = scene.run_with(|vm, steering, events| {
        let disk = &vm.disks[0];
        let block = vec![9; BLOCK];
        // What was let in before the link stood still may have left; so it writes on, until it has had to wait.
        for written in 0.. {
            let offset = written % BLOCKS * BLOCK;
            assert!(
                disk.guest_writes_in_turn(offset, &block, LONG),
                "it waits on"
            );
            match events.try_recv() {
                Ok(Event::Warning { observation })
                    if observation.id == "migration.mirror-stalled" =>
                {
                    break;
                }
                Ok(_) | Err(TryRecvError::Empty) => std::thread::yield_now(),
                Err(TryRecvError::Disconnected) => panic!("it ended before"),
            }
        }
        steering.cancel();
    });
    assert!(
        matches!(&outcomes[0], Outcome::Cancelled(_)),
        "{outcomes:?}"
    );
    scene.assert_kept();
}
