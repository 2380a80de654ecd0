//! What every backend of a raw image promises, by each of them.

mod requests;
mod storage;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use block::{
    Action, Backend, BlockDevice, Buffer, Durability, Error, Job, RawImage, Submitter, ZeroMode,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use requests::{Ends, KINDS, backend, open, wait_until};
use storage::{Mount, command};
use tempfile::TempDir;

const SIZE: u64 = 1 << 20;

struct Disk {
    _dir: TempDir,
    image: Arc<RawImage>,
    backend: Arc<dyn Backend>,
}

/// A disk of each backend that there is here, on storage that may do without the page cache.
fn disks() -> impl Iterator<Item = Disk> {
    KINDS.into_iter().filter_map(|kind| {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("disk.raw");
        std::fs::write(&path, vec![0; SIZE as usize]).unwrap();
        let image = open(&path);
        let backend = backend(kind, &image)?;
        println!("by {kind:?}");
        Some(Disk {
            _dir: dir,
            image,
            backend,
        })
    })
}

#[test]
fn of_many_that_overlap_each_sees_all_that_were_submitted_before_it() {
    for disk in disks() {
        let ends = Ends::new();
        for n in 0..300_usize {
            // Pages 0 to 3, where each write overlaps the one before.
            let (offset, byte) = ((n as u64 % 7) * 1024, n as u8);
            let write = ends.write(2 * n, offset, &[byte; 4096]);
            disk.backend.submit(write, Submitter::Hurried);
            let read = ends.read(2 * n + 1, offset, 4096);
            disk.backend.submit(read, Submitter::Hurried);
        }
        for _ in 0..600 {
            let end = ends.end();
            end.result.unwrap().unwrap();
            if end.name % 2 == 1 {
                assert_eq!(end.bytes, [(end.name / 2) as u8; 4096], "{}", end.name / 2);
            }
        }
    }
}

/// A request as it is made up: what, sectors, how its memory lies, and who submits it.
type MadeUp = (u8, u64, u64, bool, u8);

fn made_up() -> impl Strategy<Value = Vec<MadeUp>> {
    let one = (0..10_u8, 0..64_u64, 1..24_u64, any::<bool>(), 0..3_u8);
    prop::collection::vec(one, 1..150)
}

/// Submits them all at once and compares what each finds with a disk that takes them one after the other.
fn compare(backend: &dyn Backend, held: &mut [u8], requests: &[MadeUp]) {
    let ends = Ends::new();
    let mut expected = Vec::new();
    for (n, &(what, sector, sectors, skewed, submitter)) in requests.iter().enumerate() {
        let (offset, len) = (sector * 512, sectors * 512);
        let range = offset as usize..(offset + len) as usize;
        let skew = if skewed { 8 } else { 0 };
        let durability = match what % 2 {
            0 => Durability::Flushed,
            _ => Durability::Immediate,
        };
        let request = match what {
            0..=3 => {
                expected.push(Some(held[range.clone()].to_vec()));
                let read = Action::Read { offset };
                ends.request(n, read, &vec![0xee; len as usize], skew)
            }
            4..=7 => {
                expected.push(None);
                let bytes: Vec<u8> = (0..len).map(|at| (n as u64 * 7 + at / 512) as u8).collect();
                held[range].copy_from_slice(&bytes);
                ends.request(n, Action::Write { offset, durability }, &bytes, skew)
            }
            8 => {
                expected.push(None);
                held[range].fill(0);
                let mode = ZeroMode::MayUnmap;
                ends.other(n, Action::WriteZeroes { offset, len, mode })
            }
            _ => {
                expected.push(None);
                ends.other(n, Action::Flush)
            }
        };
        let submitter = match submitter {
            0 => Submitter::Alone,
            1 => Submitter::Ahead,
            _ => Submitter::Hurried,
        };
        backend.submit(request, submitter);
    }
    for _ in requests {
        let end = ends.end();
        end.result.unwrap().unwrap();
        if let Some(expected) = &expected[end.name] {
            assert!(end.bytes == *expected, "request {}", end.name);
        }
    }
    let mut found = vec![0; held.len()];
    let disk = backend.disk();
    disk.read(&[Buffer::new(&mut found)], 0).unwrap();
    assert!(found == held, "what is held in the end");
}

fn compare_many(backend: &dyn Backend) {
    let mut runner = TestRunner::new(Config {
        cases: 60,
        failure_persistence: None,
        ..Config::default()
    });
    let disk = backend.disk();
    let result = runner.run(&made_up(), |requests| {
        disk.write_zeroes(0, SIZE, ZeroMode::MayUnmap).unwrap();
        compare(backend, &mut vec![0; SIZE as usize], &requests);
        Ok(())
    });
    result.unwrap();
}

#[test]
fn requests_in_flight_together_are_as_if_they_came_one_after_the_other() {
    for disk in disks() {
        compare_many(&*disk.backend);
    }
}

/// A loop device over a file; it goes when this is dropped.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = command("losetup", &["--detach", &self.0]);
    }
}

#[test]
fn requests_that_are_smaller_than_the_blocks_of_the_storage_are_too() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk.raw");
    File::create(&path).unwrap().set_len(SIZE).unwrap();
    let path = path.to_str().unwrap();
    let arguments = ["--find", "--show", "--sector-size", "4096", path];
    let Some(device) = command("losetup", &arguments).map(Loop) else {
        return;
    };
    for kind in KINDS {
        let image = open(device.0.as_ref());
        if let Some(backend) = backend(kind, &image) {
            compare_many(&*backend);
        }
    }
}

#[test]
fn a_file_that_became_shorter_is_told_of_and_what_is_left_can_be_used() {
    for disk in disks() {
        let ends = Ends::new();
        let path = disk.image.path().to_owned();
        disk.backend
            .submit(ends.write("all", 0, &[7; 64 << 10]), Submitter::Alone);
        ends.end().result.unwrap().unwrap();
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(10_000).unwrap();
        // Alone, and beside others.
        for depth in [1, 8] {
            for n in 0..depth {
                let submitter = [Submitter::Hurried, Submitter::Alone][usize::from(depth == 1)];
                let name = ["before", "across", "behind"][n % 3];
                let offset = [0, 8192, 16384][n % 3];
                disk.backend
                    .submit(ends.read(name, offset, 4096), submitter);
            }
            for _ in 0..depth {
                let end = ends.end();
                match (end.name, end.result.unwrap()) {
                    ("before", result) => {
                        result.unwrap();
                        assert_eq!(end.bytes, [7; 4096]);
                    }
                    (name, result) => {
                        let error = result.unwrap_err();
                        assert!(matches!(error, Error::Short { .. }), "{name}: {error:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_lies_outside_and_what_a_read_only_image_refuses_fails_by_name() {
    for disk in disks() {
        let ends = Ends::new();
        for submitter in [Submitter::Alone, Submitter::Hurried] {
            for offset in [SIZE, SIZE - 512, u64::MAX - 511] {
                disk.backend
                    .submit(ends.read("read", offset, 4096), submitter);
                let error = ends.end().result.unwrap().unwrap_err();
                assert!(matches!(error, Error::OutOfRange { .. }), "{error:?}");
                disk.backend
                    .submit(ends.write("write", offset, &[1; 4096]), submitter);
                let error = ends.end().result.unwrap().unwrap_err();
                assert!(matches!(error, Error::OutOfRange { .. }), "{error:?}");
            }
        }
    }
    for kind in KINDS {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("disk.raw");
        std::fs::write(&path, [3; 8192]).unwrap();
        let image = RawImage::open(&path, block::Access::ReadOnly, block::Content::Raw).unwrap();
        let image = Arc::new(image);
        let Some(backend) = backend(kind, &image) else {
            continue;
        };
        let ends = Ends::new();
        for submitter in [Submitter::Alone, Submitter::Hurried] {
            backend.submit(ends.read("read", 4096, 4096), submitter);
            assert_eq!(ends.end().bytes, [3; 4096]);
            backend.submit(ends.write("write", 0, &[1; 512]), submitter);
            let error = ends.end().result.unwrap().unwrap_err();
            assert!(matches!(error, Error::ReadOnly { .. }), "{error:?}");
            backend.submit(ends.other("flush", Action::Flush), submitter);
            ends.end().result.unwrap().unwrap();
        }
    }
}

#[test]
fn storage_that_is_full_fails_writes_and_serves_the_rest() {
    let Some(mount) = Mount::new(&["-t", "tmpfs", "-o", "size=256k", "none"]) else {
        return;
    };
    for kind in KINDS {
        let path = mount.path().join("disk.raw");
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        let image = open(&path);
        let Some(backend) = backend(kind, &image) else {
            continue;
        };
        let ends = Ends::new();
        for n in 0..128 {
            let write = ends.write(n, n as u64 * 8192, &[n as u8; 8192]);
            backend.submit(write, Submitter::Hurried);
        }
        let (mut done, mut failed) = (Vec::new(), 0);
        for _ in 0..128 {
            let end = ends.end();
            match end.result.unwrap() {
                Ok(()) => done.push(end.name),
                Err(Error::Io {
                    operation, source, ..
                }) => {
                    assert_eq!(operation, "write");
                    assert_eq!(source.raw_os_error(), Some(libc::ENOSPC));
                    failed += 1;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        assert!(!done.is_empty() && failed > 60, "{kind:?}: {failed} failed");
        for name in done {
            backend.submit(ends.read(name, name as u64 * 8192, 8192), Submitter::Alone);
            assert_eq!(ends.end().bytes, [name as u8; 8192]);
        }
        // A file that was removed keeps its space for as long as the kernel takes to end a ring.
        File::create(path).unwrap();
    }
}

#[test]
fn what_was_flushed_is_not_flushed_again_and_what_was_written_since_is() {
    for disk in disks() {
        let ends = Ends::new();
        assert!(!disk.backend.disk().has_unflushed_writes());
        for submitter in [Submitter::Alone, Submitter::Hurried] {
            disk.backend
                .submit(ends.write("w", 0, &[1; 4096]), submitter);
            ends.end().result.unwrap().unwrap();
            assert!(disk.backend.disk().has_unflushed_writes());
            disk.backend
                .submit(ends.other("flush", Action::Flush), submitter);
            ends.end().result.unwrap().unwrap();
            assert!(!disk.backend.disk().has_unflushed_writes());
        }
    }
}

#[test]
fn a_backend_that_is_dropped_ends_what_was_submitted() {
    for Disk {
        _dir,
        image,
        backend,
    } in disks()
    {
        let ends = Ends::new();
        for n in 0..500_u64 {
            let write = ends.write(n, n * 512, &[1; 4096]);
            backend.submit(write, Submitter::Hurried);
        }
        drop(backend);
        for _ in 0..500 {
            ends.end().result.unwrap().unwrap();
        }
        let mut last = [0; 4096];
        image.read(&[Buffer::new(&mut last)], 499 * 512).unwrap();
        assert_eq!(last, [1; 4096]);
    }
}

#[test]
fn as_many_threads_as_like_submit_at_once() {
    for disk in disks() {
        std::thread::scope(|scope| {
            for thread in 0..8_u64 {
                let backend = &disk.backend;
                scope.spawn(move || {
                    let ends = Ends::new();
                    let place = thread * 64 * 1024;
                    for round in 0..200_u64 {
                        let bytes = [(thread * 31 + round) as u8; 4096];
                        let offset = place + round % 16 * 4096;
                        backend.submit(ends.write("write", offset, &bytes), Submitter::Ahead);
                        backend.submit(ends.read("read", offset, 4096), Submitter::Alone);
                        for _ in 0..2 {
                            let end = ends.end();
                            end.result.unwrap().unwrap();
                            assert_eq!(end.bytes, bytes);
                        }
                    }
                });
            }
        });
    }
}

/// A request that panics when it is told that it has ended.
struct Panics(Arc<AtomicU32>);

impl Job for Panics {
    fn action(&self) -> Action {
        Action::WriteZeroes {
            offset: 0,
            len: 4096,
            mode: ZeroMode::KeepAllocated,
        }
    }

    fn buffers(&self) -> &[Buffer<'_>] {
        &[]
    }

    fn complete(self: Box<Self>, _: block::Result<()>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("on purpose");
    }

    fn park(self: Box<Self>) {}
}

/// The same by a read, which a ring carries out.
struct PanicsAfterRead(Panics, Vec<Buffer<'static>>);

impl Job for PanicsAfterRead {
    fn action(&self) -> Action {
        Action::Read { offset: 0 }
    }

    fn buffers(&self) -> &[Buffer<'_>] {
        &self.1
    }

    fn complete(self: Box<Self>, result: block::Result<()>) {
        Box::new(self.0).complete(result);
    }

    fn park(self: Box<Self>) {}
}

#[test]
fn a_request_that_panics_when_it_ends_holds_up_nobody() {
    for disk in disks() {
        let panicked = Arc::new(AtomicU32::new(0));
        let memory = Box::leak(vec![0; 3 * 4096].into_boxed_slice());
        let start = memory.as_ptr().align_offset(4096);
        let buffers = vec![Buffer::new(&mut memory[start..start + 4096])];
        let read = PanicsAfterRead(Panics(panicked.clone()), buffers);
        disk.backend.submit(Box::new(read), Submitter::Hurried);
        let zeroes = Panics(panicked.clone());
        disk.backend.submit(Box::new(zeroes), Submitter::Hurried);
        wait_until("both have ended", || panicked.load(Ordering::SeqCst) == 2);
        let ends = Ends::new();
        for n in 0..100 {
            disk.backend
                .submit(ends.write(n, 0, &[n; 4096]), Submitter::Hurried);
        }
        for _ in 0..100 {
            ends.end().result.unwrap().unwrap();
        }
    }
}
