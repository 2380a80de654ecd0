//! The digest of all memory of a paused guest.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::Builder;

use super::stripes::Stripe;
use crate::PAGE_SIZE;
use crate::raw::{Ram, Span};
use crate::threads::{self, Role};

/// Hashes all pages but those of zeroes, with as many threads as the host has cores. The digest is
/// the sum of the pages' BLAKE3 hashes over address and content, so neither order nor holes matter.
pub(crate) fn full_digest(ram: &Ram) -> String {
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(16);
    let next = AtomicU64::new(0);
    let sum = std::thread::scope(|scope| {
        let next = &next;
        let worker = move || {
            threads::begin(Role::Hash);
            hash_share(ram, next)
        };
        // This thread does the work of those that cannot be had.
        let workers: Vec<_> = (1..threads)
            .filter_map(|_| Builder::new().spawn_scoped(scope, worker).ok())
            .collect();
        let own = hash_share(ram, next);
        workers
            .into_iter()
            // A worker that panicked makes the sum wrong, which fails the comparison: safe.
            .map(|worker| worker.join().unwrap_or(1))
            .fold(own, u128::wrapping_add)
    });
    format!("blake3-sum128:{sum:032x}")
}

fn hash_share(ram: &Ram, next: &AtomicU64) -> u128 {
    let mut sum = 0u128;
    let mut page_bytes = [0; PAGE_SIZE as usize];
    loop {
        let Some(stripe) = Stripe::at(ram, next.fetch_add(1, Ordering::Relaxed)) else {
            return sum;
        };
        let region = &ram.regions()[stripe.region];
        let mut at = stripe.first;
        while let Some((data, data_end)) = region.next_data(at, stripe.end) {
            at = data_end;
            for page in data..data_end {
                let slice = ram.slice(Span {
                    region: stripe.region,
                    page,
                    pages: 1,
                });
                if slice.is_zero() {
                    continue;
                }
                slice.copy_to(&mut page_bytes);
                let mut hasher = blake3::Hasher::new();
                hasher.update(&(region.gpa() + page * PAGE_SIZE).to_le_bytes());
                hasher.update(&page_bytes);
                let mut half = [0; 16];
                half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
                sum = sum.wrapping_add(u128::from_le_bytes(half));
            }
        }
    }
}
