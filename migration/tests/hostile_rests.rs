//! Sources that mean harm with what they leave of disks: nothing is kept of what cannot be, and nothing of a disk that goes whole.

mod double;

use std::sync::Arc;

use double::Destination;
use double::played_disks::{SIZES, is_refused, play_source_to, with_disks};
use double::players::Point;
use migration::PullSecret;
use migration::disk_modes::DiskPull;
use migration::source_loss::OnSourceLoss;
use migration::vm::Served;
use migration::wire::control::{BlocksLeft, Message, Negotiate};

/// Of the first of two disks a rest may be left.
fn with_a_rest() -> Negotiate {
    let mut negotiate = with_disks(1, &SIZES);
    negotiate.volumes[0].served = Some(Served {
        at: "127.0.0.1:7".into(),
        id: "11".repeat(16),
        secret: PullSecret([9; 16]),
        pull: DiskPull::Background,
        on_source_loss: OnSourceLoss::default(),
    });
    negotiate
}

fn left(volume: u32, first: u64, words: &[u64]) -> Message {
    let words = words.to_vec();
    Message::BlocksLeft(BlocksLeft {
        volume,
        first,
        words,
    })
}

#[test]
fn blocks_that_no_disk_leaves_are_refused() {
    // 64 blocks and a short one.
    let cases = [
        ("beyond the disk", left(0, 1, &[0b10])),
        ("words beyond it", left(0, 0, &[1, 1, 1])),
        ("far beyond it", left(0, 1 << 40, &[1])),
        ("at the end of numbers", left(0, u64::MAX, &[1])),
        ("of a disk that goes whole", left(1, 0, &[1])),
        ("of no disk", left(2, 0, &[1])),
        ("of the last number of all", left(u32::MAX, 0, &[1])),
    ];
    for (name, said) in cases {
        let into = Destination::new(&Arc::default());
        let played = play_source_to(into, with_a_rest(), Point::Stopped, |source| {
            source.say(&said);
        });
        is_refused(name, played);
    }
}

#[test]
fn what_is_left_is_told_when_the_guest_stands_still_and_before_the_last_pass() {
    for (name, point) in [("early", Point::Prepared), ("late", Point::Loaded)] {
        let into = Destination::new(&Arc::default());
        let played = play_source_to(into, with_a_rest(), point, |source| {
            source.say(&left(0, 0, &[1]));
        });
        is_refused(name, played);
    }
}
