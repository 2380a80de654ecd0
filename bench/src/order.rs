//! Who goes when.

/// The order of a round: it begins with another contender than the one before.
pub(super) fn order(contenders: usize, round: u32) -> impl Iterator<Item = usize> {
    let first = usize::try_from(round).unwrap_or(0) % contenders.max(1);
    (0..contenders).map(move |turn| (first + turn) % contenders.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_has_every_contender_and_begins_with_another() {
        assert_eq!(order(3, 0).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(order(3, 1).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(order(3, 5).collect::<Vec<_>>(), [2, 0, 1]);
        assert_eq!(order(0, 1).count(), 0);
    }
}
