//! What is left of a disk for the time when its guest has gone: blocks that are not sent any more, and that the destination
//! fetches.
//!
//! Once a disk leaves its rest behind, every mark of it ends here: those that a stream comes to in a pass, those that are taken
//! between passes, and those of a pass that was cut short. A block that is under way at that moment is sent as ever, and
//! comes here when it is marked again; so what is not here is at the destination as the guest wrote it last, when the guest
//! stands still and the last marks are taken.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::STRIPE_BLOCKS;

/// The blocks of one disk that stay.
pub(super) struct Rest {
    is_left: AtomicBool,
    blocks: Vec<AtomicU64>,
}

impl Rest {
    /// Of a disk of so many blocks, all of which are to be sent.
    pub fn none(blocks: u64) -> Self {
        Self {
            is_left: AtomicBool::new(false),
            blocks: (0..blocks.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
        }
    }

    /// From here on nothing of it is sent; whether that is news.
    pub fn leave(&self) -> bool {
        !self.is_left.swap(true, Ordering::SeqCst)
    }

    pub fn is_left(&self) -> bool {
        self.is_left.load(Ordering::SeqCst)
    }

    /// Keeps the blocks `bits` of a stripe; whether it does, instead of their being sent.
    pub fn keep(&self, stripe: u64, bits: u32) -> bool {
        if !self.is_left() {
            return false;
        }
        if let Some(word) = self.blocks.get((stripe / 2) as usize) {
            word.fetch_or(
                u64::from(bits) << (stripe % 2 * STRIPE_BLOCKS),
                Ordering::SeqCst,
            );
        }
        true
    }

    /// Keeps all of `changed`, of which nothing is left then, if it does.
    pub fn keep_all(&self, changed: &mut [u64]) {
        if !self.is_left() {
            return;
        }
        for (word, changed) in self.blocks.iter().zip(changed) {
            word.fetch_or(std::mem::take(changed), Ordering::SeqCst);
        }
    }

    /// A bit for each block, in words of 64; `None` where nothing was left.
    pub fn words(&self) -> Option<Vec<u64>> {
        let words = self.blocks.iter();
        self.is_left()
            .then(|| words.map(|word| word.load(Ordering::SeqCst)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_stays_of_a_disk_that_is_sent() {
        let rest = Rest::none(65);
        let mut changed = [1, 1];
        rest.keep_all(&mut changed);
        assert_eq!(changed, [1, 1]);
        assert!(!rest.keep(0, 1));
        assert_eq!(rest.words(), None);
    }

    #[test]
    fn all_that_is_marked_stays_of_one_that_leaves_its_rest() {
        let rest = Rest::none(65);
        assert!(rest.leave() && !rest.leave());
        assert!(rest.keep(1, 0b10));
        let mut changed = [1, 1];
        rest.keep_all(&mut changed);
        assert_eq!(changed, [0, 0]);
        // Outside of the disk is nothing.
        assert!(rest.keep(9, 1));
        assert_eq!(rest.words(), Some(vec![1 | 0b10 << 32, 1]));
    }
}
