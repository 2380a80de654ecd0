//! What overlays will take, forecast before there are any from how the guest writes.

use std::time::{Duration, Instant};

use block::Buffer;
use block::tracker::Generation;

use super::{Course, MoveError};
use crate::error::MachineError;

/// How long the guest is watched, twice.
const WATCHED: Duration = Duration::from_millis(500);
/// Bytes that are read to learn how fast that is.
const READ: u64 = 32 << 20;
/// At once.
const PIECE: usize = 1 << 20;
/// What is still new in the second half is as much as in the first: it may be any part of the disk that is written.
const ANYWHERE: f64 = 0.95;

/// What was seen of a guest.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Watched {
    /// Bytes of the blocks that were written in the first half, and of those that were first written in the second.
    halves: [u64; 2],
    /// What one half took.
    half: Duration,
}

impl Watched {
    /// Bytes of the blocks that will be written in `time`, of a disk of `size` bytes. A guest that writes a part of its disk
    /// again and again writes ever fewer new blocks.
    fn written_in(&self, time: Duration, size: u64) -> u64 {
        let [first, second] = self.halves.map(|bytes| bytes as f64);
        if first == 0.0 && second == 0.0 {
            return 0;
        }
        let halves = time.as_secs_f64() / self.half.as_secs_f64().max(1e-3);
        let again = second / first.max(1.0);
        let written = if again >= ANYWHERE {
            (first + second) / 2.0 * halves
        } else {
            first / (1.0 - again) * (1.0 - again.powf(halves))
        };
        (written as u64).min(size)
    }
}

/// What the overlays take at most: the one that is written while `allocated` bytes are copied at `rate`, and the one that is
/// written while that is consolidated.
fn forecast(watched: &Watched, (allocated, size): (u64, u64), rate: f64) -> u64 {
    let time = |bytes: u64| Duration::from_secs_f64((bytes as f64 / rate.max(1.0)).min(1e9));
    let first = watched.written_in(time(allocated), size);
    let second = watched.written_in(time(first), size);
    first + second
}

impl Course {
    /// Looks at how the guest writes, and tells what overlays will take.
    ///
    /// # Errors
    /// When there is no room for that; nothing has been done then.
    pub(super) fn forecast_space(&mut self) -> Result<(), MoveError> {
        let devices = self.this.machine.devices();
        let id = self.old.id.clone();
        devices.track(&id)?;
        let watched = self.watch(&id);
        devices.untrack(&id)?;
        let watched = watched?;
        let rate = self.reading()?;
        let limit = self.this.steering.bandwidth();
        let rate = limit.map_or(rate, |limit| rate.min(limit as f64));
        let (allocated, size) = (self.report.allocated_bytes, self.report.size_bytes);
        let forecast = forecast(&watched, (allocated, size), rate);
        self.report.forecast_bytes = forecast;
        let room = self.files.room;
        tracing::info!(disk = %id, forecast, room, "what overlays will take");
        if forecast > room {
            return Err(MoveError::OverlaysTooLarge { forecast, room });
        }
        Ok(())
    }

    fn watch(&self, id: &str) -> Result<Watched, MoveError> {
        let changes = self.this.machine.devices().disks.changes(id);
        let changes = changes.ok_or_else(|| MachineError::NoDisk { id: id.to_owned() })?;
        let written = || {
            let changed = changes.changed_since(Generation::FIRST);
            changed.map(|range| range.end - range.start).sum::<u64>()
        };
        let began = Instant::now();
        self.this.steering.rest(WATCHED)?;
        let first = written();
        self.this.steering.rest(WATCHED)?;
        Ok(Watched {
            halves: [first, written() - first],
            half: began.elapsed() / 2,
        })
    }

    /// Bytes a second that are read of the disk.
    fn reading(&self) -> Result<f64, MoveError> {
        let disk = self.old.device();
        let mut piece = vec![0; PIECE];
        let (began, mut at) = (Instant::now(), 0);
        while at < READ.min(disk.size()) {
            let len = (PIECE as u64).min(disk.size() - at);
            // At most a piece.
            let part = &mut piece[..len as usize];
            disk.read(&[Buffer::new(part)], at)
                .map_err(block::copy::CopyError::Source)?;
            at += len;
        }
        Ok(at as f64 / began.elapsed().as_secs_f64().max(1e-6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_written_again_and_again_takes_no_more_and_what_is_written_anywhere_grows_up_to_the_disk()
     {
        let watched = |first, second| Watched {
            halves: [first * MIB, second * MIB],
            half: Duration::from_millis(500),
        };
        let size = 1000 * MIB;
        let cases = [
            (watched(0, 0), 100, 0),
            // All of it was written in the first half.
            (watched(8, 0), 100, 8),
            // Half as much is new in the second: 8, 4, 2, 1 and so on.
            (watched(8, 4), 1, 12),
            (watched(8, 4), 2, 15),
            (watched(8, 4), 100, 16),
            // Anywhere: as much every second.
            (watched(8, 8), 10, 160),
            (watched(8, 8), 1000, 1000),
        ];
        for (watched, seconds, wanted) in cases {
            let found = watched.written_in(Duration::from_secs(seconds), size);
            // But for what is lost in rounding.
            assert_eq!((found + MIB / 2) / MIB, wanted, "{watched:?} {seconds}");
        }
        // 100 s of copying, then what that left at the same rate.
        let rate = MIB as f64;
        assert_eq!(forecast(&watched(8, 0), (100 * MIB, size), rate) / MIB, 16);
        let grows = forecast(&watched(1, 1), (100 * MIB, size), rate) / MIB;
        assert_eq!(grows, 200 + 400);
    }
}
