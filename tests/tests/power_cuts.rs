//! Power that fails, at any moment of a disk's move: what is found afterwards on the image that is the disk holds
//! everything that its guest had flushed.
//!
//! Each image is recorded below all that the VM lays over it; the disk is made from the recording as a power cut at a
//! point would have left it, and judged by its own units. `VMM_TEST_POWER_CUTS` says at how many points of each image.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use block::recorder::Recording;
use block::{Access, Content, RawImage};
use tests::Host;
use tests::blackbox::disk_load::{counts, goes_on, ready};
use tests::blackbox::{Console, Guest, Migration, Pair, Vms, guest_lock, images};
use tests::disk_judge::{Judge, Moment};
use tests::probe::DiskReady;

const VARIABLE: &str = "VMM_DEBUG_DISK_RECORDINGS";
const SIZE: u64 = 4 << 20;
const LOAD: &str = "depth=16,start=fill,length=2M,read=10,discard=10,zeroes=10,size=4K/16K/64K,flush=12,interval_ms=100,\
                    rate=400";

fn cuts() -> usize {
    let told = std::env::var("VMM_TEST_POWER_CUTS").ok();
    told.and_then(|told| told.parse().ok()).unwrap_or(60)
}

/// A host on which all images are recorded.
fn recorded(folder: &Path) -> Host {
    fs::create_dir(folder).expect("folder");
    let host = Host::new().expect("host");
    host.with(VARIABLE, folder.to_str().expect("text"))
}

/// What image `number` of a process was given so far.
fn recording(folder: &Path, process: u32, number: u32) -> Recording {
    let path = folder.join(format!("{process}-{number}.recording"));
    Recording::open(&path).expect("recording")
}

/// A load's units on images that power cuts have left.
struct Cuts {
    folder: tempfile::TempDir,
    judge: Judge,
}

impl Cuts {
    fn of(ready: &DiskReady) -> Self {
        Self {
            folder: tempfile::tempdir().expect("folder"),
            judge: Judge::new(ready).expect("judge"),
        }
    }

    /// Power fails at points from `first` on, spread over all of them, with the first and the last; at least `flushed` is
    /// there each time.
    #[track_caller]
    fn hold(&self, recording: &Recording, first: usize, flushed: u64) {
        let last = recording.points();
        assert!(
            last > first + 20,
            "{last} points, of which {first} do not count"
        );
        let cuts = cuts().max(2);
        let mut seen = 0;
        for cut in 0..cuts {
            let point = first + (last - first) * cut / (cuts - 1);
            let path = self.cut(recording, point, cut as u64);
            let told = self.judge.flushed_by(&path).expect("image");
            let moment = Moment {
                flushed: told.max(flushed),
                submitted: None,
            };
            let wrong = self.judge.judge(&path, moment).expect("image");
            assert!(
                wrong.is_empty(),
                "power fails at point {point} of {last}, seed {cut}, {moment:?}: {wrong:?}"
            );
            seen = seen.max(told);
        }
        assert!(seen > flushed, "the load flushed nothing: {seen}");
    }

    /// The image as power that fails at `point` leaves it.
    fn cut(&self, recording: &Recording, point: usize, seed: u64) -> PathBuf {
        let path = self.folder.path().join("cut");
        File::create(&path)
            .and_then(|file| file.set_len(SIZE))
            .expect("image");
        let image = RawImage::open(&path, Access::ReadWrite, Content::Raw).expect("image");
        recording.cut_power(point, seed, &image).expect("image");
        path
    }
}

/// What load 0 has told is flushed.
fn flushed(console: &mut Console) -> u64 {
    counts(console, 0)
        .last()
        .expect("the load has told of itself")
        .flushed
}

fn holds_what_was_flushed_when_it_moves_on_its_host(mode: &str) {
    let Some(_lock) = guest_lock() else { return };
    let records = tempfile::tempdir().expect("folder");
    let folder = records.path().join("host");
    let pair = Pair::of(recorded(&folder), Host::new().expect("host"));
    let host = &pair.source;
    let disk = images::sparse(host.path(), "data.raw", SIZE);
    let guest = Guest::idle().disk_load(&disk, LOAD);
    let mut console = host.run("guest", &guest);
    let ready = ready(&mut console, 0);
    let process = host.pid("guest");
    goes_on(&mut console, 0, 100);

    let to = host.path().join("new.raw");
    let to = to.to_str().expect("text");
    let _ = host
        .vmm([
            "disk",
            "move",
            "guest:data",
            "--to",
            to,
            "--mode",
            mode,
            "--bandwidth",
            "2MiB/s",
        ])
        .success();
    // In this order: the recording holds all that is known to be flushed.
    let known = flushed(&mut console);
    let there = recording(&folder, process, 1).points();
    goes_on(&mut console, 0, 200);
    host.stop("guest");

    let cuts = Cuts::of(&ready);
    cuts.hold(&recording(&folder, process, 0), 0, 0);
    cuts.hold(&recording(&folder, process, 1), there, known);
    pair.is_clean();
}

#[test]
fn a_disk_that_moves_on_its_host_holds_what_was_flushed_whenever_power_fails() {
    holds_what_was_flushed_when_it_moves_on_its_host("precopy");
}

#[test]
fn a_disk_that_is_mirrored_on_its_host_holds_what_was_flushed_whenever_power_fails() {
    holds_what_was_flushed_when_it_moves_on_its_host("mirror");
}

#[test]
fn a_disk_that_travels_holds_what_was_flushed_whenever_power_fails() {
    let Some(_lock) = guest_lock() else { return };
    let records = tempfile::tempdir().expect("folder");
    let (here, there) = (records.path().join("here"), records.path().join("there"));
    let pair = Pair::of(recorded(&here), recorded(&there));
    let disk = images::sparse(pair.source.path(), "data.raw", SIZE);
    let guest = Guest::idle().disk_load(&disk, LOAD);
    let mut console = pair.source.run("guest", &guest);
    let ready = ready(&mut console, 0);
    let left = pair.source.pid("guest");
    goes_on(&mut console, 0, 100);

    let image = pair.destination.path().join("there.raw");
    let place = format!("data={},create", image.display());
    let address = pair
        .destination
        .receive_with("there", "127.0.0.1:0", &["--disk", &place]);
    let came = pair.destination.pid("there");
    // All that the load writes to, at that rate, is within the limit: it converges however fast the machine is.
    let options = [
        "--disks",
        "precopy",
        "--bandwidth",
        "4MiB/s",
        "--downtime-limit",
        "2s",
    ];
    Migration::start(&pair.source, "guest", &address, &options)
        .finish()
        .completed();
    let known = flushed(&mut console);
    let arrived = recording(&there, came, 0).points();
    console.moves_to(&pair.destination, "there");
    goes_on(&mut console, 0, 200);
    pair.destination.stop("there");

    let cuts = Cuts::of(&ready);
    cuts.hold(&recording(&here, left, 0), 0, 0);
    cuts.hold(&recording(&there, came, 0), arrived, known);
    pair.is_clean();
}
