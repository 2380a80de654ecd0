//! What is said of a disk that travels: the format that it gets, and what becomes of its image.

mod double;

use std::time::Duration;

use double::disks::MemoryDisk;
use double::players::relay;
use double::scene::{Scene, ignore};
use double::{Flaw, Guest};
use migration::disk_modes::{AfterMove, DiskFormat};
use migration::journal::MemoryJournal;
use migration::progress::LeftImage;
use migration::steering::Steering;
use migration::transport::memory;
use migration::wire::capabilities::Capabilities;
use migration::wire::control::Message;
use migration::{Outcome, destination, source};

const SIZE: usize = 256 << 10;

/// A guest with two disks, of which `said` is said.
fn scene(said: &[&str]) -> Scene {
    let mut scene = Scene::new(Guest::Idle);
    let disks = ["one", "two"].map(|id| MemoryDisk::new(id, SIZE));
    scene.vm.disks = disks.into();
    scene.vm.disks[0].guest_writes(0, &[7; SIZE / 2]);
    let request = &mut scene.options.request;
    request.disks = said.iter().map(|text| text.parse().unwrap()).collect();
    request.streams = Some(1);
    scene.options.io_timeout = Duration::from_secs(2);
    scene.options.peer_timeout = Duration::from_secs(2);
    scene
}

fn left(outcome: &Outcome) -> Vec<LeftImage> {
    let (Outcome::Completed(report)
    | Outcome::Failed(report)
    | Outcome::Cancelled(report)
    | Outcome::HandoverUnknown(report)) = outcome
    else {
        panic!("{outcome:?}")
    };
    let disks = report.disks.clone().unwrap_or_default();
    disks.left
}

/// Moves its guest to a destination whose words arrive as `alter` makes them.
fn altered(scene: &mut Scene, alter: &(dyn Fn(Message) -> Message + Sync)) -> Outcome {
    let (connect, between) = memory::network(&[]);
    let (onwards, listen) = memory::network(&[]);
    let receiving = Steering::new();
    let Scene {
        vm,
        into,
        options,
        journal,
        ..
    } = scene;
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            let options = destination::Options::default();
            destination::receive(&listen, into, &options, &receiving, journal)
        });
        scope.spawn(|| relay(&between, &onwards, alter));
        let journal = MemoryJournal::default();
        let here = source::migrate(vm, &connect, options, &Steering::new(), &journal);
        receiving.cancel();
        there.join().unwrap();
        here
    })
}

#[test]
fn each_disk_gets_what_is_said_of_it_and_of_its_image_is_told_that_it_may_go() {
    let mut scene = scene(&[
        "precopy,format=raw",
        "two=precopy,format=qcow2,after=delete",
    ]);
    let [here, there] = scene.run(ignore);
    assert!(matches!(there, Outcome::Completed(_)), "{there:?}");
    let formats: Vec<_> = scene.into.expected.iter().map(|disk| disk.format).collect();
    assert_eq!(formats, [Some(DiskFormat::Raw), Some(DiskFormat::Qcow2)]);
    let image = |id: &str, after| LeftImage {
        id: id.into(),
        path: None,
        after,
        whole: true,
        removed: false,
    };
    let expected = [
        image("one", AfterMove::Keep),
        image("two", AfterMove::Delete),
    ];
    assert_eq!(left(&here), expected);
}

#[test]
fn nothing_is_left_of_a_disk_whose_guest_stays() {
    let mut scene = scene(&["precopy,after=delete"]);
    scene.into.flaw = Flaw::Broken;
    let [here, _] = scene.run(ignore);
    assert!(matches!(here, Outcome::Failed(_)), "{here:?}");
    assert_eq!(left(&here), []);
    scene.assert_kept();
}

#[test]
fn a_disk_is_whole_only_if_its_destination_says_so() {
    let mut scene = scene(&["precopy,after=delete"]);
    let here = altered(&mut scene, &|message| match message {
        Message::Ready(mut ready) => {
            assert_eq!(ready.whole_disks, ["one", "two"]);
            ready.whole_disks = vec!["two".into(), "three".into()];
            Message::Ready(ready)
        }
        other => other,
    });
    assert!(matches!(here, Outcome::Completed(_)), "{here:?}");
    let whole: Vec<_> = left(&here).into_iter().map(|left| left.whole).collect();
    assert_eq!(whole, [false, true]);
}

/// It takes disks, and knows nothing more of them.
#[test]
fn a_destination_that_knows_no_such_options_refuses_them_by_name() {
    let older = |message| match message {
        Message::Welcome(mut welcome) => {
            let told = welcome.capabilities.unwrap();
            welcome.capabilities = Some(told & !Capabilities::DISK_TERMS.bits());
            Message::Welcome(welcome)
        }
        other => other,
    };
    for (said, named) in [
        ("two=precopy,format=qcow2", "format="),
        ("two=precopy,after=delete", "after=delete"),
    ] {
        let mut scene = scene(&["precopy", said]);
        let Outcome::Failed(report) = altered(&mut scene, &older) else {
            panic!("{said} is not refused")
        };
        let why = report.error.unwrap();
        let why = why.root();
        assert_eq!(why.id, "migration.no-disk-terms");
        assert!(
            why.message.contains(named) && why.message.contains("disk two"),
            "{why}"
        );
        scene.assert_kept();
    }
    // Nothing is said that it would have to know.
    let mut scene = scene(&["precopy,after=keep"]);
    let here = altered(&mut scene, &older);
    assert!(matches!(here, Outcome::Completed(_)), "{here:?}");
}
