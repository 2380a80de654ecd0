//! A keyed universal hash of pages at memory speed (see docs/adr/0003).
//!
//! NH (from UMAC, RFC 4418): each 64-bit word is added to a key word in two 32-bit halves, the halves
//! are multiplied, the products summed; two independent sums with Toeplitz-shifted keys. For two
//! different pages the sums agree with a chance of 2^-64 over the key, which is the migration's secret.

use super::slice::RamSlice;

const WORDS: usize = 512;

/// What one page adds to the digest; zero for a page of zeroes.
pub type PageHash = u64;

/// Key of the page hash: both sides derive it from the migration's token.
pub struct HashKey {
    words: Box<[u64; WORDS + 1]>,
    finish: [u64; 4],
}

impl HashKey {
    /// Expands `token` to a key.
    pub fn new(token: &[u8; 16]) -> Self {
        let mut reader = blake3::Hasher::new_derive_key("vmm migration page digest v1")
            .update(token)
            .finalize_xof();
        let mut next = || {
            let mut bytes = [0; 8];
            reader.fill(&mut bytes);
            u64::from_le_bytes(bytes)
        };
        let words = Box::new(std::array::from_fn(|_| next()));
        let finish = std::array::from_fn(|_| next() | 1);
        Self { words, finish }
    }

    /// Hash of the page at `gpa`, which must be [`crate::PAGE_SIZE`] long.
    pub fn page(&self, gpa: u64, page: RamSlice<'_>) -> PageHash {
        if page.len() != WORDS * 8 {
            return 0;
        }
        let (a, b) = sums(page.as_ptr().cast(), &self.words);
        // Distinct odd multipliers and folding bind the sums to the address and spread them over
        // the 64 bits that are added up.
        let mut x = fold(a ^ self.finish[0], b ^ self.finish[1]);
        x = fold(x ^ self.finish[2], gpa.wrapping_add(self.finish[3]));
        // Zero stands for "page of zeroes", which this page is not.
        x.max(1)
    }
}

fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide as u64) ^ ((wide >> 64) as u64) ^ a.rotate_left(29) ^ b
}

#[inline(always)]
fn sums_body(page: *const u64, key: &[u64; WORDS + 1]) -> (u64, u64) {
    const LANES: usize = 8;
    let mut a = [0u64; LANES];
    let mut b = [0u64; LANES];
    let mut i = 0;
    while i < WORDS {
        for lane in 0..LANES {
            // SAFETY: callers pass a page of `WORDS` words and `i + lane` is below that.
            let word = unsafe { page.add(i + lane).read_unaligned() };
            a[lane] = a[lane].wrapping_add(product(word, key[i + lane]));
            b[lane] = b[lane].wrapping_add(product(word, key[i + lane + 1]));
        }
        i += LANES;
    }
    let sum = |lanes: [u64; LANES]| lanes.iter().fold(0u64, |s, &x| s.wrapping_add(x));
    (sum(a), sum(b))
}

#[inline(always)]
fn product(word: u64, key: u64) -> u64 {
    let low = (word as u32).wrapping_add(key as u32);
    let high = ((word >> 32) as u32).wrapping_add((key >> 32) as u32);
    u64::from(low).wrapping_mul(u64::from(high))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sums_avx2(page: *const u64, key: &[u64; WORDS + 1]) -> (u64, u64) {
    sums_body(page, key)
}

fn sums(page: *const u64, key: &[u64; WORDS + 1]) -> (u64, u64) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has AVX2.
        return unsafe { sums_avx2(page, key) };
    }
    sums_body(page, key)
}
