//! The digest of all memory of a paused guest, and what making it costs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Builder;
use std::time::{Duration, Instant};

use super::stripes::Stripe;
use crate::PAGE_SIZE;
use crate::progress::Verify;
use crate::raw::{Ram, Span};
use crate::threads::{self, ThreadKind};

/// Bytes of guest memory per second that a host hashes at least, were it ever so busy.
const SLOWEST: u64 = 32 << 20;
/// How long a host may take beside that.
const GRACE: Duration = Duration::from_secs(60);

/// How much longer than this host the other one may take to hash `bytes` of guest memory, as long as it
/// lives: both hash at the same time, and whoever is done first waits.
pub(crate) fn patience(verify: Verify, bytes: u64) -> Duration {
    match verify {
        Verify::Full => GRACE + Duration::from_secs(bytes / SLOWEST),
        Verify::Stream | Verify::Off => Duration::ZERO,
    }
}

/// Stripes with data that are hashed to learn what all of them cost.
const SAMPLE: usize = 16;
/// Stripes that are looked at to find those.
const LOOKED_AT: u64 = 4096;
/// Bytes that each thread hashes to learn how fast this host is.
const TRIAL: usize = 2 << 20;

/// Hashes all pages but those of zeroes, with as many threads as the host has cores; nothing when
/// `give_up` says so before it is done. The digest is the sum of the pages' BLAKE3 hashes over address and
/// content, so neither order nor holes matter.
pub(crate) fn of(ram: &Ram, give_up: &(dyn Fn() -> bool + Sync)) -> Option<String> {
    let next = AtomicU64::new(0);
    let given_up = AtomicBool::new(false);
    let sum = by_all_threads(|| {
        let mut sum = 0u128;
        while let Some(stripe) = Stripe::at(ram, next.fetch_add(1, Ordering::Relaxed)) {
            if give_up() {
                given_up.store(true, Ordering::Relaxed);
                break;
            }
            sum = sum.wrapping_add(hash_stripe(ram, stripe));
        }
        sum
    });
    (!given_up.into_inner()).then(|| format!("blake3-sum128:{sum:032x}"))
}

/// What [`full_digest`] would take now, as measured on a part of the memory that holds data.
pub(crate) fn cost(ram: &Ram) -> Duration {
    let step = ram.stripes().div_ceil(LOOKED_AT).max(1);
    let has_data = |stripe: &Stripe| {
        let region = &ram.regions()[stripe.region];
        region.next_data(stripe.first, stripe.end).is_some()
    };
    let with_data: Vec<Stripe> = (0..ram.stripes())
        .step_by(step as usize)
        .filter_map(|number| Stripe::at(ram, number).filter(has_data))
        .collect();
    let sample: Vec<Stripe> = with_data
        .iter()
        .copied()
        .step_by(with_data.len().div_ceil(SAMPLE).max(1))
        .collect();
    if sample.is_empty() {
        return Duration::ZERO;
    }
    let next = AtomicU64::new(0);
    let began = Instant::now();
    by_all_threads(|| {
        let mut sum = 0u128;
        while let Some(stripe) = sample.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            sum = sum.wrapping_add(hash_stripe(ram, *stripe));
        }
        sum
    });
    let share = (with_data.len() as u64 * step) as f64 / sample.len() as f64;
    began.elapsed().mul_f64(share)
}

/// Bytes per second that this host hashes with all its threads, as measured now.
pub(crate) fn speed() -> f64 {
    let hashed = AtomicU64::new(0);
    let began = Instant::now();
    by_all_threads(|| {
        let page = [0x5a; PAGE_SIZE as usize];
        let mut sum = 0u128;
        for gpa in (0..TRIAL as u64).step_by(page.len()) {
            sum = sum.wrapping_add(hash_page(gpa, &page));
        }
        hashed.fetch_add(TRIAL as u64, Ordering::Relaxed);
        sum
    });
    hashed.into_inner() as f64 / began.elapsed().as_secs_f64().max(1e-9)
}

/// Does `share` on as many threads as the host has cores; the sum of what each returns.
fn by_all_threads(share: impl Fn() -> u128 + Sync) -> u128 {
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(16);
    std::thread::scope(|scope| {
        let worker = || {
            threads::begin(ThreadKind::Hash);
            share()
        };
        // This thread does the work of those that cannot be had.
        let workers: Vec<_> = (1..threads)
            .filter_map(|_| Builder::new().spawn_scoped(scope, worker).ok())
            .collect();
        let own = share();
        workers
            .into_iter()
            // A worker that panicked makes the sum wrong, which fails the comparison: safe.
            .map(|worker| worker.join().unwrap_or(1))
            .fold(own, u128::wrapping_add)
    })
}

fn hash_stripe(ram: &Ram, stripe: Stripe) -> u128 {
    let mut sum = 0u128;
    let mut page_bytes = [0; PAGE_SIZE as usize];
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
            sum = sum.wrapping_add(hash_page(region.gpa() + page * PAGE_SIZE, &page_bytes));
        }
    }
    sum
}

fn hash_page(gpa: u64, bytes: &[u8; PAGE_SIZE as usize]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&gpa.to_le_bytes());
    hasher.update(bytes);
    let mut half = [0; 16];
    half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(half)
}
