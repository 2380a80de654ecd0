//! Which stream carries which pages.
//!
//! RAM is cut into stripes of 2 MiB that are dealt out in turn: stripe `i` always travels on stream
//! `i % count`. A stream keeps order, so a page that is sent twice lands last-sent last, with no
//! barrier between streams; and what is remembered per page belongs to one thread.

use crate::raw::{Ram, STRIPE_PAGES};

/// The part of RAM that one stream carries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    pub stream: u64,
    pub streams: u64,
}

/// A stripe of a share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stripe {
    pub region: usize,
    /// First page in the region.
    pub first: u64,
    /// End, exclusive; short at the end of a region.
    pub end: u64,
    /// Number within the share: pages of the share are counted by it.
    pub local: u64,
}

impl Stripe {
    /// Its words of a bitmap of its region.
    pub fn words<'d>(&self, region: &'d [u64]) -> &'d [u64] {
        &region[(self.first / 64) as usize..self.end.div_ceil(64) as usize]
    }
}

impl Share {
    /// Pages to make room for when something is remembered per page.
    pub fn table_len(&self, ram: &Ram) -> usize {
        (ram.stripes().div_ceil(self.streams.max(1)) * STRIPE_PAGES) as usize
    }

    /// All stripes, ascending.
    pub fn stripes<'r>(&self, ram: &'r Ram) -> impl Iterator<Item = Stripe> + use<'r> {
        let share = *self;
        ram.regions()
            .iter()
            .enumerate()
            .flat_map(move |(index, region)| {
                let lead = region.first_stripe() % share.streams;
                let skip = (share.stream + share.streams - lead) % share.streams;
                (skip..region.stripes())
                    .step_by(share.streams as usize)
                    .map(move |stripe| Stripe {
                        region: index,
                        first: stripe * STRIPE_PAGES,
                        end: ((stripe + 1) * STRIPE_PAGES).min(region.pages()),
                        local: (region.first_stripe() + stripe) / share.streams,
                    })
            })
    }

    /// Index of a page in a table of this share; `None` when another stream carries it, or when the
    /// `pages` from there on leave its stripe.
    pub fn index(&self, ram: &Ram, region: usize, page: u64, pages: u64) -> Option<usize> {
        let region = ram.regions().get(region)?;
        let stripe = region.first_stripe() + page / STRIPE_PAGES;
        let inside = page % STRIPE_PAGES;
        (stripe % self.streams == self.stream && inside + pages <= STRIPE_PAGES)
            .then(|| (stripe / self.streams * STRIPE_PAGES + inside) as usize)
    }
}
