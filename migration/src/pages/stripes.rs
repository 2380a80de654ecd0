//! Which stream carries which pages.
//!
//! RAM is cut into stripes of 2 MiB that are dealt out in turn: stripe `i` lies in lane `i % count`. In
//! the first pass each stream works its own lane off from the front, then takes over from the back of
//! the lane of which most is left, so that none is waited for that is slower than the others.
//!
//! Who carries a stripe first carries it ever after. A stream keeps order, so a page that is sent twice
//! lands last-sent last, with no barrier between streams; and what is remembered of a page is touched by
//! one thread only.

use std::ops::Range;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use crate::raw::{Ram, STRIPE_PAGES};
use crate::wire::agreed::Agreed;
use crate::wire::capabilities::Capabilities;

/// A stripe of RAM.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stripe {
    pub region: usize,
    /// First page in the region.
    pub first: u64,
    /// End, exclusive; short at the end of a region.
    pub end: u64,
}

impl Stripe {
    /// Stripe `number` of all; `None` beyond the last.
    pub fn at(ram: &Ram, number: u64) -> Option<Self> {
        ram.regions()
            .iter()
            .enumerate()
            .find_map(|(index, region)| {
                let inside = number.checked_sub(region.first_stripe())?;
                (inside < region.stripes()).then(|| Self {
                    region: index,
                    first: inside * STRIPE_PAGES,
                    end: ((inside + 1) * STRIPE_PAGES).min(region.pages()),
                })
            })
    }

    /// Its words of a bitmap of its region.
    pub fn words<'d>(&self, region: &'d [u64]) -> &'d [u64] {
        &region[self.of_words()]
    }

    /// The same, to be changed.
    pub fn words_mut<'d>(&self, region: &'d mut [u64]) -> &'d mut [u64] {
        &mut region[self.of_words()]
    }

    fn of_words(&self) -> Range<usize> {
        (self.first / 64) as usize..self.end.div_ceil(64) as usize
    }
}

/// Which stream of the link carried each stripe first.
pub(crate) struct Owners(Vec<AtomicU16>);

const NOBODY: u16 = u16::MAX;

impl Owners {
    /// Of `stripes` stripes that nobody has carried.
    pub fn new(stripes: u64) -> Self {
        Self((0..stripes).map(|_| AtomicU16::new(NOBODY)).collect())
    }

    /// Makes `stream` the owner of a stripe that has none; whether it is its owner now.
    pub fn claim(&self, stripe: u64, stream: u16) -> bool {
        let Some(owner) = self.0.get(stripe as usize) else {
            return false;
        };
        match owner.compare_exchange(NOBODY, stream, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => true,
            Err(owner) => owner == stream,
        }
    }

    /// Nobody has carried any: those who did are gone.
    pub fn forget(&self) {
        let owners = self.0.iter();
        owners.for_each(|owner| owner.store(NOBODY, Ordering::Relaxed));
    }

    /// Who has carried `stripe`, if anybody has.
    fn owner(&self, stripe: u64) -> Option<u16> {
        let owner = self.0.get(stripe as usize)?.load(Ordering::Relaxed);
        (owner != NOBODY).then_some(owner)
    }

    fn of(&self, stream: u16) -> impl Iterator<Item = u64> {
        let owners = self.0.iter().zip(0..);
        owners.filter_map(move |(owner, stripe)| {
            (owner.load(Ordering::Relaxed) == stream).then_some(stripe)
        })
    }
}

/// What of a lane nobody has taken yet: its first stripe and its end, counted within the lane, in the
/// halves of a word.
struct Rest(AtomicU64);

#[derive(Debug, Clone, Copy)]
enum End {
    Front,
    Back,
}

impl Rest {
    fn range(word: u64) -> Range<u64> {
        word >> 32..word & u64::from(u32::MAX)
    }

    fn left(&self) -> u64 {
        let rest = Self::range(self.0.load(Ordering::Relaxed));
        rest.end - rest.start
    }

    /// Takes `most` stripes and at most half of the rest, so that little is left to wait for when others
    /// have come to their ends.
    fn take(&self, most: u64, end: End) -> Option<Range<u64>> {
        let cut = |word| {
            let rest = Self::range(word);
            let count = (rest.end - rest.start).div_ceil(2).min(most);
            match end {
                End::Front => (rest.start..rest.start + count, rest.start + count..rest.end),
                End::Back => (rest.end - count..rest.end, rest.start..rest.end - count),
            }
        };
        let before = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                let (taken, rest) = cut(word);
                (!taken.is_empty()).then_some(rest.start << 32 | rest.end)
            });
        before.ok().map(|word| cut(word).0)
    }
}

/// Whether the streams of a link have shared the stripes out yet.
#[derive(Clone, Copy)]
pub(crate) enum Dealing {
    /// In the pass that comes.
    Now,
    Done,
}

/// How the streams of a source share the stripes.
pub(crate) struct Lanes {
    rests: Vec<Rest>,
    owners: Owners,
    stripes: u64,
    takes_over: bool,
}

impl Lanes {
    /// Of `stripes` stripes for `streams` streams, as was agreed with the destination.
    pub fn new(stripes: u64, streams: u16, agreed: Agreed) -> Self {
        let streams = streams.max(1);
        let lanes = Self {
            rests: (0..streams).map(|_| Rest(AtomicU64::new(0))).collect(),
            owners: Owners::new(stripes),
            stripes,
            takes_over: agreed.has(Capabilities::ANY_STRIPE),
        };
        lanes.deal_anew();
        lanes
    }

    /// All stripes are to be taken again, whoever carried them; no stream takes any meanwhile.
    pub fn deal_anew(&self) {
        self.owners.forget();
        let streams = self.rests.len() as u64;
        for (rest, lane) in self.rests.iter().zip(0..) {
            let length = (self.stripes + streams - 1 - lane) / streams;
            rest.0.store(length, Ordering::Relaxed);
        }
    }

    /// The stripes that `stream` is to carry next in the first pass of a link, `most` at most; `None` once all
    /// are taken. They lie in one lane, ascending.
    pub fn take(&self, stream: u16, most: u64) -> Option<impl Iterator<Item = u64> + use<>> {
        let own = self.rests.get(usize::from(stream))?;
        let (lane, taken) = match own.take(most, End::Front) {
            Some(taken) => (u64::from(stream), taken),
            None if self.takes_over => self.take_over(most)?,
            None => return None,
        };
        let streams = self.rests.len() as u64;
        let stripes = taken.map(move |number| number * streams + lane);
        for stripe in stripes.clone() {
            self.owners.claim(stripe, stream);
        }
        Some(stripes)
    }

    fn take_over(&self, most: u64) -> Option<(u64, Range<u64>)> {
        loop {
            let lanes = self.rests.iter().zip(0..);
            let (rest, lane) = lanes.max_by_key(|(rest, _)| rest.left())?;
            if rest.left() == 0 {
                return None;
            }
            if let Some(taken) = rest.take(most, End::Back) {
                return Some((lane, taken));
            }
        }
    }

    /// The stream that carries `stripe`, if one does by now.
    pub fn carrier(&self, stripe: u64) -> Option<u16> {
        self.owners.owner(stripe)
    }

    /// The stripes that `stream` carried in the first pass, and carries in all others, ascending.
    pub fn carried(&self, stream: u16) -> impl Iterator<Item = u64> {
        self.owners.of(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::MigrationId;
    use crate::wire::hello::{Hello, Role};

    /// What is agreed on with an engine that speaks `version`.
    fn with(version: u16) -> Agreed {
        let hello = Hello::new(Role::Control, MigrationId([0; 16]), [0; 16]);
        Agreed::from_hello(&Hello { version, ..hello }).unwrap()
    }

    fn take(lanes: &Lanes, stream: u16, most: u64) -> Vec<u64> {
        lanes.take(stream, most).into_iter().flatten().collect()
    }

    #[test]
    fn a_stream_at_its_end_takes_over_from_the_back_of_the_fullest_lane() {
        let lanes = Lanes::new(20, 3, with(4));
        assert_eq!(take(&lanes, 0, 2), [0, 3]);
        assert_eq!(take(&lanes, 0, 16), [6, 9, 12]);
        assert_eq!(take(&lanes, 0, 16), [15]);
        assert_eq!(take(&lanes, 0, 16), [18]);
        assert_eq!(take(&lanes, 2, 16), [2, 5, 8]);
        assert_eq!(take(&lanes, 0, 2), [16, 19]);
        assert_eq!(take(&lanes, 1, 1), [1]);
        assert_eq!(take(&lanes, 0, 16), [10, 13]);
        assert_eq!(
            lanes.carried(0).collect::<Vec<_>>(),
            [0, 3, 6, 9, 10, 12, 13, 15, 16, 18, 19]
        );
        assert_eq!(lanes.carried(1).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn each_stripe_is_taken_once_whoever_is_faster() {
        for stripes in [0, 1, 5, 64, 1000] {
            let lanes = Lanes::new(stripes, 4, with(4));
            let take_all = |stream: u16| {
                let taken = std::iter::from_fn(|| lanes.take(stream, 16)).flatten();
                taken
                    .inspect(|_| std::thread::yield_now())
                    .collect::<Vec<_>>()
            };
            let mut all = std::thread::scope(|scope| {
                // Stream 3 does nothing: the others do its work.
                let streams = [0, 1, 2].map(|stream| scope.spawn(move || take_all(stream)));
                streams.map(|stream| stream.join().unwrap()).concat()
            });
            all.sort_unstable();
            assert_eq!(all, (0..stripes).collect::<Vec<_>>());
        }
    }

    #[test]
    fn dealt_anew_all_are_taken_again_by_whoever_comes() {
        let lanes = Lanes::new(5, 2, with(4));
        while lanes.take(0, 2).is_some() {}
        lanes.deal_anew();
        assert_eq!(lanes.carried(0).count(), 0);
        while lanes.take(1, 1).is_some() {}
        assert_eq!(lanes.carried(1).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn an_older_destination_gets_each_lane_from_its_own_stream() {
        let lanes = Lanes::new(5, 2, with(2));
        let all: Vec<_> = std::iter::from_fn(|| lanes.take(0, 1)).flatten().collect();
        assert_eq!(all, [0, 2, 4]);
        let all: Vec<_> = std::iter::from_fn(|| lanes.take(1, 1)).flatten().collect();
        assert_eq!(all, [1, 3]);
    }

    #[test]
    fn a_stripe_stays_with_its_first_owner() {
        let owners = Owners::new(2);
        assert!(owners.claim(1, 3));
        assert!(owners.claim(1, 3));
        assert!(!owners.claim(1, 0));
        assert!(!owners.claim(2, 0));
    }
}
