//! A disk whose destination holds something already, as its source knows it: what is asked about, in words of 64 blocks and
//! in order, and whether a stream should wait for the answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::STRIPE_BLOCKS;
use super::matches::Matches;
use crate::wire::digests::{ASKED_BLOCKS, MAX_QUESTIONS};

/// How long an answer is waited for, at most.
const PATIENCE: Duration = Duration::from_secs(1);
/// Streams wait while at least this share of the blocks asked about lately was there.
const WORTHWHILE: f64 = 0.5;
/// How much of what is known of that an answer replaces.
const NEWS: f64 = 0.25;
/// Words that are left out after an answer that nothing is there, at most: 1 GiB.
const LONGEST_GAP: u64 = 256;
/// Words that are asked about ahead of what streams have come to, at most: 1 GiB.
const AHEAD: u64 = 256;

/// What is known of the disk.
pub(super) struct Kept {
    pub matches: Matches,
    words: u64,
    /// Stripes that streams of the link have come to.
    reached: AtomicU64,
    course: Mutex<Course>,
    moved: Condvar,
}

/// How far the asking has come.
struct Course {
    /// The word that is asked about next.
    next: u64,
    /// All words before are answered, or left out.
    answered: u64,
    /// When the first stream waited.
    since: Option<Instant>,
    /// When the last answer came.
    heard: Option<Instant>,
    /// Share of what was asked about lately that was there.
    share: f64,
    /// Questions that may wait for an answer.
    window: usize,
    /// Words that were left out last.
    gap: u64,
    /// Streams that wait.
    waiting: usize,
    is_over: bool,
}

impl Kept {
    /// A disk of `blocks` blocks, about none of which was asked.
    pub fn new(blocks: u64) -> Self {
        Self {
            matches: Matches::none(blocks),
            words: blocks.div_ceil(ASKED_BLOCKS),
            reached: AtomicU64::new(0),
            course: Mutex::new(Course {
                next: 0,
                answered: 0,
                since: None,
                heard: None,
                share: 0.0,
                window: 1,
                gap: 0,
                waiting: 0,
                is_over: false,
            }),
            moved: Condvar::new(),
        }
    }

    fn course(&self) -> MutexGuard<'_, Course> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new link begins: what was asked on the old one is not answered any more, and streams begin anew.
    pub fn begin_again(&self) {
        let mut course = self.course();
        course.next = course.answered;
        course.window = 1;
        self.reached.store(0, Ordering::Relaxed);
    }

    /// A stream has come to one more stripe.
    pub fn reached_stripe(&self) {
        self.reached.fetch_add(1, Ordering::Relaxed);
    }

    /// The word that is to be asked about now, if any is.
    pub fn next(&self) -> Option<u64> {
        let mut course = self.course();
        let reached = self.reached.load(Ordering::Relaxed) * STRIPE_BLOCKS / ASKED_BLOCKS;
        let is_due = course.waiting > 0 || course.next <= reached + AHEAD;
        (course.next < self.words && is_due && !course.is_over).then(|| {
            course.next += 1;
            course.next - 1
        })
    }

    /// Questions that may wait for an answer now.
    pub fn window(&self) -> usize {
        self.course().window
    }

    /// Whether there is nothing left to ask about.
    pub fn is_asked_through(&self) -> bool {
        let course = self.course();
        course.is_over || course.next >= self.words
    }

    /// All words before `word`, that of the first question that waits, are answered, or need no question; `None`: none waits.
    pub fn answered_to(&self, word: Option<u64>) {
        let mut course = self.course();
        course.answered = word.unwrap_or(course.next);
        self.moved.notify_all();
    }

    /// Of `asked` blocks so many are `there`.
    pub fn heard(&self, asked: u32, there: u32) {
        let mut course = self.course();
        let share = f64::from(there) / f64::from(asked.max(1));
        course.share = match course.heard {
            None => share,
            Some(_) => course.share * (1.0 - NEWS) + share * NEWS,
        };
        course.heard = Some(Instant::now());
        if course.share >= WORTHWHILE {
            course.window = (course.window * 2).min(MAX_QUESTIONS);
            course.gap = 0;
        } else if there > 0 {
            course.gap = 0;
        } else {
            course.window = 1;
            course.gap = (course.gap * 2).clamp(1, LONGEST_GAP);
            course.next += course.gap;
        }
    }

    /// Nothing is asked about any more.
    pub fn end(&self) {
        self.course().is_over = true;
        self.moved.notify_all();
    }

    /// Whether a stream that has come to `stripe` should wait for an answer.
    pub fn is_to_wait(&self, stripe: u64) -> bool {
        let mut course = self.course();
        if course.is_over || stripe * STRIPE_BLOCKS / ASKED_BLOCKS < course.answered {
            return false;
        }
        match course.heard {
            None => {
                let since = *course.since.get_or_insert_with(Instant::now);
                since.elapsed() < PATIENCE
            }
            Some(heard) => course.share >= WORTHWHILE && heard.elapsed() < PATIENCE,
        }
    }

    /// Waits until something is known more, at most for so long.
    pub fn wait(&self, time: Duration) {
        let mut course = self.course();
        course.waiting += 1;
        let (mut course, _) = self
            .moved
            .wait_timeout(course, time)
            .unwrap_or_else(PoisonError::into_inner);
        course.waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words that are asked about of a disk of so many, each answered at once by `there`.
    fn asked(words: u64, there: impl Fn(u64) -> u32) -> Vec<u64> {
        let kept = Kept::new(words * ASKED_BLOCKS);
        let mut asked = Vec::new();
        loop {
            kept.reached.store(2 * words, Ordering::Relaxed);
            let Some(word) = kept.next() else {
                assert!(kept.is_asked_through());
                return asked;
            };
            asked.push(word);
            kept.heard(64, there(word));
        }
    }

    #[test]
    fn of_a_disk_of_which_nothing_is_there_a_hundredth_is_asked_about() {
        // 1 TiB.
        let words = 1 << 18;
        let asked = asked(words, |_| 0).len() as u64;
        assert!(asked < words / 100, "{asked}");
    }

    #[test]
    fn what_is_there_behind_what_is_not_is_found() {
        let words = 1 << 12;
        let asked = asked(words, |word| if word < words / 2 { 0 } else { 60 });
        let there = asked.iter().filter(|&&word| word >= words / 2).count() as u64;
        assert!(there > words / 2 - LONGEST_GAP, "{there}");
    }

    #[test]
    fn all_is_asked_about_where_some_is_there_everywhere() {
        assert_eq!(asked(1000, |_| 1).len(), 1000);
    }

    #[test]
    fn it_is_no_further_ahead_of_the_streams_than_it_may_be() {
        let kept = Kept::new(u64::from(u32::MAX));
        let mut count = 0;
        while kept.next().is_some() {
            count += 1;
        }
        assert_eq!(count, AHEAD + 1);
        kept.reached_stripe();
        kept.reached_stripe();
        assert!(kept.next().is_some() && kept.next().is_none());
    }

    #[test]
    fn streams_wait_for_the_first_answer_and_then_while_it_is_worthwhile() {
        let kept = Kept::new(64 * ASKED_BLOCKS);
        assert!(kept.is_to_wait(0));
        kept.heard(64, 64);
        assert!(kept.is_to_wait(0));
        kept.answered_to(Some(1));
        assert!(!kept.is_to_wait(1) && kept.is_to_wait(2));
        for _ in 0..3 {
            kept.heard(64, 0);
        }
        assert!(!kept.is_to_wait(63));
        for _ in 0..3 {
            kept.heard(64, 60);
        }
        assert!(kept.is_to_wait(63));
        kept.end();
        assert!(!kept.is_to_wait(63));
        assert!(kept.next().is_none());
    }

    #[test]
    fn on_a_new_link_what_was_not_answered_is_asked_again() {
        let kept = Kept::new(64 * ASKED_BLOCKS);
        assert_eq!([kept.next(), kept.next(), kept.next()], [0, 1, 2].map(Some));
        kept.answered_to(Some(1));
        kept.begin_again();
        assert_eq!(kept.next(), Some(1));
    }
}
