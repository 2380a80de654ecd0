//! The threads that ask the origin: some for what requests wait for, others for all the rest.
//!
//! Those for requests do nothing else, so that no request waits for one of them to come back from the background. What the
//! background may do is told by its [`Steering`]: a rate, a pause, an end. Where the origin does not answer, each thread
//! asks again after a while, longer and longer, or as soon as the origin says that it is back.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::bits::BLOCK;
use super::blocks::{Awaited, Blocks, Outcome, Run};
use super::image_origin::error_chain;
use super::keeping::Keeping;
use super::origin::{Class, Origin, OriginError};
use super::supply::{OnLoss, Standing, Supply};
use crate::arrivals::Arrivals;
use crate::copy::Steering;
use crate::{BlockDevice, Buffer, Durability, Result, ZeroMode};

/// Blocks that the background asks for at once.
const RUN: u64 = 8;
/// So many bytes come between two times when the background makes durable what has come.
const KEPT: u64 = 256 << 20;
/// Until the origin is asked again that did not answer: first, and at most.
const FIRST_REST: Duration = Duration::from_millis(50);
const LONGEST_REST: Duration = Duration::from_secs(1);
/// Zeroes within a block are looked for in so many bytes.
const GRAIN: usize = 4096;

/// Whether what nobody asked for is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pull {
    /// All of it, in the background.
    #[default]
    Background,
    /// All of it, asked for like what requests wait for.
    Urgent,
    /// Nothing but what is asked for.
    Off,
}

/// What the threads are told.
#[derive(Debug)]
struct Orders {
    pull: Pull,
    stop: bool,
    /// How often there was something new to do.
    asked: u64,
    /// How often it was said that the origin is back.
    returned: u64,
    /// Threads that run.
    alive: usize,
}

/// What the threads and the layer share.
pub(super) struct Fetching {
    pub(super) image: Arc<dyn BlockDevice>,
    pub(super) origin: Arc<dyn Origin>,
    pub(super) blocks: Blocks,
    pub(super) keeping: Keeping,
    pub(super) standing: Standing,
    pub(super) arrivals: Arrivals,
    pub(super) steering: Arc<Steering>,
    /// Bytes that came and were written, for requests and in the background.
    fetched: [AtomicU64; 2],
    orders: Mutex<Orders>,
    changed: Condvar,
}

impl Fetching {
    pub(super) fn new(
        image: Arc<dyn BlockDevice>,
        origin: Arc<dyn Origin>,
        (blocks, keeping): (Blocks, Keeping),
        standing: Standing,
        steering: Arc<Steering>,
        pull: Pull,
    ) -> Self {
        Self {
            image,
            origin,
            blocks,
            keeping,
            standing,
            arrivals: Arrivals::default(),
            steering,
            fetched: Default::default(),
            orders: Mutex::new(Orders {
                pull,
                stop: false,
                asked: 0,
                returned: 0,
                alive: 0,
            }),
            changed: Condvar::new(),
        }
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the threads, and whoever waits for something to change, of an order.
    fn order(&self, order: impl FnOnce(&mut Orders)) {
        order(&mut self.orders());
        self.changed.notify_all();
    }

    /// There is something to fetch that was not asked for before.
    pub(super) fn ask(&self) {
        self.order(|orders| orders.asked += 1);
    }

    /// The origin says that it is back: what is asked for from here on waits for it.
    pub(super) fn returned(&self) {
        if let Supply::Lost(_) = self.standing.supply() {
            self.tell(Supply::Comes);
        }
        self.order(|orders| orders.returned += 1);
    }

    /// What requests do while the origin is lost is another.
    pub(super) fn set_on_loss(&self, on_loss: OnLoss) {
        self.standing.set_on_loss(on_loss);
        self.arrivals.arrive();
        self.order(|_| ());
    }

    pub(super) fn set_pull(&self, pull: Pull) {
        self.order(|orders| {
            orders.pull = pull;
            orders.asked += 1;
        });
    }

    /// Whether anything is fetched that nobody has asked for.
    pub(super) fn pull(&self) -> Pull {
        self.orders().pull
    }

    /// Has the threads end.
    pub(super) fn stop(&self) {
        self.order(|orders| orders.stop = true);
        self.steering.wake();
    }

    /// Waits until all threads but `but` have ended, at most so long; whether they have.
    pub(super) fn wait_ended(&self, but: usize, patience: Duration) -> bool {
        self.wait_until(patience, |orders| orders.alive <= but)
    }

    /// Waits until nothing is missing, at most so long; whether it is so.
    pub(super) fn wait_whole(&self, patience: Duration) -> bool {
        self.wait_until(patience, |_| self.blocks.missing() == 0)
    }

    fn wait_until(&self, patience: Duration, is_so: impl Fn(&Orders) -> bool) -> bool {
        let deadline = Instant::now() + patience;
        let mut orders = self.orders();
        while !is_so(&orders) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let woken = self.changed.wait_timeout(orders, left);
            orders = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Bytes that came and were written, for requests and in the background.
    pub(super) fn fetched(&self) -> [u64; 2] {
        self.fetched
            .each_ref()
            .map(|fetched| fetched.load(Ordering::Relaxed))
    }

    /// Bytes that are missing; the last block counts as a whole one.
    pub(super) fn missing(&self) -> u64 {
        self.blocks.missing() * BLOCK
    }

    /// Tells that blocks have come for which somebody may wait.
    pub(super) fn arrived(&self, awaited: Awaited) {
        if self.blocks.missing() == 0 {
            self.ask();
        }
        if awaited == Awaited::Yes {
            self.arrivals.arrive();
        }
    }

    /// Counts a thread that is about to begin, until what is returned is dropped.
    pub(super) fn begin_thread(self: &Arc<Self>) -> Alive {
        self.orders().alive += 1;
        Alive(Arc::clone(self))
    }

    fn is_away(&self, block: u64) -> bool {
        self.origin.is_away(block * BLOCK)
    }

    /// The life of a thread for what requests wait for.
    pub(super) fn serve_demands(&self) {
        let mut buffer = Vec::new();
        let mut rest = FIRST_REST;
        while let Some(seen) = self.news() {
            let Some(run) = self.blocks.next_demand(&|block| self.is_away(block)) else {
                self.wait_for_news(seen);
                continue;
            };
            // Whatever happens to it: what follows is likely to be asked for next.
            self.blocks.read_ahead(run.blocks.end);
            let counted = &self.fetched[0];
            self.fetch(&run, (Class::Demand, counted), &mut buffer, &mut rest);
        }
    }

    /// The life of a thread for the rest.
    pub(super) fn serve_background(&self) {
        let mut buffer = Vec::new();
        let mut rest = FIRST_REST;
        let mut not_kept = 0;
        while let Some(seen) = self.news() {
            let class = match self.pull() {
                Pull::Background => Class::Background,
                Pull::Urgent => Class::Demand,
                Pull::Off => {
                    self.wait_for_news(seen);
                    continue;
                }
            };
            if self.blocks.missing() == 0 {
                self.wait_for_news(seen);
                continue;
            }
            // Before it has anything in hand that a request might want.
            match self.steering.is_ready() {
                Ok(true) => {}
                Ok(false) => continue,
                Err(_cancelled) => return,
            }
            let Some(run) = self
                .blocks
                .next_background(RUN, &|block| self.is_away(block))
            else {
                self.wait_for_news(seen);
                continue;
            };
            let bytes = self.blocks.bytes(&run.blocks);
            self.steering.spend(bytes.end - bytes.start);
            let counted = &self.fetched[1];
            not_kept += self.fetch(&run, (class, counted), &mut buffer, &mut rest);
            if not_kept >= KEPT {
                not_kept = 0;
                if let Err(error) = self.keeping.keep_all(&*self.image) {
                    // A guest that has to know is told by its own flush; all else is fetched again after a power cut.
                    tracing::warn!(disk = %self.image.identity(), %error, "what has come of the disk is not durable");
                }
            }
        }
    }

    /// How much there was to do so far; nothing when there is nothing to do any more.
    fn news(&self) -> Option<u64> {
        let orders = self.orders();
        (!orders.stop).then_some(orders.asked)
    }

    fn wait_for_news(&self, seen: u64) {
        let orders = self.orders();
        let woken = self
            .changed
            .wait_while(orders, |orders| !orders.stop && orders.asked == seen);
        drop(woken.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until the origin may be asked again.
    fn rest(&self, rest: &mut Duration) {
        let orders = self.orders();
        let returned = orders.returned;
        let woken = self.changed.wait_timeout_while(orders, *rest, |orders| {
            !orders.stop && orders.returned == returned
        });
        drop(woken.unwrap_or_else(PoisonError::into_inner));
        *rest = (*rest * 2).min(LONGEST_REST);
    }

    /// Asks for a run and writes what comes, which is counted; how many bytes of it were.
    fn fetch(
        &self,
        run: &Run,
        (class, counted): (Class, &AtomicU64),
        buffer: &mut Vec<u8>,
        rest: &mut Duration,
    ) -> u64 {
        let bytes = self.blocks.bytes(&run.blocks);
        buffer.resize((bytes.end - bytes.start) as usize, 0);
        let (supply, awaited) = match self.origin.fetch(bytes.start, buffer, class) {
            Ok(()) => match self.place(run, bytes.start, buffer, counted) {
                Ok(written) => {
                    *rest = FIRST_REST;
                    self.tell(Supply::Comes);
                    return written;
                }
                // Whoever waits for it has been told by then.
                Err(error) => (Supply::NotStored(error_chain(&error)), Awaited::No),
            },
            Err(error) => {
                let why = error.to_string();
                let supply = match error {
                    OriginError::Lost { .. } => Supply::Lost(why),
                    OriginError::Wrong { .. } => Supply::Wrong(why),
                };
                (supply, self.blocks.give_up(run))
            }
        };
        let is_for_good = matches!(supply, Supply::Wrong(_));
        // Before they ask again.
        self.tell(supply);
        self.arrived(awaited);
        if is_for_good {
            self.wait_until_stopped();
        } else {
            self.rest(rest);
        }
        0
    }

    /// Nothing is asked any more; whoever waits is told when it is to fail.
    fn wait_until_stopped(&self) {
        let mut orders = self.orders();
        while !orders.stop {
            let Some(left) = self.standing.fails_in() else {
                let woken = self.changed.wait(orders);
                orders = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let woken = self.changed.wait_timeout(orders, left);
            drop(woken.unwrap_or_else(PoisonError::into_inner));
            self.arrivals.arrive();
            orders = self.orders();
        }
    }

    /// Says how it goes, where that is news.
    fn tell(&self, supply: Supply) {
        if !self.standing.set(supply.clone()) {
            return;
        }
        let disk = self.image.identity();
        match supply {
            _ if !self.standing.is_to_be_logged() => {}
            Supply::Comes => tracing::info!(%disk, "what is missing of the disk comes again"),
            Supply::Lost(why) | Supply::Wrong(why) | Supply::NotStored(why) => {
                tracing::warn!(%disk, why, "what is missing of the disk does not come");
            }
        }
        // Who waits may have to fail.
        self.arrivals.arrive();
        self.changed.notify_all();
    }

    /// Writes what came of a run to the image, where nobody else has; how many bytes.
    fn place(&self, run: &Run, start: u64, came: &mut [u8], counted: &AtomicU64) -> Result<u64> {
        let mut placed = Ok(0);
        for mine in self.blocks.begin_placing(run) {
            let bytes = self.blocks.bytes(&mine);
            let (from, to) = ((bytes.start - start) as usize, (bytes.end - start) as usize);
            // What was begun has to be ended, so all of them are gone through.
            let written = match &placed {
                Ok(_) => self.write(bytes.start, &mut came[from..to]),
                Err(_) => Ok(()),
            };
            let outcome = match (&placed, &written) {
                (Ok(_), Ok(())) => Outcome::Written,
                _ => Outcome::Failed,
            };
            let awaited = self.blocks.end_placing(mine.clone(), outcome);
            match (&mut placed, written) {
                (Ok(all), Ok(())) => {
                    self.keeping.note(mine);
                    let len = bytes.end - bytes.start;
                    *all += len;
                    counted.fetch_add(len, Ordering::Relaxed);
                    self.steering.copied(len);
                    self.steering.set_left(self.missing());
                }
                (Ok(_), Err(error)) => placed = Err(error),
                (Err(_), _) => {}
            }
            self.arrived(awaited);
        }
        placed
    }

    /// Writes what came; what is zero of it takes no room. It may have to take away what a request left that failed, or that
    /// a power cut has undone.
    fn write(&self, start: u64, came: &mut [u8]) -> Result<()> {
        for (part, kind) in parts(came) {
            let at = start + part.start as u64;
            match kind {
                Content::Zero => {
                    let len = part.len() as u64;
                    self.image.write_zeroes(at, len, ZeroMode::MayUnmap)?;
                }
                Content::Data => {
                    let buffers = [Buffer::new(&mut came[part])];
                    self.image.write(&buffers, at, Durability::Flushed)?;
                }
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Zero,
    Data,
}

/// The parts of `bytes` that are zeroes, and those that are not.
fn parts(bytes: &[u8]) -> Vec<(Range<usize>, Content)> {
    const ZEROES: [u8; GRAIN] = [0; GRAIN];
    let mut parts: Vec<(Range<usize>, Content)> = Vec::new();
    let mut at = 0;
    for grain in bytes.chunks(GRAIN) {
        let kind = if *grain == ZEROES[..grain.len()] {
            Content::Zero
        } else {
            Content::Data
        };
        let end = at + grain.len();
        match parts.last_mut() {
            Some((part, last)) if *last == kind => part.end = end,
            _ => parts.push((at..end, kind)),
        }
        at = end;
    }
    parts
}

/// A thread that fetches, counted until it ends.
pub(super) struct Alive(Arc<Fetching>);

impl Alive {
    pub(super) fn shared(&self) -> &Fetching {
        &self.0
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.order(|orders| orders.alive -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_told_from_data_in_pages() {
        let mut bytes = vec![0; 4 * GRAIN + 512];
        bytes[GRAIN] = 1;
        bytes[4 * GRAIN + 511] = 1;
        let found = parts(&bytes);
        assert_eq!(
            found,
            [
                (0..GRAIN, Content::Zero),
                (GRAIN..2 * GRAIN, Content::Data),
                (2 * GRAIN..4 * GRAIN, Content::Zero),
                (4 * GRAIN..bytes.len(), Content::Data),
            ]
        );
    }
}
