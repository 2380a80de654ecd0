//! A disk's part of a data stream at the source: reads its share of a pass, hashes and sends it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::IntoBytes;

use super::buffer::PageBuffer;
use super::changes::{self, Changes};
use super::echo::Echo;
use super::sums::BlockSums;
use super::{STRIPE, STRIPE_BLOCKS, stripes, widened};
use crate::PAGE_SIZE;
use crate::disk_bytes::ClassBytes;
use crate::error::Error;
use crate::frames::{Counters, Outlet, PassKind, Trail};
use crate::pages::hashes::Words;
use crate::pages::stripes::{Dealing, Lanes};
use crate::progress::Verify;
use crate::raw::{HashKey, Piece, RamSlice};
use crate::vm::{BLOCK_SIZE, SourceVolume, VolumeOffer};
use crate::wire::agreed::Agreed;
use crate::wire::batch::{BATCH_LEN, BatchHeader, MAX_RANGES};
use crate::wire::blocks::{BLOCK_RANGE_LEN, BlockEncoding, BlockRange};

/// Payload of a batch at most, whatever the outlet takes.
const MOST: usize = 512 << 10;
/// Stripes of the first pass that a stream takes at once: a few, so that streams end together.
const AT_ONCE: u64 = 4;

/// Disks that travel, and what a source remembers of them for all of its streams.
pub(crate) struct Disks {
    all: Vec<Disk>,
}

struct Disk {
    volume: Arc<dyn SourceVolume>,
    offer: VolumeOffer,
    lanes: Lanes,
    /// What each block adds to the digest.
    sums: Words,
    trail: Trail,
    /// What changes of it while it is mirrored.
    echo: Echo,
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
            lanes: Lanes::new(stripes(offer.size), u16::from(streams), agreed),
            sums: Words::new(match verify {
                Verify::Off => 0,
                // That all memory is hashed at the end tells nothing of disks.
                Verify::Stream | Verify::Full => offer.blocks() as usize,
            }),
            trail: Trail::new(stripes(offer.size)),
            echo: Echo::off(offer.blocks()),
            echoed: AtomicU64::new(0),
            passed: AtomicU64::new(0),
        });
        Self { all: all.collect() }
    }

    /// Mirrors the disk of this number from here on.
    pub fn mirror(&self, number: usize) {
        if let Some(disk) = self.all.get(number) {
            disk.echo.turn_on();
        }
    }

    /// What has travelled of each, with its identity.
    pub fn class_bytes(&self) -> impl Iterator<Item = (String, ClassBytes)> {
        self.all.iter().map(|disk| {
            let bytes = ClassBytes {
                write: disk.echoed.load(Ordering::Relaxed),
                background: disk.passed.load(Ordering::Relaxed),
            };
            (disk.offer.id.clone(), bytes)
        })
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
            disk.echo.take_all(&*disk.volume, words)?;
        }
        changes::mask_tails(&mut changed, offers);
        Ok(changed)
    }

    /// A pass is about to be sent, of `changes`; the one before is placed.
    pub fn begin_pass(&self, changes: &mut Changes) {
        for (disk, words) in self.all.iter().zip(changes) {
            disk.echo.begin_pass(&disk.lanes, words);
        }
    }

    /// The streams of a new link share all of them anew; what those of the old one have added to the digest.
    pub fn begin_again(&self) -> u64 {
        let sums = self.all.iter().map(|disk| {
            disk.lanes.deal_anew();
            disk.trail.forget();
            disk.sums.sum()
        });
        sums.fold(0, u64::wrapping_add)
    }

    /// Takes out of `changes`, which `pass` sends, what is placed where so many `frames` of each stream are.
    pub fn leave_out_placed(&self, changes: &mut Changes, pass: u32, frames: &[u32]) {
        for (disk, words) in self.all.iter().zip(changes) {
            for stripe in 0..stripes(disk.offer.size) {
                if disk.trail.is_placed(stripe, pass, frames) {
                    changes::clear_stripe(words, stripe);
                }
            }
            disk.echo.add_unplaced(words);
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
                let echoed = self.send_pending(outlet, pass, number, stripe)?;
                let bits = changes::of_stripe(words, stripe) & !echoed;
                // What is going to be sent again anyway need not be sent now: so blocks that change often wait until
                // passes are short, or the guest stands still.
                let put_off = disk.changing(stripe, bits);
                let counters = outlet.counters();
                Counters::add(&counters.put_off_blocks, put_off.count_ones().into());
                let mut runs = changes::runs(bits & !put_off);
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
        if kind != PassKind::First {
            self.batch.push_zeroes(number, range);
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

    /// The bytes of blocks `run` of a stripe.
    fn bytes(&self, stripe: u64, run: Range<u64>) -> Range<u64> {
        let at = |block: u64| (stripe * STRIPE + block * BLOCK_SIZE).min(self.offer.size);
        debug_assert!(run.end <= STRIPE_BLOCKS);
        at(run.start)..at(run.end)
    }
}

/// Ranges and their payload, in buffers that are used again from one batch to the next.
struct Batch {
    ranges: Vec<BlockRange>,
    pieces: Vec<Piece<'static>>,
    /// The payload, then the head.
    buffer: PageBuffer,
    /// Bytes of the buffer that hold what was read for it, a multiple of the page size.
    used: usize,
    payload: usize,
}

/// Room for the head of any batch.
const HEAD: usize = BATCH_LEN + MAX_RANGES * BLOCK_RANGE_LEN;
/// Pages of the largest payload, each of which may need a range.
const PAGES: usize = MOST / PAGE_SIZE as usize;
const _: () = assert!(PAGES * 2 < MAX_RANGES);

impl Batch {
    fn new() -> Self {
        Self {
            ranges: Vec::with_capacity(MAX_RANGES),
            pieces: Vec::with_capacity(MAX_RANGES + 1),
            buffer: PageBuffer::new(MOST + HEAD),
            used: 0,
            payload: 0,
        }
    }

    /// Whether what comes next may have more ranges than it has room for.
    fn is_full(&self) -> bool {
        self.ranges.len() + PAGES + 2 > MAX_RANGES
    }

    /// Where the next `len` bytes are to be read to.
    fn room(&mut self, len: usize) -> &mut [u8] {
        let pages = len.next_multiple_of(PAGE_SIZE as usize);
        let room = &mut self.buffer.bytes_mut()[self.used..self.used + pages];
        // The last page of a disk may be short; what is behind it counts as zero.
        room[len..].fill(0);
        &mut room[..len]
    }

    /// Pages from byte `at` of what was read last.
    fn pages(&mut self, at: usize, len: usize) -> RamSlice<'_> {
        let from = self.used + at;
        let pages = len.next_multiple_of(PAGE_SIZE as usize);
        RamSlice::over(&mut self.buffer.bytes_mut()[from..from + pages])
    }

    fn is_zero(&mut self, at: usize, len: usize) -> bool {
        let one = (PAGE_SIZE as usize).min(len - at);
        self.pages(at, one).is_zero()
    }

    /// What was read last, `len` bytes, stays until the batch is sent.
    fn keep(&mut self, len: usize) {
        if self.pieces.is_empty() {
            // None of it travels.
            return;
        }
        self.used += len.next_multiple_of(PAGE_SIZE as usize);
    }

    fn push_zeroes(&mut self, number: usize, range: Range<u64>) {
        let range = BlockRange::new(number as u16, range, BlockEncoding::Zero);
        self.ranges.push(range);
    }

    fn push_raw(&mut self, number: usize, at: usize, range: Range<u64>) {
        let len = (range.end - range.start) as usize;
        let at = self.used + at;
        self.ranges
            .push(BlockRange::new(number as u16, range, BlockEncoding::Raw));
        if self.pieces.is_empty() {
            // The head travels first and is known last.
            self.pieces.push(Piece::Bytes { at: 0, len: 0 });
        }
        self.pieces.push(Piece::Bytes { at, len });
        self.payload += len;
    }

    fn send(&mut self, outlet: &mut Outlet<'_>, pass: u32) -> Result<(), Error> {
        if self.ranges.is_empty() {
            return Ok(());
        }
        let header = BatchHeader::of(pass, &self.ranges);
        let ranges = self.ranges.as_bytes();
        let len = BATCH_LEN + ranges.len();
        let head = &mut self.buffer.bytes_mut()[self.used..self.used + len];
        head[..BATCH_LEN].copy_from_slice(header.as_bytes());
        head[BATCH_LEN..].copy_from_slice(ranges);
        let head = Piece::Bytes { at: self.used, len };
        match self.pieces.first_mut() {
            Some(first) => *first = head,
            None => self.pieces.push(head),
        }
        let sent = outlet.send_pieces(self.buffer.bytes(), &self.pieces, len + self.payload);
        self.ranges.clear();
        self.pieces.clear();
        (self.used, self.payload) = (0, 0);
        sent
    }
}
