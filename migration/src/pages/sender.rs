//! The memory's part of a data stream at the source: clears, scans, hashes and sends its share of a pass.

use std::sync::Arc;
use std::time::Instant;

use super::batch::Batch;
use super::dirty::{Bitmaps, next_run};
use super::hashes::{PageHashes, Words};
use super::stripes::{Dealing, Lanes, Stripe};
use super::window::Window;
use crate::PAGE_SIZE;
use crate::error::Error;
use crate::frames::{Counters, Outlet, PassKind, Trail};
use crate::progress::Verify;
use crate::raw::{HashKey, Ram, RamSlice, Span};
use crate::vm::DirtyMemory;
use crate::wire::agreed::Agreed;
use crate::wire::batch::Encoding;

/// What a source remembers of its pages, for all of its streams.
pub(crate) struct Sent {
    lanes: Lanes,
    /// A bit for each page that was ever sent as data: what the destination holds of it, whichever link was lost, may be
    /// that.
    as_data: Words,
    hashes: Words,
    trail: Trail,
}

impl Sent {
    /// Of a guest of which nothing was sent, as was agreed with the destination.
    pub fn nothing(ram: &Ram, verify: Verify, streams: u8, agreed: Agreed) -> Self {
        Self {
            lanes: Lanes::new(ram.stripes(), u16::from(streams), agreed),
            as_data: Words::new(ram.table_len() / 64),
            hashes: Words::of_hashes(ram, verify),
            trail: Trail::new(ram.stripes()),
        }
    }

    /// Takes out of `dirty`, which `pass` sends, what is placed where so many `frames` of each stream are.
    pub fn leave_out_placed(&self, ram: &Ram, dirty: &mut Bitmaps, pass: u32, frames: &[u32]) {
        for number in 0..ram.stripes() {
            if self.trail.is_placed(number, pass, frames)
                && let Some(stripe) = Stripe::at(ram, number)
            {
                stripe.words_mut(&mut dirty[stripe.region]).fill(0);
            }
        }
    }

    /// The streams of a new link share all of it anew; what those of the old one have added to the digest.
    pub fn begin_again(&self) -> u64 {
        self.lanes.deal_anew();
        self.trail.forget();
        self.hashes.sum()
    }
}

/// Memory that is given away, for all streams of its source.
pub(crate) struct Memory<'a> {
    pub marks: &'a dyn DirtyMemory,
    pub ram: Arc<Ram>,
    pub sent: Arc<Sent>,
    /// Key of the digest; `None` when the stream is not verified.
    pub key: Option<Arc<HashKey>>,
}

/// What one stream sends of it.
pub(crate) struct PageSender<'a> {
    shared: &'a Memory<'a>,
    stream: u16,
    hashes: PageHashes<'a>,
    dealing: Dealing,
    window: Window,
    batch: Batch<'a>,
}

/// What goes before pages, whenever it has something to send.
pub(crate) type Beside<'b> = &'b mut dyn FnMut(&mut Outlet<'_>) -> Result<(), Error>;

/// A pass as one stream goes through it.
struct Going<'p, 'o, 'a> {
    number: u32,
    kind: PassKind,
    dirty: &'p Bitmaps,
    outlet: &'o mut Outlet<'a>,
    beside: Option<Beside<'p>>,
}

impl<'a> PageSender<'a> {
    pub fn new(shared: &'a Memory<'a>, stream: u16) -> Self {
        Self {
            hashes: PageHashes::new(&shared.sent.hashes),
            shared,
            stream,
            dealing: Dealing::Now,
            window: Window::new(),
            batch: Batch::new(),
        }
    }

    /// What this stream's pages add to the digest.
    pub fn digest(&self) -> u64 {
        self.hashes.digest()
    }

    /// Sends this stream's share of the pages that are set in `dirty`.
    pub fn send_pass<'p>(
        &mut self,
        outlet: &mut Outlet<'_>,
        (number, kind): (u32, PassKind),
        dirty: &'p Bitmaps,
        beside: Option<Beside<'p>>,
    ) -> Result<(), Error> {
        let going = &mut Going {
            number,
            kind,
            dirty,
            outlet,
            beside,
        };
        let lanes = &self.shared.sent.lanes;
        match self.dealing {
            Dealing::Now => {
                while let Some(stripes) = lanes.take(self.stream, self.window.limit()) {
                    self.send_stripes(going, stripes)?;
                }
                self.dealing = Dealing::Done;
            }
            Dealing::Done => self.send_stripes(going, lanes.carried(self.stream))?,
        }
        self.flush(going)
    }

    fn send_stripes(
        &mut self,
        pass: &mut Going<'_, '_, '_>,
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
    fn send_window(&mut self, pass: &mut Going<'_, '_, '_>) -> Result<(), Error> {
        if pass.beside.is_some() {
            // What is noted of pages counts on it that nothing goes between them and their frame.
            self.flush(pass)?;
        }
        if let Some(beside) = &mut pass.beside {
            beside(pass.outlet)?;
        }
        let Some((region, first, marks)) = self.window.marks(pass.dirty) else {
            return Ok(());
        };
        let began = Instant::now();
        // Marks go before the pages are read, also before the file is asked for holes: what the guest
        // writes from here on is seen in the next pass.
        self.shared
            .marks
            .clear_vcpu_writes(region, first, marks)
            .map_err(Error::vm("clear dirty marks"))?;
        for index in 0..self.window.stripes().len() {
            pass.outlet.check()?;
            let stripe = self.window.stripes()[index];
            let words = stripe.words(&pass.dirty[stripe.region]);
            let mut at = 0;
            while let Some((first, end)) = next_run(words, at) {
                at = end;
                self.send_run(pass, stripe, stripe.first + first, stripe.first + end)?;
            }
            let last = pass.outlet.frame_of(!self.batch.is_empty());
            let number = self.shared.ram.regions()[stripe.region].stripe_of(stripe.first);
            let of = (pass.number, self.stream);
            self.shared.sent.trail.left(number, of, last);
        }
        self.window.sent(began.elapsed());
        Ok(())
    }

    /// Sends the dirty pages `[first, end)` of a stripe.
    fn send_run(
        &mut self,
        pass: &mut Going<'_, '_, '_>,
        stripe: Stripe,
        first: u64,
        end: u64,
    ) -> Result<(), Error> {
        if pass.kind == PassKind::Again {
            return self.send_data(pass, stripe, first, end);
        }
        let region = &self.shared.ram.regions()[stripe.region];
        let mut at = first;
        while let Some((data, data_end)) = region.next_data(at, end) {
            self.pass_hole(pass, stripe, at, data)?;
            self.send_data(pass, stripe, data, data_end)?;
            at = data_end;
        }
        self.pass_hole(pass, stripe, at, end)
    }

    /// The pages `[first, end)` have no memory: none travels but those that held data once and may hold it there.
    fn pass_hole(
        &mut self,
        pass: &mut Going<'_, '_, '_>,
        stripe: Stripe,
        first: u64,
        end: u64,
    ) -> Result<(), Error> {
        let mut holes = end - first;
        if pass.kind == PassKind::Rest {
            let region = &self.shared.ram.regions()[stripe.region];
            for page in first..end {
                let at = region.index(page);
                if self.shared.sent.as_data.get(at / 64) >> (at % 64) & 1 == 1 {
                    self.send_data(pass, stripe, page, page + 1)?;
                    holes -= 1;
                }
            }
        }
        Counters::add(&pass.outlet.counters().hole_pages, holes);
        Ok(())
    }

    fn send_data(
        &mut self,
        pass: &mut Going<'_, '_, '_>,
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
            if self.batch.payload() + pending >= pass.outlet.most() || self.batch.room() <= 1 {
                self.push(stripe, run.take(), page + 1);
                self.flush(pass)?;
            }
        }
        self.push(stripe, run, end);
        let counters = pass.outlet.counters();
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
        let as_data = &self.shared.sent.as_data;
        let (word, bit) = (at / 64, 1u64 << (at % 64));
        let before = as_data.get(word);
        let encoding = if !page.is_zero() {
            as_data.set(word, before | bit);
            Some(Encoding::Raw)
        } else {
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
                PassKind::Rest | PassKind::Again => self.hashes.note_again(at, hash),
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

    fn flush(&mut self, pass: &mut Going<'_, '_, '_>) -> Result<(), Error> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let length = self.batch.len();
        let (bytes, pieces) = self.batch.frame(pass.number);
        let sent = pass.outlet.send_pieces(bytes, pieces, length);
        self.batch.clear();
        sent
    }
}
