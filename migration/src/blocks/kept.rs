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
/// All is asked about while at least this share of the blocks asked about lately was there.
const WORTHWHILE: f64 = 0.5;
/// How much of what is known of that an answer replaces.
const NEWS: f64 = 0.25;
/// Blocks of a word that are asked about where it is not known yet whether that is worthwhile.
const PROBE: u32 = 8;
/// Words that are left out after an answer that nothing is there, at most: 1 GiB.
const LONGEST_GAP: u64 = 256;
/// Words that are asked about ahead of what streams have come to, at most: 1 GiB.
const AHEAD: u64 = 256;
/// Words ahead of the streams from which on asking holds none of them up.
const IN_TIME: u64 = 8;

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
    /// When something was asked or answered last, or a stream waited first.
    moved: Option<Instant>,
    asking: Asking,
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

/// What is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    /// A few blocks here and there: it is not known that more is worthwhile.
    Probes,
    All,
}

/// What is to be asked about now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Next {
    pub word: u64,
    /// Blocks of it, at most.
    pub most: u32,
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
                moved: None,
                asking: Asking::Probes,
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

    /// Words that streams have come to.
    fn reached(&self) -> u64 {
        self.reached.load(Ordering::Relaxed) * STRIPE_BLOCKS / ASKED_BLOCKS
    }

    /// What is to be asked about now, if anything is.
    pub fn next(&self) -> Option<Next> {
        let mut course = self.course();
        let is_due = course.waiting > 0 || course.next <= self.reached() + AHEAD;
        if course.next >= self.words || !is_due || course.is_over {
            return None;
        }
        let word = course.next;
        course.next += 1;
        course.moved = Some(Instant::now());
        let most = match course.asking {
            Asking::All => ASKED_BLOCKS as u32,
            Asking::Probes => PROBE,
        };
        Some(Next { word, most })
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

    /// Of `asked` blocks of `word` so many are `there`.
    pub fn heard(&self, word: u64, asked: u32, there: u32) {
        let mut course = self.course();
        let share = f64::from(there) / f64::from(asked.max(1));
        course.share = match course.asking {
            Asking::Probes => share,
            Asking::All => course.share * (1.0 - NEWS) + share * NEWS,
        };
        course.moved = Some(Instant::now());
        let is_in_time = course.next > self.reached() + IN_TIME;
        if course.share >= WORTHWHILE || there > 0 && is_in_time {
            course.window = (course.window * 2).min(MAX_QUESTIONS);
            course.gap = 0;
            if course.asking == Asking::Probes {
                course.asking = Asking::All;
                // The rest of it.
                course.next = word;
            }
        } else {
            course.asking = Asking::Probes;
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
        course.moved.get_or_insert_with(Instant::now).elapsed() < PATIENCE
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

    /// Blocks that are asked about of a disk of so many words, each question answered at once by `there`, for streams that have
    /// come to the same word.
    fn asked(words: u64, there: impl Fn(Next) -> u32) -> Vec<Next> {
        let kept = Kept::new(words * ASKED_BLOCKS);
        kept.course().waiting = 1;
        let mut asked = Vec::new();
        while let Some(next) = kept.next() {
            kept.reached.store(2 * next.word, Ordering::Relaxed);
            asked.push(next);
            kept.heard(next.word, next.most, there(next));
            kept.answered_to(None);
        }
        assert!(kept.is_asked_through());
        asked
    }

    fn blocks(asked: &[Next]) -> u64 {
        asked.iter().map(|next| u64::from(next.most)).sum()
    }

    #[test]
    fn of_a_disk_of_which_nothing_is_there_little_is_asked_about() {
        let words = 1 << 18;
        let count = blocks(&asked(words, |_| 0));
        assert!(count < words * ASKED_BLOCKS / 1000, "{count}");
        // Of one of 1 GiB, too.
        assert_eq!(asked(256, |_| 0).len(), 8);
    }

    #[test]
    fn what_is_there_behind_what_is_not_is_found() {
        let words = 1 << 12;
        let is_there = |next: Next| next.word >= words / 2;
        let asked = asked(words, |next| if is_there(next) { next.most } else { 0 });
        let there = asked.iter().filter(|&&next| is_there(next)).count() as u64;
        assert!(there > words / 2 - LONGEST_GAP, "{there}");
    }

    #[test]
    fn all_is_asked_about_where_most_is_there() {
        let asked = asked(1000, |next| next.most - next.most / 3);
        // The first one twice.
        assert_eq!(blocks(&asked), 1000 * ASKED_BLOCKS + u64::from(PROBE));
    }

    #[test]
    fn where_little_is_there_all_is_asked_about_only_ahead_of_the_streams() {
        let asked = |ahead: u64| {
            let kept = Kept::new(1 << 20);
            kept.course().next = ahead;
            let ask = |_| {
                let next = kept.next().unwrap();
                kept.heard(next.word, next.most, 1);
                next.word - ahead
            };
            [(); 4].map(ask)
        };
        assert_eq!(asked(0), [0, 2, 5, 10]);
        assert_eq!(asked(100), [0, 0, 1, 2]);
    }

    #[test]
    fn it_is_no_further_ahead_of_the_streams_than_it_may_be() {
        let kept = Kept::new(1 << 20);
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
    fn streams_wait_for_what_is_asked_about_and_pass_what_is_left_out() {
        let kept = Kept::new(64 * ASKED_BLOCKS);
        assert!(kept.is_to_wait(0));
        assert_eq!(
            kept.next(),
            Some(Next {
                word: 0,
                most: PROBE
            })
        );
        kept.heard(0, PROBE, 0);
        kept.answered_to(None);
        // Two stripes a word: the second one is left out, the third asked about next.
        assert!(!kept.is_to_wait(0) && !kept.is_to_wait(3) && kept.is_to_wait(4));
        kept.next().unwrap();
        kept.heard(2, PROBE, PROBE);
        kept.answered_to(None);
        assert!(kept.is_to_wait(4));
        let all = ASKED_BLOCKS as u32;
        assert_eq!(kept.next(), Some(Next { word: 2, most: all }));
        kept.end();
        assert!(!kept.is_to_wait(63));
        assert!(kept.next().is_none());
    }

    #[test]
    fn on_a_new_link_what_was_not_answered_is_asked_again() {
        let kept = Kept::new(64 * ASKED_BLOCKS);
        let ask = || kept.next().map(|next| next.word);
        assert_eq!([ask(), ask(), ask()], [0, 1, 2].map(Some));
        kept.answered_to(Some(1));
        kept.begin_again();
        assert_eq!(ask(), Some(1));
    }
}
