//! With which frame of its stream a stripe had left, so that it is known which stripes are placed when a link is lost.

use crate::pages::hashes::Words;
use crate::wire::control::WHOLE_PASS;

/// Bits of a word that hold the number of the frame, and above it the stream; then the pass.
const FRAME_BITS: u32 = 32;
const STREAM_BITS: u32 = 4;

/// A word for each stripe of a volume; each is touched only by the stream that carries the stripe.
///
/// Frames are counted in each pass from 1. What is noted is of one link: a new one begins with [`Trail::forget`].
pub(crate) struct Trail(Words);

impl Trail {
    /// Of `stripes` stripes of which none has left.
    pub fn new(stripes: u64) -> Self {
        Self(Words::new(stripes as usize))
    }

    /// All that `pass` sends of `stripe` has left on `stream` once its frame number `frame` has; 0 if that needs none.
    pub fn left(&self, stripe: u64, (pass, stream): (u32, u16), frame: u32) {
        self.0.set(stripe as usize, word(pass, stream, frame));
    }

    /// Whether all of `stripe` that belongs to `pass` is placed where so many `frames` of each stream are.
    pub fn is_placed(&self, stripe: u64, pass: u32, frames: &[u32]) -> bool {
        let noted = self.0.get(stripe as usize);
        let stream = noted >> FRAME_BITS & ((1 << STREAM_BITS) - 1);
        let frame = noted & u64::from(u32::MAX);
        noted >> (FRAME_BITS + STREAM_BITS) == word(pass, 0, 0) >> (FRAME_BITS + STREAM_BITS)
            && frames
                .get(stream as usize)
                .is_some_and(|&placed| placed == WHOLE_PASS || frame <= u64::from(placed))
    }

    /// Forgets all of it.
    pub fn forget(&self) {
        self.0.clear();
    }
}

fn word(pass: u32, stream: u16, frame: u32) -> u64 {
    // Passes count from 1, so a stripe that never left is of none.
    u64::from(pass) << (FRAME_BITS + STREAM_BITS)
        | u64::from(stream) << FRAME_BITS
        | u64::from(frame)
}

const _: () = assert!(crate::wire::MAX_STREAMS <= 1 << STREAM_BITS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_left_with_a_frame_that_is_placed_is_placed() {
        let trail = Trail::new(4);
        trail.left(0, (7, 0), 3);
        trail.left(1, (7, 15), 9);
        trail.left(2, (6, 0), 1);
        let placed = |frames: &[u32]| [0, 1, 2, 3].map(|stripe| trail.is_placed(stripe, 7, frames));
        let mut frames = [0; 16];
        assert_eq!(placed(&frames), [false; 4]);
        frames[0] = 2;
        assert_eq!(placed(&frames), [false; 4]);
        frames[0] = 3;
        assert_eq!(placed(&frames), [true, false, false, false]);
        frames[15] = WHOLE_PASS;
        assert_eq!(placed(&frames), [true, true, false, false]);
        assert_eq!(placed(&[3]), [true, false, false, false]);
        assert!(trail.is_placed(2, 6, &frames));
        assert!(!trail.is_placed(3, 7, &frames));
        trail.forget();
        assert_eq!(placed(&[WHOLE_PASS; 16]), [false; 4]);
    }
}
