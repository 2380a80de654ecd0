//! A data stream of the destination: places pages and keeps the digest of what is in place.

use std::sync::Arc;

use zerocopy::{FromZeros, IntoBytes};

use super::Counters;
use super::hashes::PageHashes;
use super::populate::Populate;
use super::stripes::Share;
use crate::PAGE_SIZE;
use crate::error::Error;
use crate::raw::{HashKey, Ram, RamSlice, Span};
use crate::session::{Note, SLICE, Session};
use crate::transport::Connection;
use crate::wire::batch::{BATCH_LEN, BatchHeader, BatchKind, Encoding, MAX_RANGES, PageRange};

/// From this many zero pages on, the memory is given back instead of being filled.
const PUNCH_PAGES: u64 = 128;

/// What all streams of a destination share.
#[derive(Clone, Copy)]
pub(crate) struct Receiving<'a> {
    pub ram: &'a Ram,
    pub session: &'a Session,
    pub populate: &'a Populate,
    pub counters: &'a Counters,
    /// Key of the digest; `None` when the stream is not verified.
    pub key: Option<&'a HashKey>,
}

/// One data stream.
pub(crate) struct Receiver<'a> {
    shared: Receiving<'a>,
    share: Share,
    connection: Arc<dyn Connection>,
    hashes: PageHashes,
    pass: u32,
    ranges: Vec<PageRange>,
    /// Where each range lies: its encoding, place, and index in the tables of this share.
    places: Vec<(Encoding, Span, usize)>,
    body: Vec<RamSlice<'a>>,
}

impl<'a> Receiver<'a> {
    pub fn new(shared: Receiving<'a>, share: Share, connection: Arc<dyn Connection>) -> Self {
        let pages = share.table_len(shared.ram);
        Self {
            hashes: PageHashes::new(if shared.key.is_some() { pages } else { 0 }),
            shared,
            share,
            connection,
            pass: 0,
            ranges: Vec::with_capacity(MAX_RANGES),
            places: Vec::with_capacity(MAX_RANGES),
            body: Vec::with_capacity(MAX_RANGES),
        }
    }

    /// Places batches until the session ends.
    pub fn run(mut self) {
        loop {
            match self.connection.wait_readable(SLICE) {
                // The control connection knows whether the peer lives: silence here is no failure.
                Ok(false) if self.shared.session.is_stopped() => return,
                Ok(false) => {}
                Ok(true) => {
                    if let Err(error) = self.receive() {
                        return self.shared.session.fail(error);
                    }
                }
                Err(error) => {
                    return self
                        .shared
                        .session
                        .fail(Error::link("waiting for pages")(error));
                }
            }
        }
    }

    fn receive(&mut self) -> Result<(), Error> {
        let lost = || Error::link("receiving pages");
        let mut header = [0; BATCH_LEN];
        self.connection.receive(&mut header, &[]).map_err(lost())?;
        let header: BatchHeader = zerocopy::transmute!(header);
        match header.kind()? {
            BatchKind::PassEnd => {
                header.verify(&[])?;
                if header.pass() != self.pass + 1 {
                    return Err(Error::Protocol(format!(
                        "pass {} ended after pass {}",
                        header.pass(),
                        self.pass
                    )));
                }
                self.pass = header.pass();
                self.shared.session.note(Note::PassDone {
                    stream: self.share.stream as u16,
                    pass: self.pass,
                    digest: self.hashes.digest(),
                });
                Ok(())
            }
            BatchKind::Pages { ranges, payload } => {
                let mut table = std::mem::take(&mut self.ranges);
                table.resize(ranges, PageRange::new_zeroed());
                let bytes = table.as_mut_slice().as_mut_bytes();
                let received = self.connection.receive(bytes, &[]).map_err(lost());
                let done = received.and_then(|()| {
                    header.verify(&table)?;
                    self.place(&table)
                });
                Counters::add(
                    &self.shared.counters.wire_bytes,
                    (BATCH_LEN + table.as_bytes().len()) as u64 + payload,
                );
                self.ranges = table;
                done
            }
        }
    }

    fn place(&mut self, ranges: &[PageRange]) -> Result<(), Error> {
        let ram = self.shared.ram;
        self.places.clear();
        self.body.clear();
        // All ranges are checked before the first byte lands.
        for range in ranges {
            let encoding = range.encoding()?;
            let place = ram.find(range.gpa(), range.pages()).and_then(|span| {
                let index = self.share.index(ram, span.region, span.page, span.pages)?;
                Some((encoding, span, index))
            });
            let Some(place) = place else {
                return Err(Error::Protocol(format!(
                    "{} pages at {:#x} are outside of the RAM of stream {}",
                    range.pages(),
                    range.gpa(),
                    self.share.stream
                )));
            };
            self.places.push(place);
            if encoding == Encoding::Raw {
                if self.pass == 0 {
                    self.shared.populate.claim(ram, place.1);
                }
                self.body.push(ram.slice(place.1));
            }
        }
        if !self.body.is_empty() {
            self.connection
                .receive(&mut [], &self.body)
                .map_err(Error::link("receiving pages"))?;
        }
        for index in 0..self.places.len() {
            let (encoding, span, at) = self.places[index];
            self.finish(encoding, span, at);
        }
        Ok(())
    }

    fn finish(&mut self, encoding: Encoding, span: Span, at: usize) {
        let ram = self.shared.ram;
        let region = &ram.regions()[span.region];
        let counter = match encoding {
            Encoding::Raw => &self.shared.counters.raw_pages,
            Encoding::Zero => {
                if span.pages < PUNCH_PAGES || !region.punch(span.page, span.pages) {
                    ram.slice(span).zero();
                }
                &self.shared.counters.zero_pages
            }
        };
        Counters::add(counter, span.pages);
        let Some(key) = self.shared.key else { return };
        for page in 0..span.pages {
            let hash = match encoding {
                Encoding::Zero => 0,
                Encoding::Raw => {
                    let one = Span {
                        page: span.page + page,
                        pages: 1,
                        ..span
                    };
                    key.page(region.gpa() + one.page * PAGE_SIZE, ram.slice(one))
                }
            };
            let at = at + page as usize;
            match self.pass {
                0 => self.hashes.note_first(at, hash),
                _ => self.hashes.note_again(at, hash),
            }
        }
    }
}
