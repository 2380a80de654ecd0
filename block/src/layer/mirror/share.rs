//! How what is copied in the background and what the guest changes share the target.

/// Of all that goes to the target, so much is background as long as there is any, in percent.
const FLOOR: i64 = 5;
/// How far the background may be ahead of its share, and behind it before changes have to wait for it.
const SLACK: i64 = 256 << 10;
/// What a change costs at least: one that moves no bytes keeps the target busy too.
const LEAST: u64 = 4 << 10;

/// Whose turn it is: the guest's, unless the background has had less than its share.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// Bytes that the background is ahead of its share; less than 0 when it is behind.
    ahead: i64,
}

impl Share {
    /// The guest has changed so many bytes.
    pub(super) fn changed(&mut self, bytes: u64) {
        let bytes = i64::try_from(bytes.max(LEAST)).unwrap_or(i64::MAX);
        let owed = bytes / (100 - FLOOR) * FLOOR + bytes % (100 - FLOOR) * FLOOR / (100 - FLOOR);
        self.ahead = self.ahead.saturating_sub(owed);
    }

    /// So many bytes have been copied.
    pub(super) fn copied(&mut self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        // What was copied while the guest did nothing is no reason to copy nothing later.
        self.ahead = self.ahead.saturating_add(bytes).min(SLACK);
    }

    /// Whether the background has had less than its share, so that it goes on beside changes.
    pub(super) fn is_behind(&self) -> bool {
        self.ahead < 0
    }

    /// Whether it is so far behind that changes have to wait for it.
    pub(super) fn holds_up(&self) -> bool {
        self.ahead < -SLACK
    }

    /// Nothing is owed: there was no background for a while.
    pub(super) fn forgive(&mut self) {
        self.ahead = self.ahead.max(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of changes and of background, with changes that come whenever they may.
    fn shared(change: u64, piece: u64) -> (u64, u64) {
        let (mut share, mut changed, mut copied) = (Share::default(), 0, 0);
        for _ in 0..1_000_000 {
            if share.holds_up() {
                share.copied(piece);
                copied += piece;
            } else {
                share.changed(change);
                changed += change;
            }
        }
        (changed, copied)
    }

    #[test]
    fn a_guest_that_writes_as_fast_as_it_can_leaves_the_background_its_share_and_no_more() {
        for change in [4 << 10, 4 << 10 | 512, 64 << 10, 1 << 20] {
            let (changed, copied) = shared(change, 256 << 10);
            let part = copied as f64 / (changed + copied) as f64;
            assert!((0.049..0.051).contains(&part), "{change}: {part}");
        }
    }

    #[test]
    fn changes_that_move_nothing_come_to_an_end_too() {
        let mut share = Share::default();
        share.copied(1 << 40);
        let most = 2 * SLACK as u64 / (LEAST * 5 / 95) + 2;
        let until = (0..).find(|_| {
            share.changed(0);
            share.holds_up()
        });
        assert!(until.is_some_and(|count| count <= most), "{until:?}");
        share.forgive();
        assert!(!share.is_behind());
    }

    #[test]
    fn nothing_overflows() {
        let mut share = Share::default();
        share.changed(u64::MAX);
        share.changed(u64::MAX);
        share.changed(u64::MAX);
        for _ in 0..40 {
            share.changed(u64::MAX);
        }
        assert!(share.holds_up());
        share.copied(u64::MAX);
        share.copied(u64::MAX);
        assert!(!share.is_behind());
    }
}
