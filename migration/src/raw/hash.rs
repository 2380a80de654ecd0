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

fn sums_portable(page: *const u64, key: &[u64; WORDS + 1]) -> (u64, u64) {
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

#[inline]
fn product(word: u64, key: u64) -> u64 {
    let low = (word as u32).wrapping_add(key as u32);
    let high = ((word >> 32) as u32).wrapping_add((key >> 32) as u32);
    u64::from(low).wrapping_mul(u64::from(high))
}

/// The same by hand, as compilers do not find the 32-bit multiplication by themselves.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sums_avx2(page: *const u64, key: &[u64; WORDS + 1]) -> (u64, u64) {
    use std::arch::x86_64::{
        __m256i, _MM_HINT_T0, _mm_prefetch, _mm256_add_epi32, _mm256_add_epi64, _mm256_loadu_si256,
        _mm256_mul_epu32, _mm256_setzero_si256, _mm256_srli_epi64, _mm256_storeu_si256,
    };
    const LANES: usize = 4;
    let mut sums = [_mm256_setzero_si256(); 4];
    let mut i = 0;
    while i < WORDS {
        // CPUs do not look ahead beyond a page by themselves, and the next one is hashed next. A hint
        // for an address that is not mapped does nothing.
        _mm_prefetch::<_MM_HINT_T0>(page.wrapping_add(i + WORDS).cast());
        for half in 0..2 {
            let at = i + half * LANES;
            // SAFETY: callers pass a page of `WORDS` words, `at + LANES` is at most that, and the
            // key has one word more; unaligned loads are allowed.
            let (word, first, second) = unsafe {
                (
                    _mm256_loadu_si256(page.add(at).cast::<__m256i>()),
                    _mm256_loadu_si256(key.as_ptr().add(at).cast::<__m256i>()),
                    _mm256_loadu_si256(key.as_ptr().add(at + 1).cast::<__m256i>()),
                )
            };
            for (which, key) in [first, second].into_iter().enumerate() {
                let keyed = _mm256_add_epi32(word, key);
                let product = _mm256_mul_epu32(keyed, _mm256_srli_epi64::<32>(keyed));
                let sum = &mut sums[half * 2 + which];
                *sum = _mm256_add_epi64(*sum, product);
            }
        }
        i += 2 * LANES;
    }
    let fold = |sum: __m256i| {
        let mut lanes = [0u64; LANES];
        // SAFETY: the array holds the 32 bytes that are stored.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
        lanes.iter().fold(0u64, |sum, &lane| sum.wrapping_add(lane))
    };
    (
        fold(_mm256_add_epi64(sums[0], sums[2])),
        fold(_mm256_add_epi64(sums[1], sums[3])),
    )
}

fn sums(page: *const u64, key: &[u64; WORDS + 1]) -> (u64, u64) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has AVX2.
        return unsafe { sums_avx2(page, key) };
    }
    sums_portable(page, key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_implementation_agrees() {
        let key = HashKey::new(&[3; 16]);
        let mut page = [0u64; WORDS];
        for round in 0..50u64 {
            for (i, word) in page.iter_mut().enumerate() {
                *word =
                    word.rotate_left(7) ^ (i as u64 + round).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            }
            assert_eq!(
                sums(page.as_ptr(), &key.words),
                sums_portable(page.as_ptr(), &key.words)
            );
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_changes_the_sums() {
        let key = HashKey::new(&[5; 16]);
        let mut page = [0u64; WORDS];
        let before = sums(page.as_ptr(), &key.words);
        for bit in 0..WORDS * 64 {
            page[bit / 64] ^= 1 << (bit % 64);
            assert_ne!(sums(page.as_ptr(), &key.words), before, "bit {bit}");
            page[bit / 64] ^= 1 << (bit % 64);
        }
    }
}
