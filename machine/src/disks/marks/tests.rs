//! What marks say of images, in every state of what is recorded.

use std::path::Path;

use block::{Access, Content};
use migration::journal::{MemoryJournal, SourceRecord};
use migration::observation::Side;

use super::*;

fn image(path: &Path) -> RawImage {
    std::fs::write(path, [0; 512]).unwrap();
    RawImage::open(path, Access::ReadWrite, Content::Raw).unwrap()
}

#[test]
fn what_became_of_a_guest_that_left_is_told_by_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(&dir.path().join("image"));
    let journal = MemoryJournal::default();
    let id = MigrationId([7; 16]);
    assert_eq!(whereabouts(&image, &journal), Whereabouts::Here);
    let mark = Mark::new(id, journal.identity(), Some("there:1"));
    if !mark.set_leaving(&image).unwrap() {
        println!("skipped: {} has no marks", dir.path().display());
        return;
    }
    assert!(
        matches!(whereabouts(&image, &journal), Whereabouts::Unknown(why) if why.contains("no record"))
    );
    journal.reserve(id, Side::Source).unwrap();
    for (handover, is) in [
        (Handover::Begun, 0),
        (Handover::CommitSent, 1),
        (Handover::Gone, 2),
        (Handover::Kept, 0),
    ] {
        let record = SourceRecord {
            handover,
            destination: "there:1".into(),
            host: None,
            overlay: None,
        };
        journal.record(id, &record).unwrap();
        let found = match whereabouts(&image, &journal) {
            Whereabouts::Here => 0,
            Whereabouts::Unknown(_) => 1,
            Whereabouts::Gone(why) => {
                assert!(why.contains("there:1"), "{why}");
                2
            }
        };
        assert_eq!(found, is, "{handover:?}");
    }
    remove(&image).unwrap();
    assert_eq!(whereabouts(&image, &journal), Whereabouts::Here);
}

#[test]
fn an_image_is_abandoned_only_if_its_guest_can_not_have_been_here() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(&dir.path().join("image"));
    let journal = MemoryJournal::default();
    let [given_up, committed, taken_back] = [1, 2, 4].map(|n| MigrationId([n; 16]));
    assert!(!is_abandoned(&image, &journal));
    for id in [given_up, committed, taken_back] {
        journal.reserve(id, Side::Destination).unwrap();
    }
    journal.decide(given_up, Decision::GiveUp).unwrap();
    journal.decide(committed, Decision::Commit).unwrap();
    journal.decide(taken_back, Decision::Commit).unwrap();
    journal.answer(taken_back, Resolution::NeverRan).unwrap();
    let another = HostId([9; 16]);
    for (id, identity, abandoned, here) in [
        (given_up, journal.identity(), true, false),
        (MigrationId([3; 16]), journal.identity(), true, false),
        (taken_back, journal.identity(), true, false),
        (committed, journal.identity(), false, true),
        (given_up, another, false, false),
        (committed, another, false, false),
    ] {
        let mark = Mark::new(id, identity, None);
        if !mark.set_arriving(&image).unwrap() {
            println!("skipped: {} has no marks", dir.path().display());
            return;
        }
        assert_eq!(is_abandoned(&image, &journal), abandoned, "{id}");
        let found = whereabouts(&image, &journal);
        assert_eq!(found == Whereabouts::Here, here, "{id}");
    }
    image.set_mark(ARRIVING, b"{").unwrap();
    assert!(!is_abandoned(&image, &journal));
    assert!(matches!(
        whereabouts(&image, &journal),
        Whereabouts::Unknown(_)
    ));
}

#[test]
fn an_image_that_holds_a_part_of_its_disk_is_taken_for_neither_the_disk_nor_rubbish() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(&dir.path().join("image"));
    let journal = MemoryJournal::default();
    let id = MigrationId([7; 16]);
    let mark = Mark::of_disk_on_demand(id, journal.identity(), "/new");
    if !mark.set_arriving(&image).unwrap() {
        println!("skipped: {} has no marks", dir.path().display());
        return;
    }
    assert!(is_in_part(&image));
    let recorded = |handover| {
        let record = SourceRecord {
            handover,
            destination: "/new".into(),
            host: None,
            overlay: None,
        };
        journal.record(id, &record).unwrap();
    };
    recorded(Handover::Begun);
    assert!(is_abandoned(&image, &journal));
    recorded(Handover::Gone);
    assert!(!is_abandoned(&image, &journal));
    assert!(matches!(
        whereabouts(&image, &journal),
        Whereabouts::Unknown(why) if why.contains("moved from")
    ));
    remove(&image).unwrap();
    assert!(!is_in_part(&image));
}

/// Of a guest that came before the content of its disk.
#[test]
fn an_image_whose_guest_came_first_is_in_part_from_the_commit_on() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(&dir.path().join("image"));
    let journal = MemoryJournal::default();
    let id = MigrationId([7; 16]);
    let mark = Mark::of_guest_on_demand(id, journal.identity(), None);
    if !mark.set_arriving(&image).unwrap() {
        println!("skipped: {} has no marks", dir.path().display());
        return;
    }
    journal.reserve(id, Side::Destination).unwrap();
    assert!(is_in_part(&image) && mark.is_arriving_on(&image));
    assert!(is_abandoned(&image, &journal) && !came_on_demand(&image, id, &journal));
    journal.decide(id, Decision::Commit).unwrap();
    assert!(!is_abandoned(&image, &journal) && came_on_demand(&image, id, &journal));
    assert!(!came_on_demand(&image, MigrationId([8; 16]), &journal));
    assert!(why_needed(&image, &journal).is_some());
    assert_ne!(whereabouts(&image, &journal), Whereabouts::Here);
    // It could not be started, which took the commit back.
    journal.answer(id, Resolution::NeverRan).unwrap();
    assert!(is_abandoned(&image, &journal) && !came_on_demand(&image, id, &journal));
    // One that came with all of its disk has another mark.
    let whole = Mark::new(id, journal.identity(), None);
    whole.set_arriving(&image).unwrap();
    assert!(!is_in_part(&image) && !mark.is_arriving_on(&image));
}

/// Its guest came before the content of its disk, and has gone on before all of that was here.
#[test]
fn an_image_in_part_is_no_disk_any_more_when_its_guest_has_gone_on() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(&dir.path().join("image"));
    let journal = MemoryJournal::default();
    let (came, goes) = (MigrationId([7; 16]), MigrationId([8; 16]));
    let mark = Mark::of_guest_on_demand(came, journal.identity(), None);
    if !mark.set_arriving(&image).unwrap() {
        println!("skipped: {} has no marks", dir.path().display());
        return;
    }
    journal.reserve(came, Side::Destination).unwrap();
    journal.decide(came, Decision::Commit).unwrap();
    let leaving = Mark::of_guest_on_demand(goes, journal.identity(), Some("c"));
    assert!(leaving.set_leaving(&image).unwrap());
    let recorded = |handover| {
        let record = SourceRecord {
            handover,
            destination: "c".into(),
            host: None,
            overlay: None,
        };
        journal.record(goes, &record).unwrap();
    };
    for handover in [Handover::Begun, Handover::Kept] {
        recorded(handover);
        assert_eq!(why_left(&image, &journal), None, "{handover:?}");
        assert!(why_needed(&image, &journal).unwrap().contains("nowhere"));
    }
    for handover in [Handover::CommitSent, Handover::Gone] {
        recorded(handover);
        assert!(why_left(&image, &journal).is_some(), "{handover:?}");
        assert_eq!(departure(&image, &journal), Departure::Given(goes));
        let needed = why_needed(&image, &journal).unwrap();
        assert!(needed.contains("the guest that went to c"), "{needed}");
    }
    assert!(matches!(
        whereabouts(&image, &journal),
        Whereabouts::Gone(_)
    ));
    // The guest that stays has a part of its disk alone, as before.
    stays(&image).unwrap();
    assert!(is_in_part(&image) && mark.is_arriving_on(&image));
    assert_eq!(why_left(&image, &journal), None);
}

#[test]
fn an_image_that_its_guest_left_behind_is_served_unless_that_has_stayed() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(&dir.path().join("image"));
    let journal = MemoryJournal::default();
    let id = MigrationId([7; 16]);
    assert_eq!(departure(&image, &journal), Departure::NotBegun);
    let mark = Mark::of_guest_on_demand(id, journal.identity(), Some("there:1"));
    if !mark.set_leaving(&image).unwrap() {
        println!("skipped: {} has no marks", dir.path().display());
        return;
    }
    // What was recorded has been forgotten since.
    assert_eq!(departure(&image, &journal), Departure::Given(id));
    journal.reserve(id, Side::Source).unwrap();
    for (handover, expected, needed) in [
        (Handover::Begun, Departure::Under(id), false),
        (Handover::CommitSent, Departure::Given(id), true),
        (Handover::Gone, Departure::Given(id), true),
        (Handover::Kept, Departure::Stayed(id), false),
    ] {
        let record = SourceRecord {
            handover,
            destination: "there:1".into(),
            host: None,
            overlay: None,
        };
        journal.record(id, &record).unwrap();
        assert_eq!(departure(&image, &journal), expected);
        assert_eq!(
            why_needed(&image, &journal).is_some(),
            needed,
            "{handover:?}"
        );
    }
    // A guest that took its disk along needs nothing of the image.
    let along = Mark::new(id, journal.identity(), Some("there:1"));
    along.set_leaving(&image).unwrap();
    assert_eq!(departure(&image, &journal), Departure::NotBegun);
    assert_eq!(why_needed(&image, &journal), None);
}

#[test]
fn neither_image_of_a_disk_that_lies_in_both_may_be_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new");
    let [old, new] = [&dir.path().join("old"), &path].map(|path| image(path));
    let journal = MemoryJournal::default();
    let id = MigrationId([7; 16]);
    let mark = Mark::of_disk_on_demand(id, journal.identity(), &path.display().to_string());
    if !mark.set_arriving(&new).unwrap() || !mark.set_leaving(&old).unwrap() {
        println!("skipped: {} has no marks", dir.path().display());
        return;
    }
    let needed = || [&old, &new].map(|image| why_needed(image, &journal).is_some());
    for (handover, expected) in [
        (Handover::Begun, [false, false]),
        (Handover::Gone, [true, true]),
        (Handover::Kept, [false, false]),
    ] {
        let record = SourceRecord {
            handover,
            destination: path.display().to_string(),
            host: None,
            overlay: None,
        };
        journal.record(id, &record).unwrap();
        assert_eq!(needed(), expected, "{handover:?}");
        if handover == Handover::Gone {
            remove(&new).unwrap();
            assert_eq!(needed(), [false, false], "it is whole");
            mark.set_arriving(&new).unwrap();
        }
    }
}

#[test]
fn of_the_images_of_a_move_by_overlays_one_is_the_disk_and_none_that_it_needs_is_abandoned() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let overlays = Overlays {
        old: path("old"),
        old_is: ImageFormat::Raw,
        new: path("new"),
        new_is: ImageFormat::Raw,
        beginning: path("new"),
    };
    let journal = MemoryJournal::default();
    let id = MigrationId([7; 16]);
    let parts = [
        Part::Old,
        Part::New,
        Part::Overlay(0),
        Part::Overlay(1),
        Part::Overlay(2),
    ];
    let images = parts.map(|part| {
        let image = image(&path(&format!("{part:?}")));
        let mark = Mark::of_disk_move(id, journal.identity(), "/new");
        let mark = mark.in_course(&overlays, part);
        let marked = match part {
            Part::Old => mark.set_leaving(&image),
            Part::New | Part::Overlay(_) => mark.set_arriving(&image),
        };
        marked.unwrap().then_some(image)
    });
    let [Some(_), ..] = &images else {
        println!("skipped: {} has no marks", dir.path().display());
        return;
    };
    let over = |number, base| Some(Overlay { number, base });
    let (old, new) = (OverlayBase::Old, OverlayBase::New);
    // The record; which is the disk; which may be removed; whether it is to be brought together.
    let cases = [
        (Handover::Begun, None, 0, &[1, 2, 3, 4][..], false),
        (Handover::Begun, over(0, old), 2, &[1], true),
        (Handover::Begun, over(0, new), 2, &[], true),
        (Handover::Begun, over(2, new), 4, &[], true),
        (Handover::Gone, None, 1, &[2, 3, 4], false),
        (Handover::Gone, over(1, new), 3, &[2, 4], false),
        (Handover::Kept, None, 0, &[1, 2, 3, 4], false),
    ];
    for (handover, overlay, disk, removable, is_unsettled) in cases {
        let record = SourceRecord {
            handover,
            destination: "/new".into(),
            host: None,
            overlay,
        };
        journal.record(id, &record).unwrap();
        for (index, image) in images.iter().flatten().enumerate() {
            let told = format!("{record:?} {:?}", parts[index]);
            let is_here = whereabouts(image, &journal) == Whereabouts::Here;
            assert_eq!(is_here, index == disk, "{told}");
            let removed = is_abandoned(image, &journal);
            assert_eq!(removed, removable.contains(&index), "{told}");
            let found = unsettled(image, &journal);
            assert_eq!(found.is_some(), is_unsettled, "{told}");
        }
    }
}

#[test]
fn overlays_of_a_disk_that_goes_with_its_guest_are_needed_until_that_has_gone_and_no_longer() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let overlays = Overlays {
        old: path("old"),
        old_is: ImageFormat::Raw,
        new: path("old"),
        new_is: ImageFormat::Raw,
        beginning: path("old"),
    };
    let journal = MemoryJournal::default();
    let (job, migration) = (MigrationId([7; 16]), MigrationId([8; 16]));
    let marked = |part| {
        let image = image(&path(&format!("{part:?}")));
        let mark = Mark::of_disk_move(job, journal.identity(), "there:1");
        let mark = mark.in_course(&overlays, part).within(migration);
        let is_marked = match part {
            Part::Old => mark.set_leaving(&image),
            Part::New | Part::Overlay(_) => mark.set_arriving(&image),
        };
        is_marked.unwrap().then_some(image)
    };
    let (Some(old), Some(over)) = (marked(Part::Old), marked(Part::Overlay(1))) else {
        println!("skipped: {} has no marks", dir.path().display());
        return;
    };
    let record = |id, handover, overlay| {
        let record = SourceRecord {
            handover,
            destination: "there:1".into(),
            host: None,
            overlay,
        };
        journal.record(id, &record).unwrap();
    };
    let in_overlay = Some(Overlay {
        number: 1,
        base: OverlayBase::Old,
    });
    record(job, Handover::Begun, in_overlay);
    // The migration; whether both are brought together; whether the overlay is of no use; whether the image is needed.
    for (handover, together, useless, needed) in [
        (Handover::Begun, true, false, true),
        (Handover::Kept, true, false, true),
        (Handover::CommitSent, false, false, true),
        (Handover::Gone, false, true, false),
    ] {
        record(migration, handover, None);
        assert_eq!(
            unsettled(&old, &journal).is_some(),
            together,
            "{handover:?}"
        );
        assert_eq!(
            unsettled(&over, &journal).is_some(),
            together,
            "{handover:?}"
        );
        assert_eq!(is_abandoned(&over, &journal), useless, "{handover:?}");
        assert_eq!(why_needed(&old, &journal).is_some(), needed, "{handover:?}");
        assert_ne!(
            whereabouts(&old, &journal),
            Whereabouts::Here,
            "{handover:?}"
        );
        assert_eq!(has_left(&old, migration, &journal), useless, "{handover:?}");
    }
    assert!(
        matches!(whereabouts(&old, &journal), Whereabouts::Gone(why) if why.contains("there:1"))
    );
    // Nothing is in an overlay, and the guest stays.
    record(migration, Handover::Kept, None);
    record(job, Handover::Kept, None);
    assert_eq!(whereabouts(&old, &journal), Whereabouts::Here);
    assert!(is_abandoned(&over, &journal));
}

#[test]
fn of_the_two_images_of_a_disk_that_moves_one_is_the_disk_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let [old, new] = ["old", "new"].map(|name| image(&dir.path().join(name)));
    let journal = MemoryJournal::default();
    let id = MigrationId([7; 16]);
    let mark = Mark::of_disk_move(id, journal.identity(), "/new");
    if !mark.set_leaving(&old).unwrap() {
        println!("skipped: {} has no marks", dir.path().display());
        return;
    }
    mark.set_arriving(&new).unwrap();
    assert!(mark.is_arriving_on(&new) && !mark.is_arriving_on(&old));
    let is_here = |image: &RawImage| whereabouts(image, &journal) == Whereabouts::Here;
    // Without a record neither is taken, and nothing is removed.
    assert!(!is_here(&old) && !is_here(&new) && !is_abandoned(&new, &journal));
    for (handover, disk_is_new) in [
        (Handover::Begun, false),
        (Handover::Kept, false),
        (Handover::Gone, true),
    ] {
        let record = SourceRecord {
            handover,
            destination: "/new".into(),
            host: None,
            overlay: None,
        };
        journal.record(id, &record).unwrap();
        assert_eq!(is_here(&old), !disk_is_new, "{handover:?}");
        assert_eq!(is_here(&new), disk_is_new, "{handover:?}");
        assert_eq!(is_abandoned(&new, &journal), !disk_is_new, "{handover:?}");
    }
    let gone = whereabouts(&old, &journal);
    assert!(matches!(gone, Whereabouts::Gone(why) if why.contains("/new")));
}

#[test]
fn a_seal_never_says_that_its_disk_came_and_takes_nothing_that_seals_no_device() {
    let journal = MemoryJournal::default();
    let [moved, stays, unknown] = [1, 2, 3].map(|n| MigrationId([n; 16]));
    for (id, handover) in [(moved, Handover::Gone), (stays, Handover::Begun)] {
        journal.reserve(id, Side::Source).unwrap();
        let record = SourceRecord {
            handover,
            destination: "/dev/vg/web".into(),
            host: None,
            overlay: None,
        };
        journal.record(id, &record).unwrap();
    }
    for (id, is) in [
        // It was to be opened before that was recorded.
        (moved, Arrival::Never(Of::DiskMove)),
        (stays, Arrival::Never(Of::DiskMove)),
        (unknown, Arrival::Unknown(Of::DiskMove)),
    ] {
        let written = Mark::of_disk_move(id, journal.identity(), "/dev/vg/web").encode();
        let mark = of_seal(serde_json::from_slice(&written).unwrap()).unwrap();
        assert_eq!(arrival(&mark, &journal), is);
    }
    let committed = MigrationId([4; 16]);
    journal.reserve(committed, Side::Destination).unwrap();
    journal.decide(committed, Decision::Commit).unwrap();
    let of_guest = of_seal(Mark::new(committed, journal.identity(), None)).unwrap();
    assert_eq!(arrival(&of_guest, &journal), Arrival::Never(Of::Migration));
    // A guest has made these up.
    let on_demand = Mark::of_disk_on_demand(moved, journal.identity(), "/dev/vg/web");
    assert!(of_seal(on_demand).is_err());
    let overlays = Overlays {
        old: "/a".into(),
        old_is: ImageFormat::Raw,
        new: "/b".into(),
        new_is: ImageFormat::Raw,
        beginning: "/a".into(),
    };
    let in_course = Mark::of_disk_move(moved, journal.identity(), "/b");
    assert!(of_seal(in_course.in_course(&overlays, Part::New)).is_err());
}
