//! What a switch-over costs, measured while the guest runs.

use std::time::{Duration, Instant};

use super::moving::Moving;
use crate::pages::full_digest;
use crate::progress::Verify;

/// It is measured again after so long, if it is what keeps the switch-over off.
const AGAIN: Duration = Duration::from_secs(1);

/// When that was measured last.
#[derive(Default)]
pub(super) struct Measurement {
    last: Option<Instant>,
}

impl Measurement {
    /// Measures it once, and again while it keeps the switch-over off. Hashing costs more the more memory the guest has
    /// come to use.
    pub fn measure_if_due(&mut self, moving: &mut Moving<'_, '_, '_>) {
        let hashes = moving.course.options.request.verify == Verify::Full;
        let in_the_way = moving.transfer.costs.total() > moving.limits().downtime;
        let is_due = match self.last {
            None => true,
            Some(last) => last.elapsed() >= AGAIN && (in_the_way || hashes),
        };
        if is_due {
            moving.measure(hashes);
            self.last = Some(Instant::now());
        }
        // The last pages, the state and the commit each wait for an answer.
        moving.transfer.costs.answers = moving.link.session.round_trip() * 3;
    }
}

impl Moving<'_, '_, '_> {
    fn measure(&mut self, hashes: bool) {
        // The shortest round trip counts; should this fail, the link's end is seen elsewhere.
        let _ = self.link.session.ping();
        match self.course.vm.rehearse() {
            Ok(rehearsal) => self.transfer.costs.machine = rehearsal,
            // Then it costs what it cost before, as far as that is known.
            Err(why) => tracing::warn!(id = %why.id, "the switch-over was not rehearsed: {why}"),
        }
        if hashes {
            self.transfer.costs.hashing = self.hashing();
        }
    }

    /// What hashing all memory takes until both sides are done.
    fn hashing(&self) -> Duration {
        let ours = full_digest::cost(&self.transfer.ram);
        let speeds = self.transfer.hash_speeds;
        let slower = speeds.map_or(1.0, |[ours, theirs]| ours / theirs);
        let theirs = ours.mul_f64(slower.clamp(1e-3, 1e3));
        if self.course.to.is_within_host() {
            // Both use the processors of this host.
            ours + theirs
        } else {
            ours.max(theirs)
        }
    }
}
