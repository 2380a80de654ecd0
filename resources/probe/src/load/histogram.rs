//! Latencies in buckets that are linear within each power of two, so that any is right to 3 per cent.

use core::ptr::write_bytes;

/// Buckets of a power of two.
const LINEAR: u64 = 32;
/// Times are below 2^44 cycles.
const BUCKETS: usize = (44 - 4) * LINEAR as usize;

/// Memory of one.
pub const BYTES: u64 = (BUCKETS * size_of::<u32>()) as u64;

/// One kind of request in one span of time.
pub struct Histogram {
    buckets: &'static mut [u32; BUCKETS],
    pub count: u64,
    pub bytes: u64,
    pub max: u64,
}

fn bucket(cycles: u64) -> usize {
    if cycles < LINEAR {
        return cycles as usize;
    }
    let octave = u64::from(cycles.ilog2()) - 5;
    let within = (cycles >> octave) & (LINEAR - 1);
    (((octave + 1) * LINEAR + within) as usize).min(BUCKETS - 1)
}

/// The largest time of a bucket.
fn top(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < LINEAR {
        return bucket;
    }
    let octave = bucket / LINEAR - 1;
    ((LINEAR + bucket % LINEAR + 1) << octave) - 1
}

impl Histogram {
    /// An empty one in memory that is nobody else's, [`BYTES`] long.
    pub fn new(memory: u64) -> Self {
        let buckets = memory as *mut [u32; BUCKETS];
        // SAFETY: RAM that was taken for this, whatever stood there.
        let buckets = unsafe {
            write_bytes(buckets, 0, 1);
            &mut *buckets
        };
        Self {
            buckets,
            count: 0,
            bytes: 0,
            max: 0,
        }
    }

    pub fn add(&mut self, cycles: u64, bytes: u64) {
        self.buckets[bucket(cycles)] += 1;
        self.count += 1;
        self.bytes += bytes;
        self.max = self.max.max(cycles);
    }

    /// Adds all of `other`, which is empty afterwards.
    pub fn take(&mut self, other: &mut Self) {
        for (to, from) in self.buckets.iter_mut().zip(other.buckets.iter_mut()) {
            *to = to.saturating_add(core::mem::take(from));
        }
        self.count += core::mem::take(&mut other.count);
        self.bytes += core::mem::take(&mut other.bytes);
        self.max = self.max.max(core::mem::take(&mut other.max));
    }

    /// The time that `thousandths` of all did not exceed.
    pub fn quantile(&self, thousandths: u64) -> u64 {
        let rank = (self.count * thousandths).div_ceil(1000).max(1);
        let mut seen = 0;
        for (i, &count) in self.buckets.iter().enumerate() {
            seen += u64::from(count);
            if seen >= rank {
                return top(i).min(self.max);
            }
        }
        self.max
    }
}
