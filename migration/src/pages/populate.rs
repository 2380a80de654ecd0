//! Making destination memory present before data lands in it, and only there.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use crate::PAGE_SIZE;
use crate::raw::{Ram, STRIPE_PAGES, Span};

/// A stretch of data shorter than this (in pages) is not worth a call of its own.
const WORTH: u64 = 16;

/// Which stripes have been made present, or are being made so.
pub(crate) struct Populate {
    claimed: Vec<AtomicU8>,
    stop: AtomicBool,
}

impl Populate {
    pub fn new(ram: &Ram) -> Self {
        Self {
            claimed: (0..ram.stripes()).map(|_| AtomicU8::new(0)).collect(),
            stop: AtomicBool::new(false),
        }
    }

    /// Ends [`Populate::run`] soon.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn claim_stripe(&self, ram: &Ram, span: Span) -> bool {
        let region = &ram.regions()[span.region];
        let stripe = region.first_stripe() + span.page / STRIPE_PAGES;
        self.claimed
            .get(stripe as usize)
            .is_some_and(|claimed| claimed.swap(1, Ordering::Relaxed) == 0)
    }

    /// Makes the pages of `span`, which lies in one stripe and is about to be filled, present,
    /// unless its stripe was taken on already.
    pub fn claim(&self, ram: &Ram, span: Span) {
        if span.pages >= WORTH && self.claim_stripe(ram, span) {
            // On failure the pages are made present one by one as they are filled.
            let _ = ram.slice(span).populate();
        }
    }

    /// Makes the announced extents present, stripe by stripe, in the order in which data comes.
    pub fn run(&self, ram: &Ram, extents: &[(u64, u64)]) {
        for &(gpa, len) in extents {
            let Some(extent) = ram.find(gpa, len / PAGE_SIZE) else {
                continue;
            };
            let end = extent.page + extent.pages;
            let mut page = extent.page;
            while page < end {
                let stripe_end = (page / STRIPE_PAGES + 1) * STRIPE_PAGES;
                let piece = Span {
                    page,
                    pages: stripe_end.min(end) - page,
                    ..extent
                };
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                if self.claim_stripe(ram, piece) && ram.slice(piece).populate().is_err() {
                    return;
                }
                page = stripe_end;
            }
        }
    }
}

/// The stretches of RAM that hold data now, at most `limit` of them, as `(gpa, length)`.
pub(crate) fn extents(ram: &Ram, limit: usize) -> Vec<(u64, u64)> {
    let mut extents = Vec::new();
    for region in ram.regions() {
        let mut at = 0;
        while let Some((first, end)) = region.next_data(at, region.pages()) {
            at = end;
            if end - first >= WORTH {
                if extents.len() == limit {
                    return extents;
                }
                let gpa = region.gpa() + first * PAGE_SIZE;
                extents.push((gpa, (end - first) * PAGE_SIZE));
            }
        }
    }
    extents
}
