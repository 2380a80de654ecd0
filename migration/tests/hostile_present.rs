//! Peers that mean harm with blocks that may be there already: nobody gets what another one's image held, and nothing is left
//! out that is not there.

mod double;

use std::ops::Range;
use std::sync::Arc;

use double::Destination;
use double::played_disks::{
    BLOCK, SIZES, STRIPE, batch, commits, is_refused, move_altered_to, play_source_as,
    play_source_to, raw, with_disks, zeroes,
};
use double::players::{Point, hear, message_of};
use migration::Outcome;
use migration::progress::Verify;
use migration::wire::batch::BatchHeader;
use migration::wire::blocks::{BlockEncoding, BlockRange};
use migration::wire::capabilities::Capabilities;
use migration::wire::control::{BlockDigests, BlocksPresent, Message, SomeBlocks};
use migration::wire::kind::Kind;
use zerocopy::IntoBytes;

/// A destination whose first disk was there before, full of ones.
fn with_one_before() -> Destination {
    let mut into = Destination::new(&Arc::default());
    into.existing = vec![("disk0".into(), vec![1; SIZES[0] as usize])];
    into
}

/// A question about these blocks of a disk, that they are not the same.
fn question(volume: u32, first: u64, bits: u64) -> Message {
    let of = SomeBlocks {
        volume,
        first,
        bits,
    };
    let digests = vec![[0; 16]; bits.count_ones() as usize];
    Message::BlockDigests(BlockDigests { of, digests })
}

fn present(volume: u16, range: Range<u64>) -> BlockRange {
    BlockRange::new(volume, range, BlockEncoding::Present)
}

/// A whole disk of zeroes as its source says it.
fn all_zeroes() -> Vec<BlockRange> {
    let size = SIZES[0];
    let stripes = (0..size).step_by(STRIPE as usize);
    let ranges = stripes.map(|start| zeroes(0, start..(start + STRIPE).min(size)));
    ranges.collect()
}

#[test]
fn questions_that_cannot_be_are_refused() {
    // 64 blocks and a short one.
    let cases = [
        ("beyond the disk", question(0, 64, 0b10)),
        ("far beyond it", question(0, 1 << 40, 1)),
        ("at the end of numbers", question(0, u64::MAX - 63, 1 << 63)),
        ("of a disk that was empty", question(1, 0, 1)),
        ("of no disk", question(2, 0, 1)),
        ("of the last number of all", question(u32::MAX, 0, 1)),
        ("from the middle of a word", question(0, 1, 1)),
        ("about none", question(0, 0, 0)),
    ];
    for (name, question) in cases {
        let into = with_one_before();
        let played = play_source_to(into, with_disks(1, &SIZES), Point::Prepared, |source| {
            source.say(&question);
        });
        is_refused(name, played);
    }
}

/// What a destination holds is nobody's but who has it too.
#[test]
fn blocks_that_were_not_found_are_not_said_to_be_there() {
    let cases = [
        (
            "that was asked about and differs",
            vec![present(0, 0..BLOCK)],
        ),
        ("of which nobody asked", vec![present(0, BLOCK..2 * BLOCK)]),
        ("a part of one", vec![present(0, 0..4096)]),
        ("of a disk that was empty", vec![present(1, 0..512)]),
        (
            "that was written over",
            vec![
                zeroes(0, 2 * BLOCK..3 * BLOCK),
                present(0, 2 * BLOCK..3 * BLOCK),
            ],
        ),
        (
            "two, of which one was found",
            vec![present(0, BLOCK..3 * BLOCK)],
        ),
    ];
    let ones = |token: [u8; 16]| {
        let key = blake3::derive_key("vmm migration block digest v1", &token);
        let hash = blake3::keyed_hash(&key, &[1; BLOCK as usize]);
        hash.as_bytes()[..16].try_into().unwrap()
    };
    for (name, ranges) in cases {
        let into = with_one_before();
        let played = play_source_to(into, with_disks(1, &SIZES), Point::Prepared, |source| {
            let of = SomeBlocks {
                volume: 0,
                first: 0,
                bits: 0b101,
            };
            let digests = vec![[0; 16], ones(source.token)];
            source.say(&Message::BlockDigests(BlockDigests { of, digests }));
            let answer = hear(&*source.control);
            let found = SomeBlocks { bits: 0b100, ..of };
            assert_eq!(answer, Some(Message::BlocksPresent(BlocksPresent(found))));
            // What differs is compared once: a second guess is not answered.
            let digests = vec![ones(source.token); 2];
            source.say(&Message::BlockDigests(BlockDigests { of, digests }));
            let answer = hear(&*source.control);
            assert_eq!(answer, Some(Message::BlocksPresent(BlocksPresent(found))));
            let _ = source.data[0].send(&batch(&ranges, 0, 0));
        });
        is_refused(name, played);
    }
}

/// A block that was found, said twice, is as good as one that was sent.
#[test]
fn what_was_found_may_be_said_again_and_what_is_not_said_is_not_left() {
    for (name, leaves_out) in [
        ("all is said", 0),
        ("a block is not", BLOCK),
        ("a page is not", 4096),
    ] {
        let into = with_one_before();
        let played = play_source_to(into, with_disks(1, &SIZES), Point::Prepared, |source| {
            let mut ranges = all_zeroes();
            ranges[0] = zeroes(0, 0..STRIPE - leaves_out);
            source.data[0].send(&batch(&ranges, 0, 0)).unwrap();
            source.say(&message_of(Kind::State));
            source.data[0]
                .send(BatchHeader::pass_end(1).as_bytes())
                .unwrap();
            source.say(&message_of(Kind::LastPass));
            while let Some(message) = hear(&*source.control) {
                if matches!(message, Message::Ready(_)) {
                    commits(source);
                    source.say(&Message::Finish);
                }
            }
        });
        if leaves_out > 0 {
            is_refused(name, played);
            continue;
        }
        let (outcome, into) = played;
        assert!(
            matches!(outcome, Outcome::Completed(_)),
            "{name}: {outcome:?}"
        );
        assert!(into.disks[0].bytes().iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_block_of_a_kept_disk_of_which_only_its_middle_is_said_is_refused() {
    let into = with_one_before();
    let played = play_source_to(into, with_disks(1, &SIZES), Point::Prepared, |source| {
        let bytes = batch(&[raw(0, 4096..BLOCK)], BLOCK as usize - 4096, 2);
        let _ = source.data[0].send(&bytes);
    });
    is_refused("its middle", played);
}

/// A source that does not know that asks nothing: what was there is given up.
#[test]
fn for_an_older_source_a_disk_is_emptied() {
    let into = with_one_before();
    let told =
        Capabilities::from_bits(Capabilities::OURS.bits() & !Capabilities::BLOCK_DIGESTS.bits());
    let (outcome, into) =
        play_source_as(told, into, with_disks(1, &SIZES), Point::Loaded, |source| {
            commits(source);
            source.say(&Message::Finish);
        });
    assert!(matches!(outcome, Outcome::Completed(_)), "{outcome:?}");
    assert!(into.disks[0].bytes().iter().all(|&byte| byte == 0));
}

/// What becomes of an answer on its way.
type Lie = fn(SomeBlocks) -> SomeBlocks;

#[test]
fn answers_that_were_not_asked_for_are_refused() {
    let lies: [(&str, Lie); 4] = [
        ("of another disk", |of| SomeBlocks { volume: 1, ..of }),
        ("of others", |of| SomeBlocks {
            first: of.first + 64,
            ..of
        }),
        ("that were not asked about", |of| SomeBlocks {
            bits: u64::MAX,
            ..of
        }),
        ("from the middle of a word", |of| SomeBlocks {
            first: 1,
            ..of
        }),
    ];
    let before = [("data".to_owned(), vec![3; SIZES[0] as usize])];
    for (name, lie) in lies {
        let here = move_altered_to(&before, Verify::Stream, |message| match message {
            Message::BlocksPresent(BlocksPresent(of)) => {
                Message::BlocksPresent(BlocksPresent(lie(of)))
            }
            other => other,
        });
        let Outcome::Failed(report) = here else {
            panic!("{name}: {here:?}")
        };
        let error = report.error.unwrap();
        assert_eq!(error.root().id, "migration.protocol", "{name}: {error:?}");
    }
    // One that says that blocks are there which are not is found out by the digest of all.
    let here = move_altered_to(&before, Verify::Stream, |message| match message {
        Message::BlocksPresent(BlocksPresent(of)) => {
            let bits = of.bits | 1;
            Message::BlocksPresent(BlocksPresent(SomeBlocks { bits, ..of }))
        }
        other => other,
    });
    assert!(matches!(here, Outcome::Failed(_)), "{here:?}");
}
