//! Dirty bitmaps: one per RAM region, bit `i` is page `i`.

use crate::raw::Ram;

/// Bitmaps of all regions.
pub(crate) type Bitmaps = Vec<Vec<u64>>;

/// Bitmaps with no page dirty.
pub(crate) fn none(ram: &Ram) -> Bitmaps {
    ram.regions()
        .iter()
        .map(|r| vec![0; r.pages().div_ceil(64) as usize])
        .collect()
}

/// Bitmaps with every page dirty.
pub(crate) fn all(ram: &Ram) -> Bitmaps {
    let mut bitmaps = none(ram);
    for (bitmap, region) in bitmaps.iter_mut().zip(ram.regions()) {
        bitmap.fill(u64::MAX);
        mask_tail(bitmap, region.pages());
    }
    bitmaps
}

/// Clears the bits beyond the last page, which a VM may have set by whole words.
pub(crate) fn mask_tails(bitmaps: &mut Bitmaps, ram: &Ram) {
    for (bitmap, region) in bitmaps.iter_mut().zip(ram.regions()) {
        mask_tail(bitmap, region.pages());
    }
}

fn mask_tail(bitmap: &mut [u64], pages: u64) {
    if let (Some(last), used @ 1..) = (bitmap.last_mut(), pages % 64) {
        *last &= (1 << used) - 1;
    }
}

/// Number of dirty pages.
pub(crate) fn count(bitmaps: &Bitmaps) -> u64 {
    bitmaps
        .iter()
        .flatten()
        .map(|word| u64::from(word.count_ones()))
        .sum()
}

/// The next run of set bits at or after `from`, as `(first, end)`.
pub(crate) fn next_run(words: &[u64], from: u64) -> Option<(u64, u64)> {
    let total = words.len() as u64 * 64;
    let first = next_bit(words, from, 0)?;
    Some((first, next_bit(words, first, u64::MAX).unwrap_or(total)))
}

/// The next set bit of `words ^ flip` at or after `from`.
fn next_bit(words: &[u64], from: u64, flip: u64) -> Option<u64> {
    let mut index = (from / 64) as usize;
    let mut word = (words.get(index)? ^ flip) & (u64::MAX << (from % 64));
    while word == 0 {
        index += 1;
        word = words.get(index)? ^ flip;
    }
    Some(index as u64 * 64 + u64::from(word.trailing_zeros()))
}

#[cfg(test)]
mod tests {
    use super::next_run;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_cover_exactly_the_set_bits(words in proptest::collection::vec(any::<u64>(), 0..9)) {
            let mut seen = vec![0u64; words.len()];
            let mut at = 0;
            while let Some((first, end)) = next_run(&words, at) {
                prop_assert!(first >= at && end > first);
                for bit in first..end {
                    seen[(bit / 64) as usize] |= 1 << (bit % 64);
                }
                at = end;
            }
            prop_assert_eq!(seen, words);
        }
    }
}
