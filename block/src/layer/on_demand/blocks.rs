//! Where each block stands: who has it in hand until it is here, and who waits for it.
//!
//! # States of a block
//! *Absent*, and in nobody's hand; *fetched*, by a thread that waits for the origin; *placed*, by one that writes to the
//! image what came; *covered*, by a request that writes all of it; *present*, for good.
//!
//! # Invariants
//! - One of them writes a block that is not present: whoever places or covers it. So nothing is written by two.
//! - Whoever covers a block takes it from whoever fetches it, and what comes is dropped: *present wins*. From whoever places
//!   it nobody takes it; that is over soon, and the request comes again.
//! - A block becomes present when its content has been written, by whoever had it in hand, and then its bit is set. One that
//!   could not be written is absent, whatever the image holds of it by then.
//! - A request that has to wait is told of by an arrival after any end of what it waits for, good or bad, and asks again.
//! - A block is asked of the origin once, as long as that answers and what comes can be written.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::bits::{BLOCK, Bits, touched};

/// Blocks of which it is known that requests wait for them. Should there be more, whoever waits is told of every arrival.
const MOST_AWAITED: usize = 1 << 16;

/// Blocks that are looked at at once for one that can be had.
const MOST_LOOKED_AT: usize = 4096;

/// Whether a block cannot be had now, as is known.
pub(super) type IsAway<'a> = &'a dyn Fn(u64) -> bool;

/// Who has a block in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hand {
    /// Whoever took it with this number.
    Fetches(u64),
    Places,
    Covers,
}

/// Blocks that one call asks of the origin.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Run {
    number: u64,
    pub(super) blocks: Range<u64>,
}

/// Blocks that a request covers; given back by [`Blocks::end_cover`].
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use]
pub(super) struct Covered {
    blocks: Vec<u64>,
}

/// What a change of a range finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cover {
    /// It may be made, and whoever makes it has these in hand.
    Taken(Covered),
    /// It has to wait for one of its blocks.
    Waits,
}

/// Whether somebody waits who is to be told of an arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Awaited {
    Yes,
    No,
}

/// What has to be seen together.
#[derive(Debug, Default)]
struct Hands {
    of: HashMap<u64, Hand>,
    /// Blocks for which requests wait.
    awaited: HashSet<u64>,
    /// Those of them, in the order in which they were asked for, that nobody had in hand then.
    demands: VecDeque<u64>,
    /// More are awaited than are known.
    is_crowded: bool,
    /// Runs that were taken.
    runs: u64,
    /// Where the background goes on.
    cursor: u64,
}

/// The blocks of a disk.
pub(super) struct Blocks {
    size: u64,
    present: Arc<Bits>,
    /// How many are not.
    missing: AtomicU64,
    hands: Mutex<Hands>,
}

impl Blocks {
    /// Of a disk of `size` bytes; `present` is what is here.
    pub(super) fn new(size: u64, present: Arc<Bits>) -> Self {
        Self {
            size,
            missing: AtomicU64::new(present.len() - present.count()),
            present,
            hands: Mutex::new(Hands::default()),
        }
    }

    fn hands(&self) -> MutexGuard<'_, Hands> {
        self.hands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before any request is made: all blocks are here but those that `missing` has, a bit for each, and that were missing.
    pub(super) fn are_here_but(&self, missing: &[u64]) {
        for index in 0..self.present.len().div_ceil(64) {
            let absent = missing.get(index as usize).copied().unwrap_or(0);
            let new = self.present.add_word(index, !absent);
            self.missing.fetch_sub(new, Ordering::AcqRel);
        }
    }

    /// How many blocks are not here.
    pub(super) fn missing(&self) -> u64 {
        self.missing.load(Ordering::Acquire)
    }

    /// The bytes of `blocks`.
    pub(super) fn bytes(&self, blocks: &Range<u64>) -> Range<u64> {
        blocks.start * BLOCK..(blocks.end * BLOCK).min(self.size)
    }

    /// Whether all of a range of bytes is here.
    pub(super) fn are_present(&self, range: &Range<u64>) -> bool {
        self.present.all_set(touched(range))
    }

    /// The first blocks of `blocks` that are alike, and whether they are here.
    pub(super) fn alike(&self, blocks: Range<u64>) -> (Range<u64>, bool) {
        let is_here = self.present.is_set(blocks.start);
        let other = if is_here {
            self.present.next_clear(blocks.clone())
        } else {
            self.present.next_set(blocks.clone())
        };
        (blocks.start..other.unwrap_or(blocks.end), is_here)
    }

    /// A request waits for what is absent of a range of bytes. Whether somebody has to fetch anything that was not asked
    /// for; `None` if all of it has come meanwhile.
    pub(super) fn want(&self, range: &Range<u64>) -> Option<bool> {
        let mut hands = self.hands();
        let (mut asked, mut waits) = (false, false);
        let mut from = range.start / BLOCK;
        let blocks = touched(range);
        while let Some(block) = self.present.next_clear(from..blocks.end) {
            asked |= hands.want(block);
            waits = true;
            from = block + 1;
        }
        waits.then_some(asked)
    }

    /// A request changes all of a range of bytes, and covers the blocks that lie in it. Where it has to wait, what has to be
    /// fetched is asked for; whether anything is, goes to `asked`.
    pub(super) fn cover(&self, range: &Range<u64>, asked: &mut bool) -> Cover {
        let mut hands = self.hands();
        let mut covered = Vec::new();
        let mut waits = false;
        let mut from = range.start / BLOCK;
        while let Some(block) = self.present.next_clear(from..touched(range).end) {
            from = block + 1;
            let is_whole = self.is_whole(block, range);
            match hands.of.get(&block) {
                None | Some(Hand::Fetches(_)) if is_whole => covered.push(block),
                None | Some(Hand::Fetches(_)) => {
                    *asked |= hands.want(block);
                    waits = true;
                }
                Some(Hand::Places | Hand::Covers) => {
                    hands.wait_for(block);
                    waits = true;
                }
            }
        }
        if waits {
            return Cover::Waits;
        }
        for block in &covered {
            hands.of.insert(*block, Hand::Covers);
        }
        Cover::Taken(Covered { blocks: covered })
    }

    fn is_whole(&self, block: u64, range: &Range<u64>) -> bool {
        let bytes = self.bytes(&(block..block + 1));
        range.start <= bytes.start && bytes.end <= range.end
    }

    /// Whether a block that a range of bytes covers in part only is absent.
    pub(super) fn has_absent_edge(&self, range: &Range<u64>) -> bool {
        let blocks = touched(range);
        [blocks.start, blocks.end.saturating_sub(1)]
            .into_iter()
            .any(|block| !self.present.is_set(block) && !self.is_whole(block, range))
    }

    /// Whether a range of bytes covers a block whole.
    pub(super) fn has_whole_block(&self, range: &Range<u64>) -> bool {
        touched(range)
            .take(2)
            .any(|block| self.is_whole(block, range))
    }

    /// What was covered has been written, or could not be; whoever has it in hand calls `written` for each block that is
    /// here then, before anybody sees that it is.
    pub(super) fn end_cover(&self, covered: Covered, outcome: Outcome) -> Awaited {
        let mut hands = self.hands();
        let mut awaited = Awaited::No;
        for block in covered.blocks {
            hands.of.remove(&block);
            if outcome == Outcome::Written && self.present.set(block) {
                self.missing.fetch_sub(1, Ordering::Release);
            }
            awaited = awaited.or(hands.end_wait(block));
        }
        awaited
    }

    /// The next block for which a request waits, of those that are not away if there are any; whoever is given it asks for it.
    pub(super) fn next_demand(&self, is_away: IsAway<'_>) -> Option<Run> {
        let mut hands = self.hands();
        let hands = &mut *hands;
        let of = &hands.of;
        let is_wanted = |block: &u64| !self.present.is_set(*block) && !of.contains_key(block);
        while hands.demands.front().is_some_and(|it| !is_wanted(it)) {
            hands.demands.pop_front();
        }
        let mut looked_at = hands.demands.iter().take(MOST_LOOKED_AT);
        let found = looked_at.position(|block| is_wanted(block) && !is_away(*block));
        let block = hands.demands.remove(found.unwrap_or(0))?;
        Some(hands.take(block..block + 1))
    }

    /// The next blocks, at most `most`, that nobody asked for yet, of those that are not away if there are any near; whoever is given
    /// them asks for them.
    pub(super) fn next_background(&self, most: u64, is_away: IsAway<'_>) -> Option<Run> {
        let mut hands = self.hands();
        let all = self.present.len();
        let from = hands.cursor;
        let free_from = |from: u64| {
            let mut ranges = [from..all, 0..from].into_iter();
            ranges.find_map(|range| self.next_free(&hands, range))
        };
        let mut first = free_from(from)?;
        for _ in 0..MOST_LOOKED_AT {
            if !is_away(first) {
                break;
            }
            first = free_from(first + 1)?;
        }
        let mut end = first + 1;
        let limit = all.min(first + most);
        let goes_along = |block| is_away(block) == is_away(first);
        while end < limit
            && !self.present.is_set(end)
            && !hands.of.contains_key(&end)
            && goes_along(end)
        {
            end += 1;
        }
        hands.cursor = end;
        Some(hands.take(first..end))
    }

    /// The first of `blocks` that is absent, and in nobody's hand.
    fn next_free(&self, hands: &Hands, blocks: Range<u64>) -> Option<u64> {
        let mut from = blocks.start;
        loop {
            let absent = self.present.next_clear(from..blocks.end)?;
            if !hands.of.contains_key(&absent) {
                return Some(absent);
            }
            from = absent + 1;
        }
    }

    /// The background goes on behind `block`, which a request has asked for: what follows it is likely to be next.
    pub(super) fn read_ahead(&self, block: u64) {
        self.hands().cursor = block;
    }

    /// What was asked for has come: the blocks of it that are to be written now. The others are somebody else's by now.
    pub(super) fn begin_placing(&self, run: &Run) -> Vec<Range<u64>> {
        let mut hands = self.hands();
        let mut mine: Vec<Range<u64>> = Vec::new();
        for block in run.blocks.clone() {
            if hands.of.get(&block) != Some(&Hand::Fetches(run.number)) {
                continue;
            }
            hands.of.insert(block, Hand::Places);
            match mine.last_mut() {
                Some(last) if last.end == block => last.end = block + 1,
                _ => mine.push(block..block + 1),
            }
        }
        mine
    }

    /// What was placed of `blocks` has been written, or could not be.
    pub(super) fn end_placing(&self, blocks: Range<u64>, outcome: Outcome) -> Awaited {
        let blocks = blocks.collect();
        self.end_cover(Covered { blocks }, outcome)
    }

    /// What was asked for does not come.
    pub(super) fn give_up(&self, run: &Run) -> Awaited {
        let mut hands = self.hands();
        let mut awaited = Awaited::No;
        for block in run.blocks.clone() {
            if hands.of.get(&block) == Some(&Hand::Fetches(run.number)) {
                hands.of.remove(&block);
                awaited = awaited.or(hands.end_wait(block));
            }
        }
        // Nobody who waits for what was lost stands in the way of the rest.
        hands.cursor = run.blocks.end;
        awaited
    }
}

/// Whether blocks were written by whoever had them in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Written,
    Failed,
}

impl Awaited {
    pub(super) fn or(self, other: Self) -> Self {
        if self == Self::Yes { self } else { other }
    }
}

impl Hands {
    fn take(&mut self, blocks: Range<u64>) -> Run {
        self.runs += 1;
        let number = self.runs;
        for block in blocks.clone() {
            self.of.insert(block, Hand::Fetches(number));
        }
        Run { number, blocks }
    }

    /// A request waits for `block`; whether somebody has to fetch it who does not know yet.
    fn want(&mut self, block: u64) -> bool {
        let asked = self.wait_for(block) && !self.of.contains_key(&block);
        if asked {
            self.demands.push_back(block);
        }
        asked
    }

    /// A request is to be told when `block` has come; whether that is news.
    fn wait_for(&mut self, block: u64) -> bool {
        if self.awaited.len() < MOST_AWAITED || self.awaited.contains(&block) {
            return self.awaited.insert(block);
        }
        self.is_crowded = true;
        false
    }

    fn end_wait(&mut self, block: u64) -> Awaited {
        if self.awaited.remove(&block) || std::mem::take(&mut self.is_crowded) {
            return Awaited::Yes;
        }
        Awaited::No
    }
}
