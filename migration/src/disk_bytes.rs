//! What of disks has gone to where they move, by why it did, and how fast that goes.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A rate is taken from so long at least.
const MEASURED: Duration = Duration::from_millis(500);

/// Bytes of a disk that went to where it moves, by why they did.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassBytes {
    /// A request of the guest waited for them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub demand: u64,
    /// The guest wrote them meanwhile.
    pub write: u64,
    /// They were copied, in passes over the disk, or came though nobody waited.
    pub background: u64,
}

/// What has gone of one disk.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskBytes {
    /// Identity of the disk.
    pub id: String,
    /// All that has, until now.
    pub class_bytes: ClassBytes,
    /// What does in a second, as measured last; absent when it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_bytes_per_s: Option<ClassBytes>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks for it")]
fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

impl ClassBytes {
    /// What has come since it was `before`, by the second.
    fn per_second(self, before: Self, took: Duration) -> Self {
        let seconds = took.as_secs_f64().max(1e-3);
        let rate = |now: u64, before: u64| (now.saturating_sub(before) as f64 / seconds) as u64;
        Self {
            demand: rate(self.demand, before.demand),
            write: rate(self.write, before.write),
            background: rate(self.background, before.background),
        }
    }
}

/// Measures how fast bytes go, of which it is told from time to time.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClassMeter {
    before: Option<(Instant, ClassBytes)>,
    rate: ClassBytes,
}

impl ClassMeter {
    /// So many have gone at `now`; how many did in a second since it was measured before.
    pub fn measure(&mut self, now: Instant, bytes: ClassBytes) -> ClassBytes {
        let (since, before) = *self.before.get_or_insert((now, bytes));
        let took = now.saturating_duration_since(since);
        if took >= MEASURED {
            self.rate = bytes.per_second(before, took);
            self.before = Some((now, bytes));
        }
        self.rate
    }
}

/// A disk that has gone by way of overlays.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotDisk {
    /// Identity of the disk.
    pub id: String,
    /// How often its guest went over to the next overlay, so that what was in the one before could follow.
    pub rounds: u32,
    /// How long its requests waited each time, and for the first overlay, in microseconds.
    pub pauses_us: Vec<u64>,
    /// Bytes that the overlays were forecast to take.
    pub forecast_bytes: u64,
    /// Most bytes that they took.
    pub overlay_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_time_since_it_was_measured_before() {
        let bytes = |write, background| ClassBytes {
            demand: 0,
            write,
            background,
        };
        let began = Instant::now();
        let mut meter = ClassMeter::default();
        for (ms, told, rate) in [
            (0, bytes(100, 1000), bytes(0, 0)),
            // Too soon to say.
            (100, bytes(150, 1500), bytes(0, 0)),
            (500, bytes(200, 3000), bytes(200, 4000)),
            (900, bytes(900, 3000), bytes(200, 4000)),
            (1500, bytes(1200, 3000), bytes(1000, 0)),
        ] {
            let at = began + Duration::from_millis(ms);
            assert_eq!(meter.measure(at, told), rate, "at {ms} ms");
        }
    }
}
