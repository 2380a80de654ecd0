//! A data stream of the source: clears, scans, hashes and sends its share of a pass.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use zerocopy::IntoBytes;

use super::Counters;
use super::batch::Batch;
use super::dirty::{Bitmaps, next_run};
use super::hashes::{PageHashes, Words};
use super::stripes::{Lanes, Stripe};
use super::window::Window;
use crate::PAGE_SIZE;
use crate::bandwidth::Bucket;
use crate::control::Control;
use crate::error::Error;
use crate::progress::Verify;
use crate::raw::{HashKey, Ram, RamSlice, Span};
use crate::session::{Note, Session};
use crate::transport::Connection;
use crate::vm::DirtyMemory;
use crate::wire::agreed::Agreed;
use crate::wire::batch::{BatchHeader, Encoding};

/// Payload of a batch at most; half a megabyte of hashed pages is still in the cache when it is sent.
const BATCH: usize = 512 << 10;
/// Payload of a batch at least, when a limit makes batches smaller so that it is kept evenly.
const MIN_BATCH: usize = 64 << 10;

/// Whether the destination's memory is still as it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PassKind {
    /// Nothing was sent: holes and zero pages need not travel.
    First,
    /// Pages sent before are sent again.
    Again,
}

/// A pass over the dirty pages.
pub(crate) struct Pass {
    pub number: u32,
    pub kind: PassKind,
    pub dirty: Bitmaps,
}

/// What a source remembers of its pages, for all of its streams.
pub(crate) struct Sent {
    lanes: Lanes,
    /// A bit for each page that holds data at the destination.
    placed: Words,
    hashes: Words,
}

impl Sent {
    /// Of a guest of which nothing was sent, as was agreed with the destination.
    pub fn nothing(ram: &Ram, verify: Verify, streams: u8, agreed: Agreed) -> Self {
        Self {
            lanes: Lanes::new(ram.stripes(), u16::from(streams), agreed),
            placed: Words::new(ram.table_len() / 64),
            hashes: Words::of_hashes(ram, verify),
        }
    }
}

/// What all streams of a source share.
pub(crate) struct Sending<'a> {
    pub memory: &'a dyn DirtyMemory,
    pub ram: Arc<Ram>,
    pub sent: Arc<Sent>,
    pub session: Arc<Session>,
    pub control: &'a Control,
    pub bucket: Arc<Bucket>,
    pub counters: Arc<Counters>,
    /// Key of the digest; `None` when the stream is not verified.
    pub key: Option<Arc<HashKey>>,
}

/// One data stream.
pub(crate) struct Sender<'a> {
    shared: &'a Sending<'a>,
    stream: u16,
    connection: Arc<dyn Connection>,
    hashes: PageHashes<'a>,
    window: Window,
    batch: Batch<'a>,
    /// Payload of a batch at most.
    most: usize,
}

impl<'a> Sender<'a> {
    pub fn new(shared: &'a Sending<'a>, stream: u16, connection: Arc<dyn Connection>) -> Self {
        Self {
            hashes: PageHashes::new(&shared.sent.hashes),
            shared,
            stream,
            connection,
            window: Window::new(),
            batch: Batch::new(),
            most: BATCH,
        }
    }

    /// Sends pass after pass until there are no more.
    pub fn run(mut self, passes: &Receiver<Arc<Pass>>) {
        while let Ok(pass) = passes.recv() {
            let number = pass.number;
            self.shared.session.pass_begins(number);
            let sent = self.send_pass(&pass);
            // The bitmaps are used again once nobody holds them.
            drop(pass);
            match sent {
                Ok(()) => self.shared.session.note(Note::PassDone {
                    stream: self.stream,
                    pass: number,
                    digest: self.hashes.digest(),
                }),
                Err(error) => return self.shared.session.fail(error),
            }
        }
    }

    fn send_pass(&mut self, pass: &Pass) -> Result<(), Error> {
        let lanes = &self.shared.sent.lanes;
        match pass.kind {
            PassKind::First => {
                while let Some(stripes) = lanes.take(self.stream, self.window.limit()) {
                    self.send_stripes(pass, stripes)?;
                }
            }
            PassKind::Again => self.send_stripes(pass, lanes.carried(self.stream))?,
        }
        self.flush(pass.number)?;
        let header = BatchHeader::pass_end(pass.number);
        let bytes = header.as_bytes();
        self.pace(bytes.len());
        let sent = self.connection.send(bytes);
        self.count(bytes.len(), sent)
    }

    fn send_stripes(
        &mut self,
        pass: &Pass,
        stripes: impl Iterator<Item = u64>,
    ) -> Result<(), Error> {
        for stripe in stripes {
            let Some(stripe) = Stripe::at(&self.shared.ram, stripe) else {
                continue;
            };
            let words = stripe.words(&pass.dirty[stripe.region]);
            if words.iter().all(|&word| word == 0) {
                continue;
            }
            if !self.window.has_room(stripe) {
                self.send_window(pass)?;
            }
            self.window.push(stripe);
        }
        self.send_window(pass)
    }

    /// Sends the dirty pages of the stripes in the window.
    fn send_window(&mut self, pass: &Pass) -> Result<(), Error> {
        let Some((region, first, marks)) = self.window.marks(&pass.dirty) else {
            return Ok(());
        };
        let began = Instant::now();
        // Marks go before the pages are read, also before the file is asked for holes: what the guest
        // writes from here on is seen in the next pass.
        self.shared
            .memory
            .clear_vcpu_writes(region, first, marks)
            .map_err(Error::vm("clear dirty marks"))?;
        for index in 0..self.window.stripes().len() {
            if self.shared.session.is_stopped() {
                return Err(Error::Cancelled);
            }
            let stripe = self.window.stripes()[index];
            let words = stripe.words(&pass.dirty[stripe.region]);
            let mut at = 0;
            while let Some((first, end)) = next_run(words, at) {
                at = end;
                self.send_run(pass, stripe, stripe.first + first, stripe.first + end)?;
            }
        }
        self.window.sent(began.elapsed());
        Ok(())
    }

    /// Sends the dirty pages `[first, end)` of a stripe.
    fn send_run(&mut self, pass: &Pass, stripe: Stripe, first: u64, end: u64) -> Result<(), Error> {
        if pass.kind == PassKind::Again {
            return self.send_data(pass, stripe, first, end);
        }
        let region = &self.shared.ram.regions()[stripe.region];
        let mut at = first;
        while let Some((data, data_end)) = region.next_data(at, end) {
            Counters::add(&self.shared.counters.hole_pages, data - at);
            self.send_data(pass, stripe, data, data_end)?;
            at = data_end;
        }
        Counters::add(&self.shared.counters.hole_pages, end - at);
        Ok(())
    }

    fn send_data(
        &mut self,
        pass: &Pass,
        stripe: Stripe,
        first: u64,
        end: u64,
    ) -> Result<(), Error> {
        let ram = &self.shared.ram;
        let region = &ram.regions()[stripe.region];
        // A run of pages that travel alike: its first page and encoding.
        let mut run: Option<(u64, Encoding)> = None;
        let mut zero = 0;
        for page in first..end {
            let slice = ram.slice(Span {
                region: stripe.region,
                page,
                pages: 1,
            });
            let gpa = region.gpa() + page * PAGE_SIZE;
            let encoding = self.classify(pass.kind, region.index(page), gpa, slice);
            zero += u64::from(encoding != Some(Encoding::Raw));
            if run.map(|(_, encoding)| encoding) != encoding {
                self.push(stripe, run, page);
                run = encoding.map(|encoding| (page, encoding));
            }
            let pending = run.map_or(0, |(from, _)| (page + 1 - from) * PAGE_SIZE) as usize;
            if self.batch.payload() + pending >= self.most || self.batch.room() <= 1 {
                self.push(stripe, run.take(), page + 1);
                self.flush(pass.number)?;
            }
        }
        self.push(stripe, run, end);
        let counters = &self.shared.counters;
        Counters::add(&counters.zero_pages, zero);
        Counters::add(&counters.raw_pages, end - first - zero);
        Ok(())
    }

    /// How a page is to travel, `None` for not at all; keeps the digest.
    fn classify(
        &mut self,
        kind: PassKind,
        at: usize,
        gpa: u64,
        page: RamSlice<'_>,
    ) -> Option<Encoding> {
        let placed = &self.shared.sent.placed;
        let (word, bit) = (at / 64, 1u64 << (at % 64));
        let before = placed.get(word);
        let encoding = if !page.is_zero() {
            placed.set(word, before | bit);
            Some(Encoding::Raw)
        } else {
            placed.set(word, before & !bit);
            (before & bit != 0).then_some(Encoding::Zero)
        };
        if let Some(key) = &self.shared.key {
            let hash = if encoding == Some(Encoding::Raw) {
                key.page(gpa, page)
            } else {
                0
            };
            match kind {
                PassKind::First => self.hashes.note_first(at, hash),
                PassKind::Again => self.hashes.note_again(at, hash),
            }
        }
        encoding
    }

    fn push(&mut self, stripe: Stripe, run: Option<(u64, Encoding)>, end: u64) {
        let Some((first, encoding)) = run else { return };
        let span = Span {
            region: stripe.region,
            page: first,
            pages: end - first,
        };
        self.batch.push(&self.shared.ram, span, encoding);
    }

    fn flush(&mut self, pass: u32) -> Result<(), Error> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.pace(self.batch.len());
        let (bytes, pieces) = self.batch.frame(pass);
        let sent = self.connection.send_pieces(bytes, pieces);
        let length = self.batch.len();
        self.batch.clear();
        self.count(length, sent)
    }

    /// Waits until a frame of `length` bytes may be sent, and notes how long the next one may be.
    fn pace(&mut self, length: usize) {
        let Sending {
            bucket,
            control,
            session,
            ..
        } = self.shared;
        bucket.acquire(length, control, || session.is_stopped());
        self.most = match control.limits().bandwidth {
            Some(rate) => usize::try_from(rate / 50)
                .unwrap_or(BATCH)
                .clamp(MIN_BATCH, BATCH),
            None => BATCH,
        };
    }

    /// Counts a frame of `length` bytes, if it was sent.
    fn count(&self, length: usize, sent: io::Result<()>) -> Result<(), Error> {
        sent.map_err(Error::link("sending pages"))?;
        Counters::add(&self.shared.counters.wire_bytes, length as u64);
        Ok(())
    }
}
