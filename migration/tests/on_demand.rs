//! Disks whose content stays behind when their guest goes, and is fetched from there.

mod double;

use std::time::Duration;

use double::disks::MemoryDisk;
use double::scene::{Scene, ignore};
use double::{Flaw, Guest};
use migration::disk_modes::DiskPull;
use migration::progress::{TimeoutAction, Verify};
use migration::request::ServedDisk;
use migration::source_loss::OnSourceLoss;
use migration::vm::{Behind, Served, Wish};
use migration::wire::capabilities::Capabilities;
use migration::{Outcome, PullSecret};

const BLOCK: usize = 64 << 10;

fn served() -> Served {
    Served {
        at: "127.0.0.1:7".into(),
        id: "11".repeat(16),
        secret: PullSecret([9; 16]),
        pull: DiskPull::Background,
        on_source_loss: OnSourceLoss::Pause,
    }
}

/// A guest with a disk that travels and one that stays behind, which both hold something.
fn scene() -> Scene {
    let mut scene = Scene::new(Guest::Idle);
    let disks = ["goes", "stays"].map(|id| MemoryDisk::new(id, 40 * BLOCK + 512));
    scene.vm.disks = disks.into();
    for disk in &scene.vm.disks {
        disk.guest_writes(3 * BLOCK, &[7; 2 * BLOCK]);
    }
    *scene.vm.disks[1].wish.lock().unwrap() = Wish::OnDemand;
    let request = &mut scene.options.request;
    request.disks = [
        "goes=precopy",
        "stays=on-demand,pull=off,format=raw,on-source-loss=error:2s",
    ]
    .map(|text| text.parse().unwrap())
    .into();
    request.served = vec![ServedDisk {
        disk: "stays".into(),
        by: served(),
    }];
    scene.options.io_timeout = Duration::from_secs(2);
    scene.options.peer_timeout = Duration::from_secs(2);
    scene
}

#[test]
fn nothing_of_it_goes_before_the_guest_does() {
    for verify in [Verify::Stream, Verify::Full, Verify::Off] {
        let mut scene = scene();
        scene.options.request.verify = verify;
        let [here, there] = scene.run_with(|vm, _, events| {
            // As long as the guest is here.
            for turn in 0..=255 {
                let runs = vm.with_disk(1, |of| of.guest_writes(5 * BLOCK, &[turn; 4096]));
                if !runs || events.try_recv().is_err() {
                    return;
                }
            }
        });
        let Outcome::Completed(report) = here else {
            panic!("{here:?}")
        };
        assert!(matches!(there, Outcome::Completed(_)), "{there:?}");
        let disks = report.disks.unwrap();
        assert_eq!(disks.bytes, 2 * BLOCK as u64, "{verify:?}");
        let told = &disks.on_demand[..];
        assert_eq!(told.len(), 1);
        assert_eq!(
            (
                &*told[0].id,
                &*told[0].served_at,
                told[0].disk_bytes_before_commit
            ),
            ("stays", "127.0.0.1:7", 0)
        );
        let whole: Vec<_> = disks.left.iter().map(|left| left.whole).collect();
        assert_eq!(whole, [true, false]);
        // The destination was told where it is.
        let offered = &scene.into.expected[1];
        let expected = Served {
            pull: DiskPull::Off,
            on_source_loss: "error:2s".parse().unwrap(),
            ..served()
        };
        assert_eq!(
            (offered.wish, &offered.served),
            (Wish::OnDemand, &Some(expected))
        );
        assert_eq!(scene.into.expected[0].served, None);
        assert_eq!(scene.into.disks[1].allocated(), 0);
        assert!(scene.into.disks[0].bytes() == scene.vm.disks[0].bytes());
    }
}

/// It has no backlog to bound.
#[test]
fn it_does_not_go_over_to_mirror() {
    let mut scene = scene();
    let request = &mut scene.options.request;
    request.on_timeout = TimeoutAction::Mirror;
    request.timeout = Some(migration::units::Span(Duration::ZERO));
    let [here, there] = scene.run(ignore);
    let Outcome::Completed(report) = here else {
        panic!("{here:?}")
    };
    assert!(matches!(there, Outcome::Completed(_)), "{there:?}");
    assert_eq!(
        report.disks.unwrap().on_demand[0].disk_bytes_before_commit,
        0
    );
    // A guest that has no other disk is as one that has none: its time is over.
    let mut scene = self::scene();
    scene.vm.disks.remove(0);
    let request = &mut scene.options.request;
    request.disks.remove(0);
    request.on_timeout = TimeoutAction::Mirror;
    request.timeout = Some(migration::units::Span(Duration::ZERO));
    let [here, _] = scene.run(ignore);
    let (Outcome::Failed(report) | Outcome::Cancelled(report)) = here else {
        panic!("{here:?}")
    };
    assert_eq!(report.error.unwrap().root().id, "migration.timed-out");
    scene.assert_kept();
}

#[test]
fn a_guest_that_stays_has_left_nothing() {
    let mut scene = scene();
    scene.into.flaw = Flaw::Broken;
    let [here, _] = scene.run(ignore);
    let Outcome::Failed(report) = here else {
        panic!("{here:?}")
    };
    assert_eq!(report.disks.unwrap().on_demand, []);
    scene.assert_kept();
}

#[test]
fn a_destination_that_knows_nothing_of_it_refuses_it_by_name() {
    refuses(Capabilities::ON_DEMAND, scene(), "migration.no-on-demand");
    refuses(
        Capabilities::SOURCE_LOSS,
        scene(),
        "migration.no-disk-terms",
    );
}

#[test]
fn a_destination_that_asks_one_host_alone_refuses_a_disk_that_is_at_two() {
    let scene = scene();
    scene.vm.disks[1].behind.lock().unwrap().push(Behind {
        at: "127.0.0.1:8".into(),
        id: "22".repeat(16),
        secret: PullSecret([8; 16]),
        disk: "stays".into(),
    });
    refuses(Capabilities::CHAIN, scene, "migration.no-chain");
}

/// A destination without `lacking` is not given the guest, because of `id`.
#[track_caller]
fn refuses(lacking: Capabilities, mut scene: Scene, id: &str) {
    let why = scene.refused_without(lacking);
    assert_eq!(why.id, id);
    assert!(why.message.contains("stays"), "{why}");
    scene.assert_kept();
}
