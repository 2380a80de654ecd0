//! What is changed while a disk is mirrored is on both images, whatever else happens to them.

mod mirrored;

use std::sync::atomic::Ordering;
use std::time::Duration;

use block::copy::{CopyError, Target};
use block::fault::{Effect, Fault, Operation};
use block::mirror::Lost;
use block::tracker::BLOCK;
use block::{BlockDevice, Buffer, Durability};
use mirrored::{SIZE, Scene, Writer, is_late, some_more, until_let_in, while_written};

fn fault(operation: Operation, times: u64, effect: Effect) -> Fault {
    Fault {
        operation,
        skip: 0,
        times,
        effect,
    }
}

#[test]
fn both_images_are_the_same_when_all_is_copied_whoever_wrote_meanwhile() {
    for target in [Target::Blank, Target::Holds] {
        let mut scene = Scene::new();
        scene.fill(0, SIZE, 7);
        if target == Target::Holds {
            let mut old = vec![9; SIZE as usize];
            let all = [Buffer::new(&mut old)];
            scene.target.write(&all, 0, Durability::Flushed).unwrap();
        }
        let Scene {
            mirror,
            copy,
            steering,
            ..
        } = &mut scene;
        let (pass, _, failed) = while_written(&**mirror, |made| {
            some_more(made, 20);
            // What is older than it must be is not written over later.
            copy.all_beside(target, mirror, steering).unwrap()
        });
        assert_eq!(failed, 0);
        assert!(pass.bytes > 0);
        // Nothing was missed, and nothing is copied again.
        assert_eq!(copy.left(), 0);
        assert!(mirror.is_quiet() && mirror.is_whole() && mirror.written() > 0);
        scene.is_mirrored();
    }
}

#[test]
fn a_copy_that_went_by_passes_goes_on_with_what_is_left_of_it() {
    let mut scene = Scene::new();
    scene.fill(0, SIZE, 7);
    // As by passes: it was copied once, and some was written since.
    let steering = &scene.steering;
    scene
        .copy
        .all_beside(Target::Blank, &scene.mirror, steering)
        .unwrap();
    scene.mirror.suspend();
    let written = |offset, value| {
        let mut bytes = [value; 512];
        let buffers = [Buffer::new(&mut bytes)];
        scene
            .mirror
            .write(&buffers, offset, Durability::Flushed)
            .unwrap();
    };
    written(3 * BLOCK, 1);
    written(50 * BLOCK, 2);
    assert_eq!(scene.copy.left(), 2 * BLOCK);
    assert_eq!(scene.mirror.resume(), Some(Lost::Missed));
    written(3 * BLOCK + 512, 3);
    let pass = scene.copy.changed_beside(&scene.mirror, steering).unwrap();
    assert_eq!(pass.bytes, 2 * BLOCK);
    scene.is_mirrored();
}

#[test]
fn a_target_that_fails_is_given_up_and_the_guest_hears_nothing_of_it() {
    let cases = [
        (Operation::Write, Effect::Fail(libc::EIO)),
        (Operation::Write, Effect::Fail(libc::ENOSPC)),
        (Operation::Write, Effect::Tear(512)),
        (Operation::WriteZeroes, Effect::Fail(libc::EIO)),
        (Operation::Flush, Effect::Fail(libc::EIO)),
        (Operation::Write, Effect::Hang),
        (Operation::Flush, Effect::Hang),
    ];
    for (operation, effect) in cases {
        let patience = Duration::from_millis(if effect == Effect::Hang { 100 } else { 60_000 });
        let mut scene = Scene::with(patience);
        scene.fill(0, SIZE, 7);
        let faults = scene.target_faults.clone();
        let Scene {
            mirror,
            copy,
            steering,
            ..
        } = &mut scene;
        let (lost, _, failed) = while_written(&**mirror, |made| {
            copy.all_beside(Target::Blank, mirror, steering).unwrap();
            faults.inject(fault(operation, u64::MAX, effect));
            while mirror.is_whole() {
                std::thread::yield_now();
            }
            // The guest goes on, however its target hangs.
            some_more(made, 100);
            let why = mirror.take_trouble().expect("why it was given up");
            assert_eq!(is_late(&why), effect == Effect::Hang, "{why}");
            if effect == Effect::Hang {
                assert_eq!(mirror.resume(), None, "it still hangs");
            }
            faults.clear();
            // What is planned is forgotten, and what hangs may hang again until then.
            let lost = loop {
                faults.release();
                if let Some(lost) = mirror.resume() {
                    break lost;
                }
                std::thread::yield_now();
            };
            some_more(made, 100);
            lost
        });
        assert_eq!(failed, 0, "{operation:?} {effect:?}");
        assert!(mirror.is_whole(), "{operation:?} {effect:?}");
        if operation == Operation::Flush {
            assert_eq!(lost, Lost::All);
        }
        assert!(copy.left() > 0);
        if lost == Lost::All {
            copy.forget();
            copy.all_beside(Target::Holds, mirror, steering).unwrap();
        }
        copy.changed_beside(mirror, steering).unwrap();
        assert_eq!(copy.left(), 0);
        scene.is_mirrored();
    }
}

#[test]
fn a_copy_that_its_target_stopped_goes_on_where_it_was() {
    let mut scene = Scene::new();
    scene.fill(0, SIZE, 7);
    let place = 3 << 20..4 << 20;
    let full = fault(Operation::Write, 1, Effect::Fail(libc::ENOSPC));
    scene.target_faults.inject_at(place, full);
    let (mirror, steering) = (&scene.mirror, &scene.steering);
    let stopped = scene.copy.all_beside(Target::Blank, mirror, steering);
    assert!(matches!(stopped, Err(CopyError::Target(_))), "{stopped:?}");
    mirror.suspend();
    let mut writer = Writer::new(5);
    for _ in 0..50 {
        writer.change(&**mirror).unwrap();
    }
    assert_eq!(mirror.resume(), Some(Lost::Missed));
    let pass = scene.copy.all_beside(Target::Blank, mirror, steering);
    assert!(pass.unwrap().bytes <= SIZE - (3 << 20));
    assert!(scene.copy.left() > 0);
    scene.copy.changed_beside(mirror, steering).unwrap();
    scene.is_mirrored();
}

#[test]
fn what_the_disk_itself_fails_to_take_is_told_to_the_guest_and_copied_again() {
    let mut scene = Scene::new();
    let (mirror, steering) = (scene.mirror.clone(), &scene.steering);
    scene
        .copy
        .all_beside(Target::Blank, &mirror, steering)
        .unwrap();
    let torn = fault(Operation::Write, 1, Effect::Tear(512));
    scene.source_faults.inject(torn);
    let mut bytes = [3; 4096];
    let buffers = [Buffer::new(&mut bytes)];
    mirror.write(&buffers, 0, Durability::Flushed).unwrap_err();
    let absent = fault(Operation::Write, 1, Effect::Absent);
    scene.source_faults.inject(absent);
    let waits = mirror.write(&buffers, 5 * BLOCK, Durability::Flushed);
    assert!(waits.unwrap_err().is_for_now());
    assert!(mirror.is_whole(), "the target has done nothing wrong");
    assert_eq!(scene.copy.left(), 2 * BLOCK);
    scene.copy.changed_beside(&mirror, steering).unwrap();
    scene.is_mirrored();
}

#[test]
fn a_request_that_is_not_of_this_disk_is_no_fault_of_the_target() {
    let scene = Scene::new();
    let mut bytes = [3; 4096];
    let buffers = [Buffer::new(&mut bytes)];
    let beyond = scene
        .mirror
        .write(&buffers, SIZE - 512, Durability::Flushed);
    beyond.unwrap_err();
    scene.mirror.discard(u64::MAX - 5, 512).unwrap_err();
    let zeroes = scene
        .mirror
        .write_zeroes(SIZE, 512, block::ZeroMode::MayUnmap);
    zeroes.unwrap_err();
    assert!(scene.mirror.is_whole() && scene.mirror.is_quiet());
}

/// There is a change under way at every moment, so it is never the turn of a copy that has no share of its own.
#[test]
fn a_copy_ends_however_busy_the_guest_is_and_has_its_share() {
    let mut scene = Scene::new();
    let copied = 4 << 20;
    scene.fill(0, copied, 7);
    let hang = fault(Operation::Write, 1, Effect::Hang);
    scene.source_faults.inject_at(SIZE - 512..SIZE, hang);
    let (mirror, steering) = (&*scene.mirror, &scene.steering);
    let (faults, copy) = (&scene.source_faults, &mut scene.copy);
    let write = |offset: u64, len: u64| {
        let mut bytes = vec![3; len as usize];
        let buffers = [Buffer::new(&mut bytes)];
        until_let_in(|| mirror.write(&buffers, offset, Durability::Flushed)).unwrap();
    };
    // Three times what its share comes to.
    let (most, mut written) = (copied * 19 * 3, 0);
    let pass = std::thread::scope(|scope| {
        scope.spawn(|| write(SIZE - 512, 512));
        faults.wait_hanging(1);
        let copying = scope.spawn(|| copy.all_beside(Target::Blank, mirror, steering));
        while !copying.is_finished() && written < most {
            write(5 << 20, BLOCK);
            written += BLOCK;
        }
        steering.cancel();
        let pass = copying.join().unwrap();
        faults.release();
        pass
    });
    assert!(pass.is_ok(), "beside {written} bytes: {pass:?}");
    assert!(pass.unwrap().bytes >= copied);
    scene.is_mirrored();
}

#[test]
fn what_is_copied_is_read_when_no_change_of_it_is_under_way_and_none_begins_until_it_is_written() {
    let scene = Scene::new();
    scene.fill(0, 2 * BLOCK, 7);
    let hang = fault(Operation::Write, 1, Effect::Hang);
    scene.source_faults.inject_at(0..512, hang);
    let (mirror, source, faults) = (&*scene.mirror, &*scene.source, &scene.source_faults);
    let write = |offset: u64| {
        let mut bytes = [3; 512];
        mirror.write(&[Buffer::new(&mut bytes)], offset, Durability::Flushed)
    };
    std::thread::scope(|scope| {
        // The target has it, and the disk does not yet.
        scope.spawn(|| write(0).unwrap());
        faults.wait_hanging(1);
        let copying = scope.spawn(|| {
            let held = mirror.hold(0..2 * BLOCK, || true).expect("it stands");
            let mut bytes = [0; 512];
            source.read(&[Buffer::new(&mut bytes)], 0).unwrap();
            // Nobody changes it meanwhile, though nobody has to wait for the share of the copy.
            mirror.rest();
            assert!(write(BLOCK).unwrap_err().is_for_now());
            held.copied(2 * BLOCK);
            bytes
        });
        // Changes elsewhere make it the turn of the copy, which keeps those away that come now.
        while !copying.is_finished() && write(BLOCK).is_ok() {
            write(5 << 20).unwrap();
        }
        faults.release();
        assert_eq!(copying.join().unwrap(), [3; 512]);
    });
    write(BLOCK).unwrap();
}

#[test]
fn changes_wait_for_the_flush_of_a_target_that_may_have_little_unflushed() {
    let scene = Scene::new();
    let mut bytes = vec![5; BLOCK as usize];
    let buffers = [Buffer::new(&mut bytes)];
    let write = || scene.mirror.write(&buffers, 0, Durability::Flushed);
    scene.mirror.bound_unflushed(Some(BLOCK));
    write().unwrap();
    write().unwrap();
    assert!(write().unwrap_err().is_for_now());
    let told = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = told.clone();
    scene.mirror.tell_arrivals(std::sync::Arc::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    }));
    scene.mirror.flush_target().unwrap();
    assert_eq!(told.load(Ordering::Relaxed), 1);
    until_let_in(write).unwrap();
}

#[test]
fn a_cancelled_copy_stops_though_it_is_never_its_turn() {
    let mut scene = Scene::new();
    scene.fill(0, SIZE, 7);
    let hang = fault(Operation::Write, 1, Effect::Hang);
    scene.source_faults.inject_at(0..BLOCK, hang);
    let (mirror, faults) = (scene.mirror.clone(), scene.source_faults.clone());
    std::thread::scope(|scope| {
        let mut bytes = vec![5; BLOCK as usize];
        let mirror = &mirror;
        scope.spawn(move || {
            let buffers = [Buffer::new(&mut bytes)];
            mirror.write(&buffers, 0, Durability::Flushed).unwrap();
        });
        faults.wait_hanging(1);
        let steering = &scene.steering;
        let copy = &mut scene.copy;
        let copying = scope.spawn(move || copy.all_beside(Target::Blank, mirror, steering));
        assert!(steering.cancel());
        let stopped = copying.join().unwrap();
        assert!(matches!(stopped, Err(CopyError::Cancelled)), "{stopped:?}");
        faults.release();
    });
}
