//! Making destination memory present before data lands in it, and only there.
//!
//! First touch costs the destination more than receiving: a fault for each small page. A stripe that
//! is announced to be all data is backed by a huge page instead, where that is cheaper, by whoever
//! comes to it first: a thread that goes ahead of the data, or the stream whose data arrives. Without a
//! processor to spare nobody goes ahead: what a stream zeroed itself is in its cache when data comes.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use super::populate_cost::{PopulateCost, Way, thread_time};
use crate::PAGE_SIZE;
use crate::raw::{Ram, STRIPE_PAGES, Span};
use crate::vm::HugePages;

/// A stretch of data shorter than this (in pages) is not worth a call of its own.
const WORTH: u64 = 16;
/// Stripes that are made present together when they are put together of small pages: each such call costs
/// the kernel some housekeeping on all processors.
const RUN_BY_COLLAPSE: u64 = 8;
/// The same by advice, where a call costs little: no more than the cache still holds when data arrives.
const RUN_BY_ADVICE: u64 = 2;

/// All of the stripe will be data.
const ALL_DATA: u8 = 1;
/// It is present, or could not be made so.
const DONE: u8 = 2;

/// Which stripes are to be, and which have been, made present.
pub(crate) struct Populate {
    stripes: Vec<AtomicU8>,
    /// Held while a run of stripes is made present, by the number of the run: data that arrives for
    /// it meanwhile waits, as filling pages that are being replaced costs more.
    runs: [Mutex<()>; 16],
    /// Stripes in a run.
    run: u64,
    cost: PopulateCost,
    huge: HugePages,
}

impl Populate {
    /// Of `ram`, which gets huge pages in this way.
    pub fn new(ram: &Ram, huge: HugePages) -> Self {
        Self {
            stripes: (0..ram.stripes()).map(|_| AtomicU8::new(0)).collect(),
            runs: Default::default(),
            run: match huge {
                HugePages::ByAdvice => RUN_BY_ADVICE,
                HugePages::ByCollapse => RUN_BY_COLLAPSE,
            },
            cost: PopulateCost::default(),
            huge,
        }
    }

    /// Makes the pages of `span`, which lies in one stripe and is about to be filled for the first
    /// time, present, and with them the stripes around it that will be all data.
    pub fn claim(&self, ram: &Ram, span: Span) {
        let stripe = stripe_of(ram, span);
        let seen = self.state(ram, stripe).load(Ordering::Relaxed);
        if seen & DONE != 0 {
            return;
        }
        if seen & ALL_DATA != 0 || span == stripe {
            self.state(ram, stripe)
                .fetch_or(ALL_DATA, Ordering::Relaxed);
            self.make_present(ram, stripe);
        } else if span.pages >= WORTH {
            // On failure the pages are made present one by one as they are filled.
            let _ = ram.slice(span).populate();
        }
    }

    /// Takes note of the announced extents.
    pub fn expect(&self, ram: &Ram, extents: &[(u64, u64)]) {
        let pieces = extents.iter().flat_map(|&extent| pieces(ram, extent));
        for piece in pieces.filter(|&piece| piece == stripe_of(ram, piece)) {
            self.state(ram, piece).fetch_or(ALL_DATA, Ordering::Relaxed);
        }
    }

    /// Makes the announced extents, which are expected, present in the order in which data comes, until no more
    /// `is_over`.
    pub fn go_ahead(&self, ram: &Ram, extents: &[(u64, u64)], is_over: &dyn Fn() -> bool) {
        for piece in extents.iter().flat_map(|&extent| pieces(ram, extent)) {
            if is_over() {
                return;
            }
            if piece == stripe_of(ram, piece) {
                if self.state(ram, piece).load(Ordering::Relaxed) & DONE == 0 {
                    self.make_present(ram, piece);
                }
            } else if ram.slice(piece).populate().is_err() {
                return;
            }
        }
    }

    fn state(&self, ram: &Ram, stripe: Span) -> &AtomicU8 {
        let region = &ram.regions()[stripe.region];
        &self.stripes[region.stripe_of(stripe.page) as usize]
    }

    /// Makes all stripes of nothing but data present that are in one run with `stripe`.
    fn make_present(&self, ram: &Ram, stripe: Span) {
        let number = stripe.page / STRIPE_PAGES / self.run;
        let lock = &self.runs[number as usize % self.runs.len()];
        let _lock = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let pages = ram.regions()[stripe.region].pages();
        let first = number * self.run * STRIPE_PAGES;
        let end = (first + self.run * STRIPE_PAGES).min(pages);
        let is_due = |page: u64| {
            let state = self.state(ram, Span { page, ..stripe });
            state.load(Ordering::Relaxed) == ALL_DATA
        };
        let mut page = first;
        while page < end {
            if !is_due(page) {
                page += STRIPE_PAGES;
                continue;
            }
            let from = page;
            while page < end && is_due(page) {
                page += STRIPE_PAGES;
            }
            let span = Span {
                page: from,
                pages: page.min(pages) - from,
                ..stripe
            };
            self.back(ram, span);
            for page in (from..page).step_by(STRIPE_PAGES as usize) {
                let state = self.state(ram, Span { page, ..stripe });
                state.fetch_or(DONE, Ordering::Relaxed);
            }
        }
    }

    /// Makes `span`, a row of stripes, present. Where that fails, the pages become so one by one as
    /// they are filled.
    fn back(&self, ram: &Ram, span: Span) {
        let mut rest = span;
        while rest.pages >= STRIPE_PAGES {
            let (way, stripes) = self.cost.next(rest.pages / STRIPE_PAGES);
            let (part, after) = rest.split_at(stripes * STRIPE_PAGES);
            let slice = ram.slice(part);
            let before = thread_time();
            let made = match way {
                Way::Huge => slice.make_huge(self.huge),
                Way::Small => slice.populate(),
            };
            let took = thread_time().saturating_sub(before);
            match (way, made) {
                (_, Ok(())) => self.cost.learn(way, stripes, took),
                (Way::Huge, Err(_)) => {
                    self.cost.huge_failed();
                    let _ = slice.populate();
                }
                (Way::Small, Err(_)) => {}
            }
            rest = after;
        }
        if rest.pages > 0 {
            let _ = ram.slice(rest).populate();
        }
    }
}

/// The whole stripe in which `span` begins.
fn stripe_of(ram: &Ram, span: Span) -> Span {
    let page = span.page / STRIPE_PAGES * STRIPE_PAGES;
    let pages = ram.regions()[span.region].pages();
    Span {
        page,
        pages: STRIPE_PAGES.min(pages - page),
        ..span
    }
}

/// An announced `(gpa, length)`, cut at the borders of stripes; nothing when it is not RAM.
fn pieces(ram: &Ram, (gpa, len): (u64, u64)) -> impl Iterator<Item = Span> {
    let extent = ram.find(gpa, len / PAGE_SIZE);
    extent.into_iter().flat_map(|extent| {
        let end = extent.page + extent.pages;
        let mut page = extent.page;
        std::iter::from_fn(move || {
            let first = page;
            page = ((first / STRIPE_PAGES + 1) * STRIPE_PAGES).min(end);
            (first < end).then_some(Span {
                page: first,
                pages: page - first,
                ..extent
            })
        })
    })
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
