//! A fault at every frame that either side sends: whatever happens, one side has the guest, whole,
//! and the other has nothing.

mod double;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use double::disks::MemoryDisk;
use double::{Destination, Guest, Source, Witness};
use migration::journal::{Journal, MemoryJournal};
use migration::observation::Side;
use migration::progress::Verify;
use migration::request::MigrateRequest;
use migration::steering::Steering;
use migration::transport::memory::{self, Fault, Injection};
use migration::units::Span;
use migration::{MigrationId, Outcome, destination, source};

const FAULTS: [Fault; 6] = [
    Fault::Cut,
    Fault::Partition,
    Fault::Stall,
    Fault::Corrupt,
    Fault::Truncate,
    Fault::Delay(Duration::from_millis(5)),
];

#[derive(Clone, Copy)]
struct Setting {
    name: &'static str,
    streams: u8,
    verify: Verify,
    guest: Guest,
    is_paused: bool,
    /// Sizes of disks that travel.
    disks: &'static [usize],
    /// How long a new link is tried.
    reconnect_for: Duration,
}

const BUSY: Guest = Guest::Writes {
    pages: 24,
    pause: Duration::from_micros(200),
};

const SETTINGS: [Setting; 7] = [
    Setting {
        name: "busy, two streams",
        streams: 2,
        verify: Verify::Stream,
        guest: BUSY,
        is_paused: false,
        disks: &[],
        reconnect_for: Duration::ZERO,
    },
    Setting {
        name: "idle, one stream, fully verified",
        streams: 1,
        verify: Verify::Full,
        guest: Guest::Idle,
        is_paused: false,
        disks: &[],
        reconnect_for: Duration::ZERO,
    },
    Setting {
        name: "paused by its user",
        streams: 1,
        verify: Verify::Stream,
        guest: Guest::Idle,
        is_paused: true,
        disks: &[],
        reconnect_for: Duration::ZERO,
    },
    Setting {
        name: "busy, five streams",
        streams: 5,
        verify: Verify::Stream,
        guest: BUSY,
        is_paused: false,
        disks: &[],
        reconnect_for: Duration::ZERO,
    },
    Setting {
        name: "with disks, two streams",
        streams: 2,
        verify: Verify::Stream,
        guest: Guest::Idle,
        is_paused: false,
        // The last page and the last block are short.
        disks: &[40 * BLOCK + 1536, 512],
        reconnect_for: Duration::ZERO,
    },
    Setting {
        name: "busy, two streams, comes again",
        streams: 2,
        verify: Verify::Stream,
        guest: BUSY,
        is_paused: false,
        disks: &[],
        reconnect_for: Duration::from_millis(300),
    },
    Setting {
        name: "with disks, two streams, comes again",
        streams: 2,
        verify: Verify::Full,
        guest: BUSY,
        is_paused: false,
        disks: &[40 * BLOCK + 1536, 512],
        reconnect_for: Duration::from_millis(300),
    },
];

const BLOCK: usize = 64 << 10;

fn source_options(setting: Setting) -> source::Options {
    source::Options {
        io_timeout: Duration::from_millis(400),
        storage_timeout: Duration::from_millis(400),
        peer_timeout: Duration::from_millis(400),
        prepare_timeout: Duration::from_millis(1500),
        resolve_for: Duration::from_millis(300),
        ..source::Options::new(
            MigrationId::random().unwrap(),
            MigrateRequest {
                streams: Some(setting.streams),
                verify: setting.verify,
                reconnect_for: Span(setting.reconnect_for),
                ..MigrateRequest::new("unix:/there")
            },
        )
    }
}

/// Runs one migration with one fault, checks what must hold, and says whether the fault struck.
fn try_once(setting: Setting, injection: Injection) -> bool {
    let what = format!("{}: {injection:?}", setting.name);
    let witness: Arc<Witness> = Arc::default();
    let mut vm = Source::new(96, setting.guest, &witness);
    if setting.is_paused {
        vm = vm.paused_by_user();
    }
    vm.fill(0, 0, 30);
    vm.fill(1, 10, 12);
    vm.disks = (0..)
        .zip(setting.disks)
        .map(|(n, &size)| MemoryDisk::new(&format!("disk{n}"), size))
        .collect();
    for disk in &vm.disks {
        let size = disk.bytes().len();
        disk.guest_writes(0, &[1; 512]);
        disk.guest_writes(size / 1024 * 512, &vec![2; size - size / 1024 * 512]);
    }
    let over = AtomicBool::new(false);
    let mut into = Destination::new(&witness);
    let (ours, theirs) = (MemoryJournal::default(), MemoryJournal::default());
    let (connect, listen) = memory::network(&[injection]);
    let options = source_options(setting);
    let stop = AtomicBool::new(false);
    let receiving = Steering::new();
    let (here, there) = std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            let options = destination::Options {
                io_timeout: Duration::from_millis(400),
                peer_timeout: Duration::from_millis(400),
                hello_timeout: Duration::from_millis(200),
                ..destination::Options::default()
            };
            let outcome = destination::receive(&listen, &mut into, &options, &receiving, &theirs);
            destination::answer_resolve(&listen, &theirs, &stop).unwrap();
            outcome
        });
        scope.spawn(|| write_to_disks(&vm, &over));
        let here = source::migrate(&vm, &connect, &options, &Steering::new(), &ours);
        over.store(true, Ordering::Release);
        receiving.cancel();
        stop.store(true, Ordering::Release);
        (here, there.join().unwrap())
    });
    let ran = match &here {
        Outcome::Completed(_) => true,
        Outcome::Failed(report) => {
            assert!(report.error.is_some(), "{what}: no cause");
            false
        }
        Outcome::HandoverUnknown(_) => {
            assert!(!witness.running().0, "{what}: source runs though unknown");
            resolve_later(&vm, options.id, &theirs, &ours)
        }
        other => panic!("{what}: {other:?}"),
    };
    if ran {
        assert!(
            matches!(there, Outcome::Completed(_)),
            "{what}: {here:?} but {there:?}"
        );
        assert!(vm.contents() == into.contents(), "{what}: memory differs");
        assert_eq!(into.disks.len(), vm.disks.len(), "{what}");
        for (ours, theirs) in vm.disks.iter().zip(&into.disks) {
            assert!(ours.bytes() == theirs.bytes(), "{what}: a disk differs");
            assert!(theirs.is_flushed(), "{what}: it may be lost");
        }
        let marked = vm.disks_marked.load(Ordering::SeqCst);
        assert_eq!(
            marked,
            !vm.disks.is_empty(),
            "{what}: what is left tells no truth"
        );
        assert_eq!(into.state.as_deref(), Some(vm.state.as_slice()), "{what}");
        assert!(vm.released.load(Ordering::SeqCst), "{what}: not released");
        assert!(
            vm.memory_released.load(Ordering::SeqCst),
            "{what}: memory is kept"
        );
        let expected = if setting.is_paused { (0, 1) } else { (1, 0) };
        assert_eq!((into.started, into.held), expected, "{what}");
    } else {
        assert!(
            vm.is_untouched(),
            "{what}: the source is not as before: {here:?}"
        );
        assert!(into.has_nothing(), "{what}: something is left: {there:?}");
        assert!(
            !matches!(there, Outcome::Completed(_)),
            "{what}: {here:?} but {there:?}"
        );
    }
    let runs = (!ran && !setting.is_paused, ran && !setting.is_paused);
    assert_eq!(witness.running(), runs, "{what}: {here:?} / {there:?}");
    connect.struck() > 0
}

/// The guest writes to its disks, and discards, while it runs and they may be on their way.
fn write_to_disks(vm: &Source, over: &AtomicBool) {
    let mut turn = 0_usize;
    while !over.load(Ordering::Acquire) && !vm.disks.is_empty() {
        turn += 1;
        let disk = turn % vm.disks.len();
        vm.with_disk(disk, |disk| {
            let sectors = disk.bytes().len() / 512;
            let offset = turn * 7919 % sectors * 512;
            match turn % 5 {
                0 => disk.guest_discards(offset..offset + 512),
                _ => disk.guest_writes(offset, &[turn as u8 | 1; 512]),
            }
        });
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Asks the destination after the network is whole again, twice.
fn resolve_later(vm: &Source, id: MigrationId, theirs: &dyn Journal, ours: &dyn Journal) -> bool {
    let (connect, listen) = memory::network(&[]);
    let stop = AtomicBool::new(false);
    let resolution = std::thread::scope(|scope| {
        scope.spawn(|| destination::answer_resolve(&listen, theirs, &stop).unwrap());
        let first = source::resolve(&connect, id, ours).unwrap();
        assert_eq!(
            source::resolve(&connect, id, ours).unwrap(),
            first,
            "another answer"
        );
        stop.store(true, Ordering::Release);
        first
    });
    source::settle(vm, id, resolution, ours).unwrap();
    resolution == source::Resolution::Ran
}

/// Lets `fault` strike every frame of `side`, until a run has no such frame any more.
fn strike_every_frame(setting: Setting, side: Side, fault: Fault) -> u64 {
    let next = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let frame = next.fetch_add(1, Ordering::Relaxed);
                    assert!(frame < 1000, "no end of frames");
                    if !try_once(setting, Injection { side, frame, fault }) {
                        over.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    next.into_inner()
}

fn strike_both_sides(setting: Setting) {
    for fault in FAULTS {
        for side in [Side::Source, Side::Destination] {
            let began = std::time::Instant::now();
            let runs = strike_every_frame(setting, side, fault);
            assert!(runs > 6, "{}: only {runs} runs", setting.name);
            println!(
                "{}, {side:?}, {fault:?}: {runs} runs, {:?}",
                setting.name,
                began.elapsed()
            );
        }
    }
}

#[test]
fn one_side_has_the_guest_whatever_strikes_a_busy_one() {
    strike_both_sides(SETTINGS[0]);
}

#[test]
fn one_side_has_the_guest_whatever_strikes_a_fully_verified_one() {
    strike_both_sides(SETTINGS[1]);
}

#[test]
fn a_paused_guest_stays_paused_whatever_strikes() {
    strike_both_sides(SETTINGS[2]);
}

#[test]
fn one_side_has_the_guest_whatever_strikes_many_streams() {
    strike_both_sides(SETTINGS[3]);
}

#[test]
fn one_side_has_the_guest_and_its_disks_whatever_strikes() {
    strike_both_sides(SETTINGS[4]);
}

#[test]
fn one_side_has_the_guest_whatever_strikes_one_whose_source_comes_again() {
    strike_both_sides(SETTINGS[5]);
}

#[test]
fn one_side_has_the_guest_and_its_disks_whatever_strikes_one_whose_source_comes_again() {
    strike_both_sides(SETTINGS[6]);
}
