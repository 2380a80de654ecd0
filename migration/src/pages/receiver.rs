//! A data stream of the destination: places pages and keeps the digest of what is in place.

use std::sync::Arc;

use zerocopy::{FromZeros, IntoBytes};

use super::Counters;
use super::hashes::{PageHashes, Words};
use super::plan::{Origin, Plan, Receipt, Step};
use super::populate::Populate;
use super::stripes::Owners;
use crate::PAGE_SIZE;
use crate::error::Error;
use crate::progress::Verify;
use crate::raw::{HashKey, Ram, STRIPE_PAGES, Span};
use crate::session::{Note, SLICE, Session};
use crate::transport::Connection;
use crate::wire::batch::{BATCH_LEN, BatchHeader, BatchKind, Encoding, MAX_RANGES, PageRange};

/// What a destination remembers of its pages, for all of its streams.
pub(crate) struct Placed {
    owners: Owners,
    hashes: Words,
}

impl Placed {
    /// Of memory in which nothing was placed.
    pub fn nothing(ram: &Ram, verify: Verify) -> Self {
        Self {
            owners: Owners::new(ram.stripes()),
            hashes: Words::of_hashes(ram, verify),
        }
    }
}

/// What all streams of a destination share.
#[derive(Clone, Copy)]
pub(crate) struct Receiving<'a> {
    pub ram: &'a Ram,
    pub placed: &'a Placed,
    pub session: &'a Session,
    pub populate: &'a Populate,
    pub counters: &'a Counters,
    /// Key of the digest; `None` when the stream is not verified.
    pub key: Option<&'a HashKey>,
}

/// One data stream.
pub(crate) struct Receiver<'a> {
    shared: Receiving<'a>,
    stream: u16,
    connection: Arc<dyn Connection>,
    hashes: PageHashes<'a>,
    pass: u32,
    ranges: Vec<PageRange>,
    plan: Plan<'a>,
}

impl<'a> Receiver<'a> {
    pub fn new(shared: Receiving<'a>, stream: u16, connection: Arc<dyn Connection>) -> Self {
        Self {
            hashes: PageHashes::new(&shared.placed.hashes),
            plan: Plan::new(shared.ram),
            shared,
            stream,
            connection,
            pass: 0,
            ranges: Vec::with_capacity(MAX_RANGES),
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
        self.connection.receive(&mut header).map_err(lost())?;
        let header: BatchHeader = zerocopy::transmute!(header);
        match header.kind()? {
            BatchKind::PassEnd => {
                header.verify(&[])?;
                let may_end = self.shared.session.may_end(header.pass());
                if header.pass() != self.pass + 1 || !may_end {
                    return Err(Error::Protocol(format!(
                        "pass {} ended on stream {} after pass {}",
                        header.pass(),
                        self.stream,
                        self.pass
                    )));
                }
                self.pass = header.pass();
                self.shared.session.note(Note::PassDone {
                    stream: self.stream,
                    pass: self.pass,
                    digest: self.hashes.digest(),
                });
                Ok(())
            }
            BatchKind::Pages { ranges, payload } => {
                let mut table = std::mem::take(&mut self.ranges);
                table.resize(ranges, PageRange::new_zeroed());
                let bytes = table.as_mut_slice().as_mut_bytes();
                let received = self.connection.receive(bytes).map_err(lost());
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
        self.plan.clear();
        // All ranges are checked before the first byte lands.
        for range in ranges {
            let encoding = range.encoding()?;
            let place = ram.find(range.gpa(), range.pages());
            let Some(place) = place.filter(|&place| self.is_ours(place)) else {
                return Err(Error::Protocol(format!(
                    "{} pages at {:#x} are outside of the RAM of stream {}",
                    range.pages(),
                    range.gpa(),
                    self.stream
                )));
            };
            if self.pass == 0 && encoding != Encoding::Zero {
                self.shared.populate.claim(ram, place);
            }
            self.plan.push(place, encoding, range.payload() as usize);
        }
        self.plan
            .receive(&*self.connection)
            .map_err(Error::link("receiving pages"))?;
        for step in self.plan.steps() {
            self.plan.fill(step)?;
            note_placed(self.shared, &mut self.hashes, self.pass, step);
        }
        Ok(())
    }

    /// Whether the pages lie in one stripe, which no other stream has carried.
    fn is_ours(&self, span: Span) -> bool {
        let Receiving { ram, placed, .. } = self.shared;
        let stripe = ram.regions()[span.region].stripe_of(span.page);
        span.page % STRIPE_PAGES + span.pages <= STRIPE_PAGES
            && placed.owners.claim(stripe, self.stream)
    }
}

/// Counts the pages of `step`, which are in place, and adds them to the digest.
fn note_placed(shared: Receiving<'_>, hashes: &mut PageHashes<'_>, pass: u32, step: Step) {
    let Receiving { ram, counters, .. } = shared;
    let Step { span, receipt, .. } = step;
    let region = &ram.regions()[span.region];
    let is_zero = matches!(receipt, Receipt::Copy(Origin::Zeroes));
    let counter = match is_zero {
        true => &counters.zero_pages,
        false => &counters.raw_pages,
    };
    Counters::add(counter, span.pages);
    let Some(key) = shared.key else { return };
    for page in span.page..span.page + span.pages {
        let hash = match is_zero {
            true => 0,
            false => {
                let one = Span {
                    page,
                    pages: 1,
                    ..span
                };
                key.page(region.gpa() + page * PAGE_SIZE, ram.slice(one))
            }
        };
        let at = region.index(page);
        match pass {
            0 => hashes.note_first(at, hash),
            _ => hashes.note_again(at, hash),
        }
    }
}
