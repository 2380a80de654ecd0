//! Which stripes have their dirty marks cleared by one call.
//!
//! Each call stops every vCPU for a moment, as all have to forget that they may write to those pages.
//! To clear more at once spares the guest; but a page that the guest writes between its mark being
//! cleared and the page being read is sent twice for nothing. So as much is cleared at once as is sent
//! soon.

use std::time::Duration;

use super::stripes::Stripe;
use crate::raw::STRIPE_PAGES;

/// What is cleared is to be sent within this time.
const SOON: Duration = Duration::from_millis(8);
/// Stripes of one window at most.
const MOST: usize = 16;
/// Pages from the first to the last of a window at most: all of them have a bit in the call.
const SPAN: u64 = 256 * STRIPE_PAGES;
/// Pages of a word of marks.
const WORD: u64 = 64;

/// Stripes in a row, of those that one stream carries.
pub(super) struct Window {
    stripes: Vec<Stripe>,
    marks: Vec<u64>,
    limit: usize,
}

impl Window {
    pub fn new() -> Self {
        Self {
            stripes: Vec::with_capacity(MOST),
            marks: Vec::with_capacity((SPAN / WORD) as usize),
            limit: 1,
        }
    }

    /// Whether `stripe`, which comes after those that are in it, goes into this window too.
    pub fn has_room(&self, stripe: Stripe) -> bool {
        self.stripes.len() < self.limit
            && self.stripes.first().is_none_or(|first| {
                first.region == stripe.region && stripe.end - first.first <= SPAN
            })
    }

    /// Stripes of the next window at most.
    pub fn limit(&self) -> u64 {
        self.limit as u64
    }

    pub fn push(&mut self, stripe: Stripe) {
        self.stripes.push(stripe);
    }

    pub fn stripes(&self) -> &[Stripe] {
        &self.stripes
    }

    /// The marks to clear, of what `dirty` says of each region: the region, its first page that is
    /// meant, and a bit for each page from there on. `None` when there is no stripe.
    pub fn marks(&mut self, dirty: &[Vec<u64>]) -> Option<(usize, u64, &[u64])> {
        let (first, last) = (*self.stripes.first()?, self.stripes.last()?);
        self.marks.clear();
        self.marks
            .resize((last.end - first.first).div_ceil(WORD) as usize, 0);
        for stripe in &self.stripes {
            let words = stripe.words(&dirty[stripe.region]);
            let at = ((stripe.first - first.first) / WORD) as usize;
            self.marks[at..at + words.len()].copy_from_slice(words);
        }
        Some((first.region, first.first, &self.marks))
    }

    /// Empties the window, whose stripes took `took` to be sent, and makes the next one fit.
    pub fn sent(&mut self, took: Duration) {
        if took > SOON {
            self.limit = (self.limit / 2).max(1);
        } else if self.stripes.len() == self.limit && took < SOON / 2 {
            self.limit = (self.limit * 2).min(MOST);
        }
        self.stripes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripe(number: u64) -> Stripe {
        Stripe {
            region: 0,
            first: number * STRIPE_PAGES,
            end: (number + 1) * STRIPE_PAGES,
        }
    }

    fn fill(window: &mut Window) -> usize {
        let mut number = 0;
        while window.has_room(stripe(number)) {
            window.push(stripe(number));
            number += 2;
        }
        window.stripes().len()
    }

    #[test]
    fn more_is_cleared_at_once_while_it_is_sent_soon() {
        let mut window = Window::new();
        let mut sizes = Vec::new();
        for took in [0, 0, 0, 0, 0, 7, 9, 9, 100, 100, 100, 1] {
            sizes.push(fill(&mut window));
            window.sent(Duration::from_millis(took));
        }
        assert_eq!(sizes, [1, 2, 4, 8, 16, 16, 16, 8, 4, 2, 1, 1]);
        assert_eq!(fill(&mut window), 2);
    }

    #[test]
    fn only_the_marks_of_its_own_stripes_are_cleared() {
        let mut window = Window::new();
        let mut dirty = vec![vec![u64::MAX; 8 * 4]];
        dirty[0][0] = 5;
        assert_eq!(window.marks(&dirty), None);
        window.limit = 2;
        assert_eq!(fill(&mut window), 2);
        let (region, first, marks) = window.marks(&dirty).unwrap();
        assert_eq!((region, first, marks.len()), (0, 0, 3 * 8));
        assert_eq!(marks[0], 5);
        assert_eq!(marks[7], u64::MAX);
        assert_eq!(marks[8..16], [0; 8]);
        assert_eq!(marks[16..], [u64::MAX; 8]);
    }

    #[test]
    fn stripes_far_apart_or_of_other_regions_have_windows_of_their_own() {
        let mut window = Window::new();
        window.limit = MOST;
        window.push(stripe(0));
        assert!(window.has_room(stripe(255)));
        assert!(!window.has_room(stripe(256)));
        let elsewhere = Stripe {
            region: 1,
            ..stripe(1)
        };
        assert!(!window.has_room(elsewhere));
    }
}
