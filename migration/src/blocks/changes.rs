//! Which blocks of each disk are to be sent: a bit for each.

use super::STRIPE_BLOCKS;
use crate::vm::{BLOCK_SIZE, VolumeOffer};

/// For each disk a bit for each block, in words of 64.
pub(crate) type Changes = Vec<Vec<u64>>;

fn words(offer: &VolumeOffer) -> usize {
    offer.blocks().div_ceil(64) as usize
}

/// No block of any.
pub(crate) fn none<'o>(offers: impl Iterator<Item = &'o VolumeOffer>) -> Changes {
    offers.map(|offer| vec![0; words(offer)]).collect()
}

/// All blocks of all.
pub(crate) fn all(offers: &[VolumeOffer]) -> Changes {
    let mut all: Changes = offers
        .iter()
        .map(|offer| vec![u64::MAX; words(offer)])
        .collect();
    mask_tails(&mut all, offers.iter());
    all
}

/// Bits beyond the last block are nobody's.
pub(crate) fn mask_tails<'o>(changes: &mut Changes, offers: impl Iterator<Item = &'o VolumeOffer>) {
    for (words, offer) in changes.iter_mut().zip(offers) {
        let over = offer.blocks() % 64;
        if let (Some(last), 1..) = (words.last_mut(), over) {
            *last &= (1 << over) - 1;
        }
    }
}

/// How many blocks.
pub(crate) fn count(changes: &Changes) -> u64 {
    let words = changes.iter().flatten();
    words.map(|word| u64::from(word.count_ones())).sum()
}

/// How many bytes at most: the last block of a disk may be short.
pub(crate) fn bytes(changes: &Changes) -> u64 {
    count(changes) * BLOCK_SIZE
}

/// The bits of stripe `number` of a disk.
pub(crate) fn of_stripe(words: &[u64], number: u64) -> u32 {
    let word = words.get((number / 2) as usize).copied().unwrap_or(0);
    (word >> (number % 2 * STRIPE_BLOCKS)) as u32
}

/// Clears the bits of stripe `number` of a disk.
pub(crate) fn clear_stripe(words: &mut [u64], number: u64) {
    if let Some(word) = words.get_mut((number / 2) as usize) {
        *word &= !(u64::from(u32::MAX) << (number % 2 * STRIPE_BLOCKS));
    }
}

/// The runs of bits set in `bits`, as `first..end`.
pub(crate) fn runs(mut bits: u32) -> impl Iterator<Item = std::ops::Range<u64>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let gap = bits.trailing_zeros();
        let long = u64::from(bits) >> gap;
        let run = long.trailing_ones();
        let first = at + u64::from(gap);
        bits = (u64::from(bits) >> (gap + run)) as u32;
        at = first + u64::from(run);
        Some(first..at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(size: u64) -> VolumeOffer {
        VolumeOffer {
            id: "data".into(),
            size,
            allocated: size,
            wish: crate::vm::Wish::Travels,
            format: None,
            served: None,
            behind: Vec::new(),
        }
    }

    #[test]
    fn bits_beyond_a_disk_are_nobodys() {
        for (size, blocks) in [
            (512, 1),
            (BLOCK_SIZE, 1),
            (BLOCK_SIZE + 512, 2),
            (64 * BLOCK_SIZE, 64),
            (65 * BLOCK_SIZE, 65),
        ] {
            assert_eq!(count(&all(&[offer(size)])), blocks, "{size}");
        }
    }

    #[test]
    fn nothing_is_sent_of_a_disk_that_is_fetched_later() {
        let later = VolumeOffer {
            wish: crate::vm::Wish::OnDemand,
            ..offer(65 * BLOCK_SIZE)
        };
        let mut of_both = all(&[later.clone(), offer(BLOCK_SIZE)]);
        assert_eq!(count(&of_both), 1);
        clear_stripe(&mut of_both[0], 0);
        assert_eq!(of_stripe(&of_both[0], 1), 0);
        assert_eq!(none([later].iter()), [Vec::<u64>::new()]);
    }

    #[test]
    fn runs_are_of_neighbours() {
        let of = |bits| runs(bits).collect::<Vec<_>>();
        assert_eq!(of(0), []);
        assert_eq!(of(0b1), vec![0..1]);
        assert_eq!(of(0b110_1100), [2..4, 5..7]);
        assert_eq!(of(u32::MAX), vec![0..32]);
        assert_eq!(of(1 << 31), vec![31..32]);
    }

    #[test]
    fn a_stripe_is_half_a_word() {
        let words = [0xffff_ffff_0000_0001, 2];
        let stripes = [0, 1, 2, 3, 4].map(|number| of_stripe(&words, number));
        assert_eq!(stripes, [1, u32::MAX, 2, 0, 0]);
        let mut words = words;
        clear_stripe(&mut words, 1);
        clear_stripe(&mut words, 4);
        assert_eq!(words, [1, 2]);
    }
}
