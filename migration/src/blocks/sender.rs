//! A disk's part of a data stream at the source: reads its share of a pass, hashes and sends it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::batch::{Batch, MOST};
use super::changes::{self, Changes};
use super::echo::Echo;
use super::kept::Kept;
use super::matches::{by_words, numbers};
use super::rest::Rest;
use super::sums::BlockSums;
use super::{STRIPE, STRIPE_BLOCKS, stripes, widened};
use crate::PAGE_SIZE;
use crate::disk_bytes::ClassBytes;
use crate::error::Error;
use crate::frames::{Counters, Outlet, PassKind, Trail};
use crate::pages::hashes::Words;
use crate::pages::stripes::{Dealing, Lanes};
use crate::progress::Verify;
use crate::raw::HashKey;
use crate::vm::{BLOCK_SIZE, SourceVolume, VolumeOffer};
use crate::wire::agreed::Agreed;
use crate::wire::blocks::BlockEncoding;

/// Stripes of the first pass that a stream takes at once: a few, so that streams end together.
const AT_ONCE: u64 = 4;
/// How long a stream waits at once for what is found of a disk, while other things may come up.
const LOOK: Duration = Duration::from_millis(1);

/// Disks that travel, and what a source remembers of them for all of its streams.
pub(crate) struct Disks {
    all: Vec<Disk>,
}

pub(super) struct Disk {
    pub volume: Arc<dyn SourceVolume>,
    pub offer: VolumeOffer,
    lanes: Lanes,
    /// What each block adds to the digest.
    pub sums: Words,
    trail: Trail,
    /// What changes of it while it is mirrored.
    echo: Echo,
    /// What of it is not sent any more.
    rest: Rest,
    /// What the destination has of it already; nothing where it begins with an empty one.
    pub kept: OnceLock<Kept>,
    /// Bytes that travelled beside a pass, and in passes.
    echoed: AtomicU64,
    passed: AtomicU64,
}

/// A range is sent as a part of this.
#[derive(Clone, Copy)]
struct Turn {
    pass: u32,
    kind: PassKind,
    class: Class,
}

/// Why a range is sent.
#[derive(Clone, Copy)]
enum Class {
    /// The guest has written it.
    Write,
    /// It is its turn in the pass.
    Background,
}

impl Disks {
    /// Of which nothing was sent, as was agreed with the destination.
    pub fn unsent(
        volumes: &[Arc<dyn SourceVolume>],
        offers: &[VolumeOffer],
        verify: Verify,
        streams: u8,
        agreed: Agreed,
    ) -> Self {
        let all = volumes.iter().zip(offers).map(|(volume, offer)| Disk {
            volume: volume.clone(),
            offer: offer.clone(),
            lanes: Lanes::new(stripes(offer.moves()), u16::from(streams), agreed),
            sums: Words::new(match verify {
                Verify::Off => 0,
                // That all memory is hashed at the end tells nothing of disks.
                Verify::Stream | Verify::Full => offer.blocks() as usize,
            }),
            trail: Trail::new(stripes(offer.moves())),
            echo: Echo::off(offer.blocks()),
            rest: Rest::none(offer.blocks()),
            kept: OnceLock::new(),
            echoed: AtomicU64::new(0),
            passed: AtomicU64::new(0),
        });
        Self { all: all.collect() }
    }

    /// The destination says that the disks of these numbers hold something from before, and keeps it.
    ///
    /// # Errors
    /// [`Error::Volumes`] when there is no such disk.
    pub fn keep(&self, numbers: &[u16]) -> Result<(), Error> {
        for &number in numbers {
            let disk = self.all.get(usize::from(number)).ok_or(Error::Volumes)?;
            let kept = Kept::new(disk.offer.blocks());
            disk.kept.set(kept).map_err(|_| Error::Volumes)?;
        }
        Ok(())
    }

    /// Those of which it is still asked what the destination has, with their numbers.
    pub(super) fn kept(&self) -> impl Iterator<Item = (usize, &Disk, &Kept)> {
        let all = self.all.iter().enumerate();
        let kept = all.filter_map(|(number, disk)| Some((number, disk, disk.kept.get()?)));
        kept.filter(|(_, _, kept)| !kept.is_asked_through())
    }

    /// Whether it is still to be asked what the destination has of any.
    pub fn are_to_be_found(&self) -> bool {
        self.kept().next().is_some()
    }

    /// Mirrors the disk of this number from here on.
    pub fn mirror(&self, number: usize) {
        if let Some(disk) = self.all.get(number) {
            disk.echo.turn_on();
        }
    }

    /// Sends nothing more of the disk of this number: the destination fetches that when the guest runs there. Whether that is news.
    pub fn leave_rest(&self, number: usize) -> bool {
        self.all.get(number).is_some_and(|disk| disk.rest.leave())
    }

    /// Whether a rest of the disk of this number is left so.
    pub fn leaves_rest(&self, number: usize) -> bool {
        self.all.get(number).is_some_and(|disk| disk.rest.is_left())
    }

    /// Which blocks of the disk of this number are left so, a bit for each; `None` where it goes with its guest.
    pub fn rest_of(&self, number: usize) -> Option<Vec<u64>> {
        self.all.get(number)?.rest.words()
    }

    /// What has travelled of each, with its identity.
    pub fn class_bytes(&self) -> impl Iterator<Item = (String, ClassBytes)> {
        self.all.iter().map(|disk| {
            let bytes = ClassBytes {
                demand: 0,
                write: disk.echoed.load(Ordering::Relaxed),
                background: disk.passed.load(Ordering::Relaxed),
            };
            (disk.offer.id.clone(), bytes)
        })
    }

    /// Bytes of the disk of this number that have left.
    pub fn sent_of(&self, number: usize) -> u64 {
        let disk = self.all.get(number);
        let sent = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed);
        disk.map_or(0, |disk| sent(&disk.echoed) + sent(&disk.passed))
    }

    /// Whether any is mirrored.
    pub fn are_mirrored(&self) -> bool {
        self.all.iter().any(|disk| disk.echo.is_on())
    }

    /// Takes what was marked and is not sent, while no stream sends.
    pub fn take_changes(&self) -> Result<Changes, Error> {
        let offers = self.all.iter().map(|disk| &disk.offer);
        let mut changed = changes::none(offers.clone());
        for (words, disk) in changed.iter_mut().zip(&self.all) {
            // The first pass is over: a block that is marked is sent, whatever was found of it.
            if let Some(kept) = disk.kept.get() {
                kept.end();
            }
            disk.echo.take_all(&*disk.volume, words)?;
            disk.rest.keep_all(words);
        }
        changes::mask_tails(&mut changed, offers);
        Ok(changed)
    }

    /// A pass is about to be sent, of `changes`; the one before is placed.
    pub fn begin_pass(&self, changes: &mut Changes) {
        for (disk, words) in self.all.iter().zip(changes) {
            disk.rest.keep_all(words);
            disk.echo.begin_pass(&disk.lanes, words);
        }
    }

    /// The streams of a new link share all of them anew; what those of the old one have added to the digest.
    pub fn begin_again(&self) -> u64 {
        let sums = self.all.iter().map(|disk| {
            disk.lanes.deal_anew();
            disk.trail.forget();
            let uncounted = disk.kept.get().map_or(0, |kept| {
                kept.begin_again();
                kept.matches.uncounted(&disk.sums)
            });
            disk.sums.sum().wrapping_sub(uncounted)
        });
        sums.fold(0, u64::wrapping_add)
    }

    /// Takes out of `changes`, which `pass` sends, what is placed where so many `frames` of each stream are.
    pub fn leave_out_placed(&self, changes: &mut Changes, pass: u32, frames: &[u32]) {
        for (disk, words) in self.all.iter().zip(changes) {
            for stripe in 0..stripes(disk.offer.moves()) {
                if disk.trail.is_placed(stripe, pass, frames) {
                    changes::clear_stripe(words, stripe);
                }
            }
            let mut unplaced = vec![0; words.len()];
            disk.echo.add_unplaced(&mut unplaced);
            for (at, (word, unplaced)) in words.iter_mut().zip(unplaced).enumerate() {
                *word |= unplaced;
                // Their marks are taken: what was found of them may have been before.
                if let Some(kept) = disk.kept.get() {
                    kept.matches.settle(at, unplaced, &disk.sums);
                }
            }
        }
    }
}

/// What one stream sends of all disks.
pub(crate) struct BlockSender<'a> {
    disks: &'a Disks,
    stream: u16,
    key: Option<&'a HashKey>,
    sums: Vec<BlockSums<'a>>,
    dealing: Dealing,
    batch: Batch,
}

impl<'a> BlockSender<'a> {
    pub fn new(disks: &'a Disks, stream: u16, key: Option<&'a HashKey>) -> Self {
        let sums = disks.all.iter().enumerate();
        Self {
            sums: sums
                .map(|(number, disk)| BlockSums::new(number, &disk.sums))
                .collect(),
            disks,
            stream,
            key,
            dealing: Dealing::Now,
            batch: Batch::new(),
        }
    }

    /// What this stream's blocks add to the digest.
    pub fn digest(&self) -> u64 {
        let digests = self.sums.iter().map(BlockSums::digest);
        digests.fold(0, u64::wrapping_add)
    }

    /// Sends this stream's share of the blocks that are set in `changes`.
    pub fn send_pass(
        &mut self,
        outlet: &mut Outlet<'_>,
        (pass, kind): (u32, PassKind),
        changes: &Changes,
    ) -> Result<(), Error> {
        let (disks, stream, dealing) = (self.disks, self.stream, self.dealing);
        for (number, (disk, words)) in disks.all.iter().zip(changes).enumerate() {
            let mut send = |stripe| -> Result<(), Error> {
                self.send_echo(outlet, pass)?;
                if disk.rest.keep(stripe, changes::of_stripe(words, stripe)) {
                    return Ok(());
                }
                if kind != PassKind::Again {
                    self.await_found(outlet, pass, number, stripe)?;
                }
                let echoed = self.send_pending(outlet, pass, number, stripe)?;
                let bits = changes::of_stripe(words, stripe) & !echoed;
                // What is going to be sent again anyway need not be sent now: so blocks that change often wait until
                // passes are short, or the guest stands still.
                let put_off = disk.changing(stripe, bits);
                let counters = outlet.counters();
                Counters::add(&counters.put_off_blocks, put_off.count_ones().into());
                let bits = bits & !put_off;
                let present = match kind {
                    PassKind::First | PassKind::Rest => {
                        self.send_present(outlet, pass, number, (stripe, bits))?
                    }
                    PassKind::Again => 0,
                };
                let mut runs = changes::runs(bits & !present);
                runs.try_for_each(|run| {
                    let range = disk.bytes(stripe, run);
                    let turn = Turn {
                        pass,
                        kind,
                        class: Class::Background,
                    };
                    self.send_range(outlet, turn, number, range)
                })?;
                let last = outlet.frame_of(!self.batch.ranges.is_empty());
                disk.trail.left(stripe, (pass, self.stream), last);
                Ok(())
            };
            match dealing {
                Dealing::Now => {
                    while let Some(mut stripes) = disk.lanes.take(stream, AT_ONCE) {
                        stripes.try_for_each(&mut send)?;
                    }
                }
                Dealing::Done => disk.lanes.carried(stream).try_for_each(&mut send)?,
            }
        }
        self.dealing = Dealing::Done;
        self.flush(outlet, pass)
    }

    /// Waits until it is known what the destination has of a stripe, as far as that is worthwhile.
    fn await_found(
        &mut self,
        outlet: &mut Outlet<'_>,
        pass: u32,
        number: usize,
        stripe: u64,
    ) -> Result<(), Error> {
        let disks = self.disks;
        let Some(kept) = disks.all[number].kept.get() else {
            return Ok(());
        };
        kept.reached_stripe();
        while kept.is_to_wait(stripe) {
            // What was pushed before may be what others wait for.
            self.flush(outlet, pass)?;
            outlet.check()?;
            self.send_echo(outlet, pass)?;
            kept.wait(LOOK);
        }
        Ok(())
    }

    /// Says of those of the blocks `bits` of a stripe that they are there that are; which they are.
    fn send_present(
        &mut self,
        outlet: &mut Outlet<'_>,
        pass: u32,
        number: usize,
        (stripe, bits): (u64, u32),
    ) -> Result<u32, Error> {
        let disk = &self.disks.all[number];
        let Some(kept) = disk.kept.get() else {
            return Ok(0);
        };
        let (at, shift) = ((stripe / 2) as usize, stripe % 2 * STRIPE_BLOCKS);
        let [new, before] = kept.matches.take(at, u64::from(bits) << shift);
        if self.key.is_some() {
            numbers(at, new).for_each(|block| self.sums[number].note_present(block));
        }
        let present = ((new | before) >> shift) as u32;
        for run in changes::runs(present) {
            let range = disk.bytes(stripe, run);
            let counters = outlet.counters();
            Counters::add(&counters.disk_present_bytes, range.end - range.start);
            self.batch.push(number, range, BlockEncoding::Present);
        }
        self.make_room(outlet, pass)?;
        Ok(present)
    }

    /// Whether there is any disk, which may be mirrored at any moment.
    pub fn are_any(&self) -> bool {
        !self.disks.all.is_empty()
    }

    /// Whether any disk is mirrored.
    pub fn are_mirrored(&self) -> bool {
        self.disks.are_mirrored()
    }

    /// Sends what the guest has changed of mirrored disks, of all stripes that this stream carries: it goes before what
    /// else there is to send.
    pub fn send_echo(&mut self, outlet: &mut Outlet<'_>, pass: u32) -> Result<(), Error> {
        let disks = self.disks;
        for (number, disk) in disks.all.iter().enumerate() {
            if !disk.echo.is_on() {
                continue;
            }
            disk.echo.go_round(&*disk.volume, &disk.lanes)?;
            let sending = disk.echo.begin_sending();
            let is_ours = |stripe: &u64| disk.lanes.carrier(*stripe) == Some(self.stream);
            let ours: Vec<u64> = disk.echo.stripes().filter(is_ours).collect();
            if ours.is_empty() {
                continue;
            }
            for stripe in ours {
                self.send_pending(outlet, pass, number, stripe)?;
            }
            self.flush(outlet, pass)?;
            drop(sending);
        }
        Ok(())
    }

    /// Sends what is pending of a stripe that this stream carries; all that was sent so in this pass.
    fn send_pending(
        &mut self,
        outlet: &mut Outlet<'_>,
        pass: u32,
        number: usize,
        stripe: u64,
    ) -> Result<u32, Error> {
        let disk = &self.disks.all[number];
        if !disk.echo.is_on() {
            return Ok(0);
        }
        for run in changes::runs(disk.echo.take(stripe)) {
            let range = disk.bytes(stripe, run);
            let counters = outlet.counters();
            Counters::add(&counters.echoed_bytes, range.end - range.start);
            let turn = Turn {
                pass,
                kind: PassKind::Again,
                class: Class::Write,
            };
            self.send_range(outlet, turn, number, range)?;
        }
        Ok(disk.echo.sent(stripe))
    }

    /// Sends whole blocks, within one stripe.
    fn send_range(
        &mut self,
        outlet: &mut Outlet<'_>,
        turn: Turn,
        number: usize,
        range: Range<u64>,
    ) -> Result<(), Error> {
        outlet.check()?;
        let disk = &self.disks.all[number];
        disk.settle(&range);
        let data = disk.volume.data(range.clone());
        let mut at = range.start;
        for data in data.map_err(Error::vm("tell where the disk holds data"))? {
            let data = widened(data, &range);
            let from = data.start.max(at);
            if from >= data.end {
                continue;
            }
            self.zeroes(outlet, turn.kind, number, at..from);
            at = from;
            while at < data.end {
                let most = MOST.min(outlet.most()) as u64 / PAGE_SIZE * PAGE_SIZE;
                let end = data.end.min(at + most);
                self.data(outlet, turn, number, at..end)?;
                at = end;
            }
        }
        self.zeroes(outlet, turn.kind, number, at..range.end);
        self.make_room(outlet, turn.pass)
    }

    /// Sees to it that the batch has room for the ranges of one more payload, and one of zeroes on either side.
    fn make_room(&mut self, outlet: &mut Outlet<'_>, pass: u32) -> Result<(), Error> {
        match self.batch.is_full() {
            true => self.flush(outlet, pass),
            false => Ok(()),
        }
    }

    /// `range` reads as zeroes; there is room for it in the batch.
    fn zeroes(&mut self, outlet: &Outlet<'_>, kind: PassKind, number: usize, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        Counters::add(&outlet.counters().disk_zero_bytes, range.end - range.start);
        if self.key.is_some() {
            self.sums[number].note_zeroes(range.clone());
        }
        // Of what is left of a first pass some may be there already.
        if kind != PassKind::First || self.disks.all[number].kept.get().is_some() {
            self.batch.push(number, range, BlockEncoding::Zero);
        }
    }

    /// `range`, at most [`MOST`] bytes, may hold anything.
    fn data(
        &mut self,
        outlet: &mut Outlet<'_>,
        turn: Turn,
        number: usize,
        range: Range<u64>,
    ) -> Result<(), Error> {
        let len = (range.end - range.start) as usize;
        if self.batch.used + len > MOST.min(outlet.most().max(len)) {
            self.flush(outlet, turn.pass)?;
        }
        let into = self.batch.room(len);
        let read = self.disks.all[number].volume.read(range.start, into);
        read.map_err(Error::vm("read the disk"))?;
        // Runs of pages that travel alike.
        let mut at = 0;
        while at < len {
            let is_zero = self.batch.is_zero(at, len);
            let mut end = at + PAGE_SIZE as usize;
            while end < len && self.batch.is_zero(end, len) == is_zero {
                end += PAGE_SIZE as usize;
            }
            let end = end.min(len);
            let bytes = range.start + at as u64..range.start + end as u64;
            if is_zero {
                self.zeroes(outlet, turn.kind, number, bytes);
            } else {
                self.disks.all[number].count(turn.class, end as u64 - at as u64);
                self.raw(outlet, number, at, bytes);
            }
            at = end;
        }
        self.batch.keep(len);
        self.make_room(outlet, turn.pass)
    }

    /// `range` was read to byte `at` of the batch's room, and is no zeroes.
    fn raw(&mut self, outlet: &Outlet<'_>, number: usize, at: usize, range: Range<u64>) {
        Counters::add(&outlet.counters().disk_bytes, range.end - range.start);
        if let Some(key) = self.key {
            let pages = self.batch.pages(at, (range.end - range.start) as usize);
            self.sums[number].note_data(key, range.start, pages);
        }
        self.batch.push_raw(number, at, range);
    }

    fn flush(&mut self, outlet: &mut Outlet<'_>, pass: u32) -> Result<(), Error> {
        self.batch.send(outlet, pass)
    }
}

impl Disk {
    fn count(&self, class: Class, bytes: u64) {
        let counter = match class {
            Class::Write => &self.echoed,
            Class::Background => &self.passed,
        };
        Counters::add(counter, bytes);
    }

    /// Which of the blocks `bits` of a stripe have changed since their marks were taken.
    fn changing(&self, stripe: u64, bits: u32) -> u32 {
        let blocks = (0..STRIPE_BLOCKS).filter(|block| bits >> block & 1 == 1);
        let changing =
            blocks.filter(|block| self.volume.has_changed(stripe * STRIPE_BLOCKS + block));
        changing.fold(0, |bits, block| bits | 1 << block)
    }

    /// What is sent of `range` counts, and not what was found of it.
    fn settle(&self, range: &Range<u64>) {
        if let Some(kept) = self.kept.get() {
            let blocks = range.start / BLOCK_SIZE..range.end.div_ceil(BLOCK_SIZE);
            for (at, bits) in by_words(blocks) {
                kept.matches.settle(at, bits, &self.sums);
            }
        }
    }

    /// The bytes of blocks `run` of a stripe.
    fn bytes(&self, stripe: u64, run: Range<u64>) -> Range<u64> {
        let at = |block: u64| (stripe * STRIPE + block * BLOCK_SIZE).min(self.offer.moves());
        debug_assert!(run.end <= STRIPE_BLOCKS);
        at(run.start)..at(run.end)
    }
}
