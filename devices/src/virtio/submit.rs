//! Serving a queue whose requests a disk carries out: several are in flight at once, and each is completed
//! when the disk has done it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, ThreadId};

use block::Submitter;
use migration::GuestRam;
use virtio_queue::QueueT;

use super::chain::{BadRequest, broken};
use super::disk_requests::{DiskRequests, Next};
use super::shared::Shared;
use super::taken::{Origin, RequestOwner, Taken};
use crate::locked::locked;

/// Which thread serves a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    /// Its own: it may carry requests out itself.
    Own,
    /// The one that stands in for it while a request keeps it: no request may keep this one.
    StandIn,
}

impl Shared {
    /// Takes and submits what is available, until nothing is or the gate closes.
    pub(super) fn submit_ring(
        self: &Arc<Self>,
        index: usize,
        requests: &dyn DiskRequests,
        features: u64,
        server: Server,
    ) -> Result<(), BadRequest> {
        let by = thread::current().id();
        let result = self.submit_available(index, requests, features, (server, by));
        // What was completed before something broke is announced too.
        let announced = locked(&self.rings[index]).announce(&self.ram);
        result.and_then(|()| {
            self.give(announced?);
            Ok(())
        })
    }

    fn submit_available(
        self: &Arc<Self>,
        index: usize,
        requests: &dyn DiskRequests,
        features: u64,
        (server, by): (Server, ThreadId),
    ) -> Result<(), BadRequest> {
        loop {
            {
                let queue = &mut locked(&self.rings[index]).queue;
                if !queue.ready() {
                    return Ok(());
                }
                queue.disable_notification(&self.ram).map_err(broken)?;
            }
            loop {
                if self.gate.closed() {
                    // Whoever opens the gate kicks every queue, so that the rest is found again.
                    return Ok(());
                }
                if server == Server::StandIn && !requests.backing().has_room() {
                    // It looks again soon.
                    return Ok(());
                }
                let Some((mut taken, more)) = self.take(index, by)? else {
                    break;
                };
                let begun = taken.with(|chain, asked| {
                    let (what, next) = requests.begin(chain, features)?;
                    *asked = what;
                    Ok::<_, BadRequest>(next)
                });
                let submitter = match (server, more) {
                    (Server::StandIn, _) => Submitter::Hurried,
                    (Server::Own, false) => Submitter::Alone,
                    (Server::Own, true) => Submitter::Ahead,
                };
                match begun {
                    Ok(next) => self.step(taken, next, submitter)?,
                    Err(bad) => {
                        self.forget(taken);
                        return Err(bad);
                    }
                }
            }
            let ring = &mut *locked(&self.rings[index]);
            self.give(ring.announce(&self.ram)?);
            if !ring.queue.enable_notification(&self.ram).map_err(broken)? {
                return Ok(());
            }
        }
    }

    /// Takes the next request, and whether more are available behind it.
    fn take(
        self: &Arc<Self>,
        index: usize,
        by: ThreadId,
    ) -> Result<Option<(Box<Taken>, bool)>, BadRequest> {
        let ring = &mut *locked(&self.rings[index]);
        let arrivals = self.arrivals.load(Ordering::SeqCst);
        let origin = |head| Origin {
            queue: index,
            head,
            by,
            arrivals,
        };
        let Some(taken) = ring.take(self, origin, arrivals)? else {
            return Ok(None);
        };
        self.gate.begin();
        match ring.has_more(&self.ram) {
            Ok(more) => Ok(Some((taken, more))),
            Err(bad) => {
                ring.give_back(taken);
                self.gate.end();
                Err(bad)
            }
        }
    }

    /// Does what is next for a request.
    fn step(
        &self,
        mut taken: Box<Taken>,
        next: Next,
        submitter: Submitter,
    ) -> Result<(), BadRequest> {
        match next {
            Next::Submit(action) => {
                taken.action = action;
                let own = submitter != Submitter::Hurried;
                let queue = taken.origin.queue;
                let away = self.away.as_ref().filter(|_| own);
                if let Some(away) = away {
                    away.leave(queue);
                }
                if let Some(requests) = self.device.disk_requests() {
                    requests.backing().submit(taken, submitter);
                }
                if let Some(away) = away {
                    away.back(queue);
                }
                Ok(())
            }
            Next::Complete(written) => self.hand_back(taken, written),
        }
    }

    /// Hands a request back to the driver.
    fn hand_back(&self, taken: Box<Taken>, written: u32) -> Result<(), BadRequest> {
        let Origin {
            queue, head, by, ..
        } = taken.origin;
        let ring = &mut *locked(&self.rings[queue]);
        let mut notice = ring.complete(&self.ram, head, written);
        if by != thread::current().id() {
            // Whoever took it does not come by here, and may be kept for long.
            notice = notice.and_then(|earlier| {
                self.give(earlier);
                ring.announce(&self.ram)
            });
        }
        let notice = notice.map(|notice| self.give(notice));
        ring.give_back(taken);
        self.gate.end();
        notice
    }

    /// Ends a request of which the driver hears nothing.
    fn forget(&self, taken: Box<Taken>) {
        locked(&self.rings[taken.origin.queue]).give_back(taken);
        self.gate.end();
    }
}

impl RequestOwner for Shared {
    fn ram(&self) -> &GuestRam {
        &self.ram
    }

    fn ended(self: Arc<Self>, mut taken: Box<Taken>, result: block::Result<()>) {
        let Some(requests) = self.device.disk_requests() else {
            return;
        };
        let next = match taken.with(|chain, asked| requests.ended(chain, asked, result)) {
            // What comes next may not keep the thread of the disk, nor be carried out inside of this call.
            Ok(next) => self.step(taken, next, Submitter::Hurried),
            Err(bad) => {
                self.forget(taken);
                Err(bad)
            }
        };
        if let Err(bad) = next {
            self.need_reset(&bad);
        }
    }

    fn park(self: Arc<Self>, taken: Box<Taken>) {
        let origin = taken.origin;
        let parked = {
            let ring = &mut *locked(&self.rings[origin.queue]);
            ring.give_back(taken);
            ring.park(origin)
        };
        self.gate.end();
        match parked {
            // Something may have come since it was submitted, and have found nothing parked.
            Ok(()) if self.arrivals.load(Ordering::SeqCst) != origin.arrivals => {
                self.kick(origin.queue);
            }
            Ok(()) => {}
            Err(bad) => self.need_reset(&bad),
        }
    }

    fn lost(self: Arc<Self>) {
        self.gate.end();
        self.need_reset(&"a request of it was lost");
    }
}
