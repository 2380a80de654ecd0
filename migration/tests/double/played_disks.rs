//! Destinations and sources that are played, of guests with disks.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use migration::journal::MemoryJournal;
use migration::progress::Verify;
use migration::request::MigrateRequest;
use migration::steering::Steering;
use migration::transport::memory;
use migration::units::Span;
use migration::vm::{VolumeOffer, Wish};
use migration::wire::batch::BatchHeader;
use migration::wire::blocks::{BlockEncoding, BlockRange};
use migration::wire::capabilities::Capabilities;
use migration::wire::control::{Message, Negotiate};
use migration::{MigrationId, Outcome, destination, source};
use zerocopy::IntoBytes;

use super::disks::MemoryDisk;
use super::players::{PlayedSource, Point, hear, relay, wanted};
use super::{Destination, Guest, Source, Witness};

pub const BLOCK: u64 = 64 << 10;
pub const STRIPE: u64 = 2 << 20;
/// Of two disks.
pub const SIZES: [u64; 2] = [2 * STRIPE + 1536, 512];

pub fn offer(id: &str, size: u64) -> VolumeOffer {
    VolumeOffer {
        id: id.into(),
        size,
        allocated: 0,
        wish: Wish::Travels,
        format: None,
        served: None,
        behind: Vec::new(),
    }
}

/// What a source wants that sends disks of these sizes.
pub fn with_disks(streams: u8, sizes: &[u64]) -> Negotiate {
    let offers = (0..).zip(sizes);
    Negotiate {
        streams,
        volumes: offers
            .map(|(number, size)| offer(&format!("disk{number}"), *size))
            .collect(),
        ..wanted()
    }
}

/// A destination against a source that has come to `point` and then does what `play` does; what there is of it then.
pub fn play_source(
    negotiate: Negotiate,
    point: Point,
    play: impl FnOnce(&PlayedSource) + Send,
) -> (Outcome, Destination) {
    let into = Destination::new(&Arc::default());
    play_source_to(into, negotiate, point, play)
}

/// The same, of the destination `into`.
pub fn play_source_to(
    into: Destination,
    negotiate: Negotiate,
    point: Point,
    play: impl FnOnce(&PlayedSource) + Send,
) -> (Outcome, Destination) {
    play_source_as(Capabilities::OURS, into, negotiate, point, play)
}

/// The same, of a source that tells these capabilities.
pub fn play_source_as(
    told: Capabilities,
    mut into: Destination,
    negotiate: Negotiate,
    point: Point,
    play: impl FnOnce(&PlayedSource) + Send,
) -> (Outcome, Destination) {
    let (connect, listen) = memory::network(&[]);
    let outcome = std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            let options = destination::Options {
                io_timeout: Duration::from_secs(2),
                peer_timeout: Duration::from_secs(2),
                progress_timeout: Duration::from_secs(5),
                ..destination::Options::default()
            };
            let journal = MemoryJournal::default();
            destination::receive(&listen, &mut into, &options, &Steering::new(), &journal)
        });
        if let Some(source) = PlayedSource::telling(told, &connect, negotiate, point) {
            play(&source);
            source.see_out();
        }
        there.join().unwrap()
    });
    (outcome, into)
}

#[track_caller]
pub fn is_refused(name: &str, (outcome, into): (Outcome, Destination)) {
    let Outcome::Failed(report) = &outcome else {
        panic!("{name}: {outcome:?}")
    };
    let error = report.error.as_ref().unwrap();
    assert_eq!(error.root().id, "migration.protocol", "{name}: {error:?}");
    assert!(into.has_nothing(), "{name}: something is left");
}

pub fn raw(volume: u16, range: Range<u64>) -> BlockRange {
    BlockRange::new(volume, range, BlockEncoding::Raw)
}

pub fn zeroes(volume: u16, range: Range<u64>) -> BlockRange {
    BlockRange::new(volume, range, BlockEncoding::Zero)
}

/// A batch of `ranges` and `payload` bytes, all the same.
pub fn batch(ranges: &[BlockRange], payload: usize, byte: u8) -> Vec<u8> {
    let header = BatchHeader::of(1, ranges);
    [header.as_bytes(), ranges.as_bytes(), &vec![byte; payload]].concat()
}

/// Says all that a source says once its state is loaded; the destination runs the guest then.
pub fn commits(source: &PlayedSource) {
    source.say(&Message::Commit);
    let answer = hear(&*source.control);
    assert!(matches!(answer, Some(Message::Committed(_))), "{answer:?}");
}

/// Moves a guest with a disk to a destination whose messages `alter` changes on their way.
pub fn move_altered(verify: Verify, alter: impl Fn(Message) -> Message + Sync) -> Outcome {
    move_altered_to(&[], verify, alter)
}

/// The same, to one that has these disks before.
pub fn move_altered_to(
    existing: &[(String, Vec<u8>)],
    verify: Verify,
    alter: impl Fn(Message) -> Message + Sync,
) -> Outcome {
    let ((connect, between), (onwards, listen)) = (memory::network(&[]), memory::network(&[]));
    let witness: Arc<Witness> = Arc::default();
    let mut vm = Source::new(64, Guest::Idle, &witness);
    vm.disks = vec![MemoryDisk::new("data", SIZES[0] as usize)];
    vm.disks[0].guest_writes(0, &[1; 8192]);
    let mut into = Destination::new(&witness);
    into.existing = existing.to_vec();
    let request = MigrateRequest {
        streams: Some(1),
        verify,
        timeout: Some(Span(Duration::from_secs(2))),
        ..MigrateRequest::new("unix:/there")
    };
    let options = source::Options {
        io_timeout: Duration::from_secs(2),
        peer_timeout: Duration::from_secs(2),
        ..source::Options::new(MigrationId::random().unwrap(), request)
    };
    let receiving = Steering::new();
    let here = std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            let (options, journal) = (destination::Options::default(), MemoryJournal::default());
            destination::receive(&listen, &mut into, &options, &receiving, &journal)
        });
        scope.spawn(|| relay(&between, &onwards, &alter));
        let journal = MemoryJournal::default();
        let here = source::migrate(&vm, &connect, &options, &Steering::new(), &journal);
        receiving.cancel();
        there.join().unwrap();
        here
    });
    match here {
        Outcome::Completed(_) => assert_eq!(witness.running(), (false, true)),
        _ => {
            assert!(vm.is_untouched(), "{here:?}");
            assert!(into.has_nothing(), "{here:?}");
            assert_eq!(witness.running(), (true, false));
        }
    }
    here
}
