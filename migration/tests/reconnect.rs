//! The link is lost while the guest is copied, any number of times: a new one goes on from what is placed, or it fails with
//! the truth.

mod double;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use double::disks::MemoryDisk;
use double::{Destination, Guest, Source, Witness};
use migration::disk_modes::{DiskChoice, DiskMode};
use migration::journal::MemoryJournal;
use migration::observation::Side;
use migration::progress::{Event, Report, Verify};
use migration::request::MigrateRequest;
use migration::steering::Steering;
use migration::transport::memory::{self, Fault, Injection, MemoryConnect};
use migration::units::Span;
use migration::{MigrationId, Outcome, destination, source};

const BLOCK: usize = 64 << 10;

const BUSY: Guest = Guest::Writes {
    pages: 300,
    pause: Duration::from_micros(50),
};

#[derive(Clone, Copy)]
struct Setting {
    streams: u8,
    verify: Verify,
    guest: Guest,
    disks: &'static [usize],
    mode: DiskMode,
}

const MEMORY: Setting = Setting {
    streams: 3,
    verify: Verify::Stream,
    guest: BUSY,
    disks: &[],
    mode: DiskMode::Auto,
};

const DISKS: Setting = Setting {
    streams: 2,
    verify: Verify::Full,
    guest: BUSY,
    disks: &[70 * BLOCK + 1536, 512],
    mode: DiskMode::Precopy,
};

/// What is written to them goes beside the passes.
const MIRRORED: Setting = Setting {
    mode: DiskMode::Mirror,
    ..DISKS
};

fn options(setting: Setting) -> source::Options {
    source::Options {
        io_timeout: Duration::from_millis(500),
        storage_timeout: Duration::from_millis(500),
        peer_timeout: Duration::from_millis(500),
        prepare_timeout: Duration::from_secs(5),
        resolve_for: Duration::from_millis(300),
        ..source::Options::new(
            MigrationId::random().unwrap(),
            MigrateRequest {
                streams: Some(setting.streams),
                verify: setting.verify,
                disks: match setting.disks.is_empty() {
                    true => Vec::new(),
                    false => vec![DiskChoice::new(None, setting.mode)],
                },
                reconnect_for: Span(Duration::from_secs(5)),
                ..MigrateRequest::new("unix:/there")
            },
        )
    }
}

fn receiving() -> destination::Options {
    destination::Options {
        io_timeout: Duration::from_millis(500),
        peer_timeout: Duration::from_millis(500),
        ..destination::Options::default()
    }
}

struct Ran {
    here: Outcome,
    there: Outcome,
    events: Vec<Event>,
}

impl Ran {
    fn reports(&self) -> [&Report; 2] {
        [self.here.report(), self.there.report()]
    }
}

/// Moves a guest on a network on which `injections` strike, and checks what must hold whatever came of it.
fn run(setting: Setting, injections: &[Injection]) -> (Ran, MemoryConnect) {
    let what = format!("{injections:?}");
    let witness: Arc<Witness> = Arc::default();
    let mut vm = Source::new(4000, setting.guest, &witness);
    vm.fill(0, 0, 1500);
    vm.fill(1, 10, 700);
    vm.disks = (0..)
        .zip(setting.disks)
        .map(|(number, &size)| MemoryDisk::new(&format!("disk{number}"), size))
        .collect();
    for disk in &vm.disks {
        let size = disk.bytes().len();
        disk.guest_writes(size / 1024 * 512, &vec![2; size - size / 1024 * 512]);
    }
    let mut into = Destination::new(&witness);
    let (connect, listen) = memory::network(injections);
    let (steering, receives) = (Steering::new(), Steering::new());
    let (ours, theirs) = (MemoryJournal::default(), MemoryJournal::default());
    let options = options(setting);
    let (here, there) = std::thread::scope(|scope| {
        let there = scope
            .spawn(|| destination::receive(&listen, &mut into, &receiving(), &receives, &theirs));
        let over = AtomicBool::new(false);
        let here = std::thread::scope(|scope| {
            scope.spawn(|| write_to_disks(&vm, &over));
            let here = source::migrate(&vm, &connect, &options, &steering, &ours);
            over.store(true, Ordering::Release);
            here
        });
        double::ends_within(&there, Duration::from_secs(20));
        receives.cancel();
        (here, there.join().unwrap())
    });
    let events = steering.past();
    match &here {
        Outcome::Completed(_) => {
            assert!(matches!(there, Outcome::Completed(_)), "{what}: {there:?}");
            assert!(here.report().verified, "{what}");
            assert!(vm.contents() == into.contents(), "{what}: memory differs");
            for (ours, theirs) in vm.disks.iter().zip(&into.disks) {
                assert!(ours.bytes() == theirs.bytes(), "{what}: a disk differs");
                assert!(theirs.is_flushed(), "{what}: it may be lost");
            }
            assert_eq!(witness.running(), (false, true), "{what}");
        }
        // The commit, or its answer, was lost; what comes of that is the hand-over's.
        Outcome::HandoverUnknown(_) => {}
        _ => {
            assert!(vm.is_untouched(), "{what}: {here:?}");
            assert!(into.has_nothing(), "{what}: {there:?}");
            assert_eq!(witness.running(), (true, false), "{what}");
        }
    }
    let ran = Ran {
        here,
        there,
        events,
    };
    (ran, connect)
}

/// The guest writes to its disks, and discards, while it runs.
fn write_to_disks(vm: &Source, over: &AtomicBool) {
    let mut turn = 0_usize;
    while !over.load(Ordering::Acquire) && !vm.disks.is_empty() {
        turn += 1;
        vm.with_disk(turn % vm.disks.len(), |disk| {
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

/// Whether the guest was being copied, and not stopped, when the link was lost first.
fn was_copying(ran: &Ran) -> bool {
    let lost = ran.events.iter();
    lost.clone()
        .any(|event| matches!(event, Event::LinkLost { .. }))
}

fn cut(side: Side, frame: u64) -> Injection {
    Injection {
        side,
        frame,
        fault: Fault::Cut,
    }
}

/// Runs migrations, each with the injections of its number, until not all of them strike; how many have lost their link
/// while they copied, and how many new ones there were.
fn until_one_misses(
    setting: Setting,
    injections: impl Fn(u64) -> Vec<Injection> + Sync,
) -> [u64; 2] {
    let (next, lost, again) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    assert!(number < 1000, "no end of frames");
                    let injections = injections(number);
                    let (ran, connect) = run(setting, &injections);
                    let [ours, theirs] = ran.reports();
                    lost.fetch_add(was_copying(&ran).into(), Ordering::Relaxed);
                    again.fetch_add(ours.reconnects.into(), Ordering::Relaxed);
                    if was_copying(&ran) {
                        // The last loss may be of a guest that stands still.
                        assert!(ours.reconnects > 0, "{injections:?}: {:?}", ran.here);
                    }
                    if matches!(ran.here, Outcome::Completed(_)) {
                        // One that was lost again before it stood counts where it was welcomed.
                        assert!(ours.reconnects <= theirs.reconnects, "{injections:?}");
                    }
                    if connect.struck() < injections.len() as u64 {
                        over.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    [lost, again].map(AtomicU64::into_inner)
}

#[test]
fn a_link_that_is_cut_at_any_frame_is_made_anew() {
    for setting in [MEMORY, DISKS] {
        for side in [Side::Source, Side::Destination] {
            let [lost, again] = until_one_misses(setting, |frame| vec![cut(side, frame)]);
            println!("{side:?}: lost {lost}, made anew {again}");
            assert!(lost > 0 && lost == again, "{side:?}: {lost}, {again}");
        }
    }
}

/// There are as many frames as the guest writes: some of them.
#[test]
fn a_link_that_carries_a_mirrored_disk_is_made_anew() {
    let [lost, again] = until_one_misses(MIRRORED, |number| vec![cut(Side::Source, number * 11)]);
    assert!(lost > 0 && lost == again, "{lost}, {again}");
}

#[test]
fn a_link_is_made_anew_however_often_it_is_cut() {
    for setting in [MEMORY, DISKS] {
        // Twice, at all distances; and on and on.
        let [lost, again] = until_one_misses(setting, |number| {
            vec![cut(Side::Source, 12), cut(Side::Source, 13 + number * 3)]
        });
        assert!(again > 10 && again >= lost, "{lost}, {again}");
        let often: Vec<_> = (1..40).map(|n| cut(Side::Source, 8 + n * 7)).collect();
        let (ran, _) = run(setting, &often);
        let [ours, theirs] = ran.reports();
        assert!(ours.reconnects > 3, "{:?}", ran.here);
        assert!(ours.reconnects <= theirs.reconnects);
    }
}

/// How many bytes go over the wire where nothing strikes.
fn usual_bytes(setting: Setting) -> u64 {
    let (ran, _) = run(setting, &[]);
    assert!(matches!(ran.here, Outcome::Completed(_)), "{:?}", ran.here);
    ran.here.report().wire_bytes
}

#[test]
fn it_goes_on_from_what_is_placed_in_the_middle_of_a_pass() {
    let setting = Setting {
        guest: Guest::Idle,
        streams: 1,
        ..MEMORY
    };
    let usual = usual_bytes(setting);
    // Late in the first pass, which is nearly all of it; a slow machine has some pings beside.
    let (_, connect) = run(setting, &[]);
    let frames = connect.frames(Side::Source);
    let (ran, _) = run(setting, &[cut(Side::Source, frames * 2 / 3)]);
    let report = ran.here.report();
    assert!(matches!(ran.here, Outcome::Completed(_)), "{:?}", ran.here);
    assert_eq!(report.reconnects, 1);
    assert!(
        report.wire_bytes < usual * 3 / 2,
        "{} bytes in place of {usual}",
        report.wire_bytes
    );
}
