//! The memory's part of a data stream at the destination: places pages and keeps the digest of what is in place.

use super::hashes::{PageHashes, Words};
use super::plan::{Origin, Plan, Receipt, Step};
use super::populate::Populate;
use super::stripes::Owners;
use crate::PAGE_SIZE;
use crate::error::Error;
use crate::frames::{Counters, PassKind};
use crate::progress::Verify;
use crate::raw::{HashKey, Ram, STRIPE_PAGES, Span};
use crate::transport::Connection;
use crate::wire::batch::{Encoding, PageRange};

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

    /// The streams of a new link carry any stripe; what those of the old one have added to the digest.
    pub fn begin_again(&self) -> u64 {
        self.owners.forget();
        self.hashes.sum()
    }
}

/// Where the guest's memory is placed, by all streams of a destination; it outlives each of them.
pub(crate) struct MemoryHere {
    pub ram: Ram,
    pub placed: Placed,
    pub populate: Populate,
    /// Key of the digest; `None` when the stream is not verified.
    pub key: Option<HashKey>,
}

/// What one stream places of it.
pub(crate) struct PageReceiver<'a> {
    shared: &'a MemoryHere,
    counters: &'a Counters,
    stream: u16,
    hashes: PageHashes<'a>,
    plan: Plan<'a>,
}

impl<'a> PageReceiver<'a> {
    pub fn new(shared: &'a MemoryHere, stream: u16, counters: &'a Counters) -> Self {
        Self {
            hashes: PageHashes::new(&shared.placed.hashes),
            plan: Plan::new(&shared.ram),
            shared,
            counters,
            stream,
        }
    }

    /// What this stream's pages add to the digest.
    pub fn digest(&self) -> u64 {
        self.hashes.digest()
    }

    /// Receives the payload of `ranges`, which are of a pass of `kind`, and places them.
    pub fn place(
        &mut self,
        connection: &dyn Connection,
        kind: PassKind,
        ranges: &[PageRange],
    ) -> Result<(), Error> {
        let ram = &self.shared.ram;
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
            if kind != PassKind::Again && encoding != Encoding::Zero {
                self.shared.populate.claim(ram, place);
            }
            self.plan.push(place, encoding, range.payload() as usize);
        }
        self.plan
            .receive(connection)
            .map_err(Error::link("receiving pages"))?;
        for step in self.plan.steps() {
            self.plan.fill(step)?;
            note_placed((self.shared, self.counters), &mut self.hashes, kind, step);
        }
        Ok(())
    }

    /// Whether the pages lie in one stripe, which no other stream has carried.
    fn is_ours(&self, span: Span) -> bool {
        let MemoryHere { ram, placed, .. } = self.shared;
        let stripe = ram.regions()[span.region].stripe_of(span.page);
        span.page % STRIPE_PAGES + span.pages <= STRIPE_PAGES
            && placed.owners.claim(stripe, self.stream)
    }
}

/// Counts the pages of `step`, which are in place, and adds them to the digest.
fn note_placed(
    (shared, counters): (&MemoryHere, &Counters),
    hashes: &mut PageHashes<'_>,
    kind: PassKind,
    step: Step,
) {
    let ram = &shared.ram;
    let Step { span, receipt, .. } = step;
    let region = &ram.regions()[span.region];
    let is_zero = matches!(receipt, Receipt::Copy(Origin::Zeroes));
    let counter = match is_zero {
        true => &counters.zero_pages,
        false => &counters.raw_pages,
    };
    Counters::add(counter, span.pages);
    let Some(key) = &shared.key else { return };
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
        match kind {
            PassKind::First => hashes.note_first(at, hash),
            PassKind::Rest | PassKind::Again => hashes.note_again(at, hash),
        }
    }
}
