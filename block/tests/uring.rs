//! What a ring does beside what every backend does: hanging storage, marks, and hosts without.
#![allow(unsafe_code)] // A thread is denied io_uring by a filter of system calls.

mod requests;
mod storage;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block::fault::FaultLayer;
use block::tracker::{BLOCK, ChangeMap, Generation, Tracker};
use block::uring::{Begin, DEPTH};
use block::{
    Action, Backend, BlockDevice, Buffer, Error, RingDisk, Stack, Submitter, Uring, ZeroMode,
};
use requests::{Ends, open, ring_disk, wait_until};
use storage::Freezing;
use tempfile::TempDir;

const SIZE: u64 = 4 << 20;

#[test]
fn requests_that_hang_hold_up_only_those_that_overlap_them_and_take_the_room_that_there_is() {
    let Some(storage) = Freezing::new() else {
        return;
    };
    let path = storage.disk(SIZE);
    let image = open(&path);
    let Some(disk) = ring_disk(&image) else {
        return;
    };
    let backend = Uring::new(disk);
    let ends = Ends::new();
    storage.freeze();
    backend.submit(ends.write("hangs", 0, &[1; 4096]), Submitter::Hurried);
    backend.submit(ends.read("behind it", 0, 4096), Submitter::Hurried);
    backend.submit(ends.read("beside it", 4096, 4096), Submitter::Hurried);
    let end = ends.end();
    assert_eq!(end.first(), ("beside it", Some(0)));
    assert!(ends.is_silent());
    assert!(backend.has_room());
    for n in 2..DEPTH as u64 {
        backend.submit(ends.write("too", n * 4096, &[2; 4096]), Submitter::Hurried);
    }
    assert!(!backend.has_room());
    // Who may be kept waits for room, who may not goes on.
    let (kept, went_on) = (AtomicBool::new(true), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            backend.submit(ends.read("kept", 1 << 20, 4096), Submitter::Ahead);
            kept.store(false, Ordering::SeqCst);
        });
        scope.spawn(|| {
            backend.submit(ends.read("hurried", 1 << 20, 4096), Submitter::Hurried);
            went_on.store(true, Ordering::SeqCst);
        });
        wait_until("it goes on", || went_on.load(Ordering::SeqCst));
        assert!(kept.load(Ordering::SeqCst));
        storage.thaw();
    });
    let mut names: Vec<_> = (0..DEPTH + 2).map(|_| ends.end().first()).collect();
    names.sort_unstable();
    let count = |what| names.iter().filter(|end| **end == what).count();
    assert_eq!(count(("hangs", Some(1))), 1);
    assert_eq!(count(("behind it", Some(1))), 1);
    assert_eq!(count(("too", Some(2))), DEPTH - 2);
    assert_eq!(count(("kept", Some(0))) + count(("hurried", Some(0))), 2);
    assert_eq!(std::fs::read(path).unwrap()[..4096], [1; 4096]);
}

#[test]
fn a_disk_is_dropped_though_requests_hang_which_keep_their_memory_and_end_later() {
    let Some(storage) = Freezing::new() else {
        return;
    };
    let path = storage.disk(SIZE);
    let image = open(&path);
    let Some(disk) = ring_disk(&image) else {
        return;
    };
    let backend = Uring::new(disk);
    let ends = Ends::new();
    storage.freeze();
    for n in 0..8 {
        backend.submit(ends.write(n, n * 4096, &[7; 4096]), Submitter::Hurried);
    }
    // And one for the threads that do what the ring cannot, one behind others.
    let (offset, len, mode) = (1 << 20, 1 << 20, ZeroMode::MayUnmap);
    let zeroes = Action::WriteZeroes { offset, len, mode };
    backend.submit(ends.other(8, zeroes), Submitter::Hurried);
    backend.submit(ends.write(9, 0, &[9; 4096]), Submitter::Hurried);
    let dropping = std::thread::spawn(move || drop((backend, image)));
    wait_until("the disk is dropped", || dropping.is_finished());
    assert!(ends.is_silent());
    storage.thaw();
    for _ in 0..10 {
        ends.end().result.unwrap().unwrap();
    }
    let held = std::fs::read(path).unwrap();
    assert!(held[..4096] == [9; 4096] && held[4096..8 * 4096] == [7; 7 * 4096]);
}

#[test]
fn what_the_ring_writes_is_marked_until_it_has_ended() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, vec![0; SIZE as usize]).unwrap();
    let image = open(&path);
    let Some(disk) = ring_disk(&image) else {
        return;
    };
    let map = Arc::new(ChangeMap::new(SIZE));
    let backend = Uring::tracked(disk, map.clone());
    let ends = Ends::new();
    // A copy that is made of what changed, again and again, while it changes.
    let (stop, map) = (AtomicBool::new(false), &*map);
    let mut copy = vec![0; SIZE as usize];
    let mut refresh = |since: Generation| {
        let next = map.begin_generation();
        for range in map.changed_since(since) {
            let part = &mut copy[range.start as usize..range.end as usize];
            image.read(&[Buffer::new(part)], range.start).unwrap();
        }
        next
    };
    let since = std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..400_u64 {
                for n in 0..8 {
                    let block = (round * 7 + n * 5) % (SIZE / BLOCK);
                    let bytes = [(round + n) as u8; 4096];
                    let at = block * BLOCK + round % 16 * 4096;
                    backend.submit(ends.write(n, at, &bytes), Submitter::Hurried);
                }
                for _ in 0..8 {
                    ends.end().result.unwrap().unwrap();
                }
            }
            stop.store(true, Ordering::SeqCst);
        });
        let mut since = Generation::FIRST;
        while !stop.load(Ordering::SeqCst) {
            since = refresh(since);
        }
        since
    });
    refresh(since);
    assert!(copy == std::fs::read(path).unwrap());
    assert_eq!(map.changed_since(map.begin_generation()).count(), 0);
    // Also what the ring does not do itself, and what fails.
    for (action, bytes) in [
        (
            Action::Discard {
                offset: 0,
                len: BLOCK,
            },
            &[][..],
        ),
        (
            Action::Write {
                offset: SIZE - 512,
                durability: block::Durability::Flushed,
            },
            &[1; 1024],
        ),
    ] {
        let since = map.begin_generation();
        backend.submit(ends.request(0, action, bytes, 0), Submitter::Hurried);
        let _ = ends.end().result.unwrap();
        assert_eq!(map.changed_since(since).count(), 1, "{action:?}");
    }
}

#[test]
fn a_stack_is_carried_out_by_its_ring_as_long_as_that_can_do_all_of_it() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, vec![0; SIZE as usize]).unwrap();
    let image = open(&path);
    assert!(Stack::over(image.clone(), "raw").by_ring().is_none());
    let Some(disk) = ring_disk(&image) else {
        return;
    };
    let alone = Stack::over_ring(disk);
    let map = Arc::new(ChangeMap::new(SIZE));
    let mut tracked = alone.clone();
    tracked.lay(|disk| Tracker::new(disk, map.clone()));
    let mut twice = tracked.clone();
    twice.lay(|disk| Tracker::new(disk, Arc::new(ChangeMap::new(SIZE))));
    assert!(twice.by_ring().is_none());
    let mut faulty = alone.clone();
    faulty.lay(FaultLayer::new);
    assert!(faulty.by_ring().is_none());
    faulty.lay(|disk| Tracker::new(disk, map.clone()));
    assert!(faulty.by_ring().is_none());
    let ends = Ends::new();
    for (stack, changed) in [(alone, 0), (tracked, 1)] {
        let backend = stack.by_ring().unwrap();
        backend.submit(ends.write(0, 0, &[1; 4096]), Submitter::Hurried);
        ends.end().result.unwrap().unwrap();
        assert_eq!(map.changed_since(Generation::FIRST).count(), changed);
    }
}

/// Denies io_uring to this thread and those that it starts.
fn deny(number: i32) {
    const SETUP: u32 = libc::SYS_io_uring_setup as u32;
    let op = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut filter = [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, SETUP),
        op(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | number as u32,
        ),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: numbers, and a program that lives for the duration of the call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        let set = libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program);
        assert_eq!(set, 0);
    }
}

fn new_disk(path: &Path, direct: bool) -> Result<RingDisk, Error> {
    let image = open(path);
    if direct {
        image.open_direct().unwrap();
    }
    let begin = Begin {
        ring: || {},
        hand: || {},
    };
    RingDisk::new(image, begin)
}

#[test]
fn where_there_is_no_ring_that_is_told_and_nothing_is_left() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    for number in [libc::ENOSYS, libc::EPERM, libc::EINVAL] {
        let path = path.clone();
        let tried = std::thread::spawn(move || {
            deny(number);
            new_disk(&path, true).map(drop)
        });
        match tried.join().unwrap() {
            Err(Error::NoRing { source, .. }) => assert_eq!(source.raw_os_error(), Some(number)),
            other => panic!("{other:?}"),
        }
    }
    let cached = new_disk(&path, false).map(drop);
    assert!(matches!(cached, Err(Error::NoRing { .. })), "{cached:?}");
}

#[test]
fn a_file_that_has_taken_the_path_of_the_image_is_not_taken_for_it() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, vec![0; 4096]).unwrap();
    let image = open(&path);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, vec![0; 4096]).unwrap();
    let error = image.open_direct().unwrap_err();
    assert!(matches!(error, Error::NotDirect { .. }), "{error:?}");
}

#[test]
fn what_was_written_past_the_page_cache_is_read_through_it_and_the_other_way_round() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, vec![0; SIZE as usize]).unwrap();
    let image = open(&path);
    let Some(disk) = ring_disk(&image) else {
        return;
    };
    let backend = Uring::new(disk);
    let ends = Ends::new();
    for round in 1..100_u8 {
        let offset = u64::from(round) * 4096;
        let mut seen = [0; 4096];
        // In the cache before it is written past it.
        image.read(&[Buffer::new(&mut seen)], offset).unwrap();
        backend.submit(
            ends.write("past", offset, &[round; 4096]),
            Submitter::Hurried,
        );
        ends.end().result.unwrap().unwrap();
        backend
            .disk()
            .read(&[Buffer::new(&mut seen)], offset)
            .unwrap();
        assert_eq!(seen, [round; 4096]);
        let mut own = [round + 100; 4096];
        let through = [Buffer::new(&mut own)];
        image
            .write(&through, offset, block::Durability::Flushed)
            .unwrap();
        backend.submit(ends.read("past", offset, 4096), Submitter::Hurried);
        assert_eq!(ends.end().first(), ("past", Some(round + 100)));
    }
}
