//! Peers that mean harm to disks that travel: one clear error, nothing is written that should not be, and the guest goes on.

mod double;

use double::Destination;
use double::played_disks::{
    BLOCK, SIZES, STRIPE, batch, commits, is_refused, move_altered, offer, play_source, raw,
    with_disks, zeroes,
};
use double::players::{Point, message_of, say, wanted};
use migration::Outcome;
use migration::progress::Verify;
use migration::vm::{VolumeOffer, Wish};
use migration::wire::batch::{BatchHeader, Encoding, MAX_RANGES, PageRange};
use migration::wire::blocks::BlockRange;
use migration::wire::control::{Message, Negotiate};
use migration::wire::kind::Kind;
use zerocopy::{FromBytes, IntoBytes};

/// A range that says it has so many bytes of payload.
fn with_payload(range: BlockRange, payload: u32) -> BlockRange {
    let mut bytes = range.as_bytes().to_vec();
    bytes[16..20].copy_from_slice(&payload.to_le_bytes());
    BlockRange::read_from_bytes(&bytes).unwrap()
}

#[test]
fn blocks_that_do_not_belong_are_refused() {
    let [first, second] = SIZES;
    let one = |range| batch(&[range], 0, 0);
    let cases = [
        ("beyond the disk", one(zeroes(1, 4096..8192))),
        ("across its end", one(zeroes(1, 0..4096))),
        ("data across its end", one(raw(1, 0..4096))),
        ("far beyond it", one(raw(0, 1 << 46..(1 << 46) + 4096))),
        ("at the end of numbers", {
            let end = u64::MAX - 4095;
            one(raw(0, end..u64::MAX - 511))
        }),
        ("of no disk", one(raw(2, 0..4096))),
        ("of the last number of all", one(raw(u16::MAX, 0..4096))),
        ("from the middle of a page", one(raw(0, 512..4096))),
        ("to the middle of a page", one(raw(0, 0..512))),
        ("between sectors", {
            let mut bytes = raw(0, 0..4096).as_bytes().to_vec();
            bytes[0] = 1;
            one(BlockRange::read_from_bytes(&bytes).unwrap())
        }),
        (
            "of two stripes",
            one(raw(0, STRIPE - BLOCK..STRIPE + BLOCK)),
        ),
        ("zeroes of two stripes", one(zeroes(0, 0..2 * STRIPE))),
        ("none", one(raw(0, 4096..4096))),
        ("no zeroes", one(zeroes(1, second..second))),
        (
            "data without payload",
            one(with_payload(raw(0, 0..4096), 0)),
        ),
        (
            "zeroes with payload",
            one(with_payload(zeroes(0, 0..4096), 512)),
        ),
        (
            "data with too much payload",
            one(with_payload(raw(0, 0..4096), 8192)),
        ),
        ("more than a batch may have", {
            let ranges = [raw(0, 0..STRIPE), raw(0, STRIPE..STRIPE + 4096)];
            batch(&ranges, 0, 0)
        }),
        (
            "more ranges than a batch may have",
            batch(&vec![zeroes(0, 0..4096); MAX_RANGES + 1], 0, 0),
        ),
        (
            "one that belongs and one that does not, before anything of them comes",
            batch(&[raw(0, 0..4096), raw(0, first..first + 4096)], 0, 0),
        ),
        ("in an unknown encoding", {
            let mut bytes = raw(0, 0..4096).as_bytes().to_vec();
            bytes[12] = 9;
            one(BlockRange::read_from_bytes(&bytes).unwrap())
        }),
    ];
    for (name, bytes) in cases {
        let played = play_source(with_disks(1, &SIZES), Point::Prepared, |source| {
            let _ = source.data[0].send(&bytes);
        });
        is_refused(name, played);
    }
}

#[test]
fn blocks_for_who_was_offered_no_disks_are_refused() {
    let played = play_source(wanted(), Point::Prepared, |source| {
        let _ = source.data[0].send(&batch(&[zeroes(0, 0..4096)], 0, 0));
    });
    is_refused("no disks", played);
}

/// Nothing of such a disk is placed, whoever says so: it would be taken for what the guest has written.
#[test]
fn blocks_of_a_disk_that_is_fetched_later_are_refused() {
    let later = VolumeOffer {
        wish: Wish::OnDemand,
        ..offer("later", SIZES[0])
    };
    for blocks in [
        batch(&[raw(0, 0..4096)], 4096, 1),
        batch(&[zeroes(0, 0..4096)], 0, 0),
    ] {
        let wanted = Negotiate {
            volumes: vec![later.clone()],
            ..with_disks(1, &[])
        };
        let played = play_source(wanted, Point::Prepared, |source| {
            let _ = source.data[0].send(&blocks);
        });
        is_refused("of a disk that is fetched later", played);
    }
}

#[test]
fn a_stripe_of_a_disk_that_two_streams_carry_is_refused() {
    let played = play_source(with_disks(2, &SIZES), Point::Prepared, |source| {
        for (block, data) in (0..).zip(&source.data) {
            let at = block * BLOCK;
            let _ = data.send(&batch(&[raw(0, at..at + 4096)], 4096, 1));
        }
    });
    is_refused("two streams", played);
}

#[test]
fn disks_that_cannot_be_are_refused() {
    let many: Vec<u64> = vec![512; 65];
    let twice = Negotiate {
        volumes: vec![offer("data", 512), offer("data", 512)],
        ..wanted()
    };
    let full = Negotiate {
        volumes: vec![VolumeOffer {
            allocated: 513,
            ..offer("data", 512)
        }],
        ..wanted()
    };
    let cases = [
        ("of no bytes", with_disks(1, &[0])),
        ("of half a sector", with_disks(1, &[256])),
        (
            "of 2^47 bytes and a sector",
            with_disks(1, &[(1 << 47) + 512]),
        ),
        ("of 2^63 bytes", with_disks(1, &[1 << 63])),
        ("of all bytes", with_disks(1, &[u64::MAX - 511])),
        ("too many", with_disks(1, &many)),
        ("one twice", twice),
        ("with more data than bytes", full),
    ];
    for (name, negotiate) in cases {
        let played = play_source(negotiate, Point::Prepared, |_| {
            panic!("{name} was accepted")
        });
        is_refused(name, played);
    }
}

/// What the first page of the first disk holds when the guest is here.
fn first_page(into: &Destination) -> Vec<u8> {
    into.disks[0].bytes()[..4096].to_vec()
}

#[test]
fn of_a_block_that_comes_twice_in_a_batch_the_last_one_counts() {
    let (outcome, into) = play_source(with_disks(1, &SIZES), Point::Prepared, |source| {
        let ranges = [raw(0, 0..4096), raw(0, 0..4096), zeroes(0, 4096..8192)];
        let mut bytes = batch(&ranges, 8192, 1);
        let last = bytes.len() - 4096;
        bytes[last..].fill(2);
        source.data[0].send(&bytes).unwrap();
        source.load();
        commits(source);
        source.say(&Message::Finish);
    });
    assert!(matches!(outcome, Outcome::Completed(_)), "{outcome:?}");
    assert!(first_page(&into) == [2; 4096], "the first one is there");
}

#[test]
fn what_comes_after_the_last_pass_is_refused() {
    let page = [PageRange::new(0, 1, Encoding::Raw)];
    let header = BatchHeader::of(1, &page);
    let pages = [header.as_bytes(), page.as_bytes(), &[1; 4096]].concat();
    let cases = [
        ("blocks", batch(&[raw(0, 0..4096)], 4096, 1)),
        ("zeroes", batch(&[zeroes(0, 0..4096)], 0, 1)),
        ("pages", pages),
        (
            "the end of a pass",
            BatchHeader::pass_end(2).as_bytes().to_vec(),
        ),
    ];
    for (name, bytes) in cases {
        let played = play_source(with_disks(1, &SIZES), Point::Loaded, |source| {
            let _ = source.data[0].send(&bytes);
        });
        is_refused(name, played);
    }
}

/// It began before the last pass was over, and would go on when the guest runs.
#[test]
fn a_batch_that_goes_on_after_the_last_pass_is_refused() {
    let bytes = batch(&[raw(0, 0..4096)], 4096, 1);
    let (begin, _) = bytes.split_at(bytes.len() - 4096);
    let played = play_source(with_disks(1, &SIZES), Point::Stopped, |source| {
        let pass = BatchHeader::pass_end(1);
        let bytes = [pass.as_bytes(), begin].concat();
        source.data[0].send(&bytes).unwrap();
        say(&*source.control, &message_of(Kind::LastPass));
    });
    is_refused("a batch that goes on", played);
}

#[test]
fn nothing_is_written_under_a_guest_that_runs() {
    let (outcome, into) = play_source(with_disks(1, &SIZES), Point::Loaded, |source| {
        commits(source);
        let _ = source.data[0].send(&batch(&[raw(0, 0..4096)], 4096, 1));
        source.say(&Message::Finish);
    });
    assert!(matches!(outcome, Outcome::Completed(_)), "{outcome:?}");
    assert!(first_page(&into) == [0; 4096], "it was written");
}

#[test]
fn a_destination_that_lies_of_the_disks_does_not_get_the_guest() {
    for verify in [Verify::Stream, Verify::Full] {
        let unaltered = move_altered(verify, |message| message);
        assert!(matches!(unaltered, Outcome::Completed(_)), "{unaltered:?}");
        for lie in [None, Some(String::new()), Some("0".repeat(16))] {
            let outcome = move_altered(verify, |message| match message {
                Message::Ready(mut ready) => {
                    ready.disks_digest.clone_from(&lie);
                    Message::Ready(ready)
                }
                other => other,
            });
            let Outcome::Failed(report) = outcome else {
                panic!("{lie:?}: {outcome:?}")
            };
            let error = report.error.unwrap();
            assert_eq!(error.root().id, "migration.digest-mismatch", "{lie:?}");
        }
    }
}

#[test]
fn a_destination_whose_flush_takes_for_ever_does_not_get_the_guest_in_time() {
    let outcome = move_altered(Verify::Stream, |message| match message {
        Message::PassPlaced(mut placed) => {
            placed.flush_us = placed.flush_us.map(|_| u64::MAX);
            Message::PassPlaced(placed)
        }
        other => other,
    });
    // The guest is never stopped: what it would cost is known.
    let Outcome::Failed(report) = outcome else {
        panic!("{outcome:?}")
    };
    let error = report.error.unwrap().to_string();
    assert!(error.contains("in phase precopy"), "{error}");
}
