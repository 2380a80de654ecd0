//! The thread that stands in for the threads of a disk's queues.
//!
//! A queue's thread carries a request out itself when that should be over in a moment. Should it not be,
//! the driver's next requests must not wait for it: so somebody looks, as long as there are requests at
//! all, whether the thread is still away with the same one, and serves the queue in its place then.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::PollFd;

use super::away::Away;
use super::poll::{poll_kicks, try_take};
use super::shared::Shared;
use super::submit::Server;

/// How often is looked; a request may keep the thread of its queue, and with it the queue, for up to twice
/// as long.
const LOOK: Duration = Duration::from_millis(10);
/// After so many looks that saw nothing, nobody looks until there is a request again.
const LOOKS: u32 = 10;

impl Shared {
    /// The life of the thread.
    pub(super) fn stand_in(self: &Arc<Self>) {
        let Some(away) = &self.away else {
            return;
        };
        let thread = self.gate.enter();
        let mut seen: Vec<u64> = away.counts().collect();
        // Queues whose thread is away for long.
        let mut overdue = vec![false; seen.len()];
        let mut fds = Vec::with_capacity(1 + seen.len());
        let (mut looked, mut in_vain) = (Instant::now(), 0);
        while thread.wait_open() {
            if let Err(error) = self.wait_for_work(&mut fds, away, &overdue)
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(device = self.kind.name(), %error, "nobody stands in for its queues");
                return;
            }
            let is_due = looked.elapsed() >= LOOK;
            let mut in_use = false;
            for (index, count) in away.counts().enumerate() {
                let same = seen[index] == count;
                in_use |= Away::is_away(count) || !same;
                if !same {
                    overdue[index] = false;
                } else if is_due && Away::is_away(count) {
                    overdue[index] = true;
                }
                if is_due {
                    seen[index] = count;
                }
                if overdue[index] {
                    try_take(&self.kicks[index]);
                    self.serve_in_place(index);
                }
            }
            if is_due {
                looked = Instant::now();
                in_vain = if in_use { 0 } else { in_vain + 1 };
                if in_vain >= LOOKS {
                    in_vain = 0;
                    away.rest();
                }
            }
        }
    }

    /// Waits until it is time to look, there is something new in a queue that is overdue, or it is called.
    fn wait_for_work<'s>(
        &'s self,
        fds: &mut Vec<PollFd<'s>>,
        away: &'s Away,
        overdue: &[bool],
    ) -> io::Result<()> {
        let patience = (!away.is_resting()).then_some(LOOK);
        let overdue = overdue
            .iter()
            .zip(&self.kicks)
            .filter(|(overdue, _)| **overdue);
        poll_kicks(fds, away.event(), overdue.map(|(_, kick)| kick), patience)?;
        try_take(away.event());
        Ok(())
    }

    fn serve_in_place(self: &Arc<Self>, index: usize) {
        let Some(requests) = self.device.disk_requests().filter(|_| self.active()) else {
            return;
        };
        let features = self.driver_features.load(Ordering::SeqCst);
        let served = self.submit_ring(index, requests, features, Server::StandIn);
        if let Err(error) = served {
            self.need_reset(&error);
        }
    }
}
