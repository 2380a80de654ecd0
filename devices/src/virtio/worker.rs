//! The thread of a queue: takes requests from the ring, has them processed, and completes them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::announcer::Announcer;
use super::available::{AvailableBuffers, Packets};
use super::chain::{BadRequest, Chain, broken};
use super::poll::poll;
use super::shared::Shared;
use super::submit::Server;
use super::wait::{Wait, Woken};
use crate::locked::locked;

/// How long a driver whose available buffers are too few for the largest packet has to add some.
const PATIENCE: Duration = Duration::from_millis(10);
/// How long a source of packets that fails is left alone.
const RECOVERY: Duration = Duration::from_secs(1);

impl Shared {
    /// The life of a queue's thread.
    pub(super) fn run(self: &Arc<Self>, index: usize) {
        let thread = self.gate.enter();
        let mut scratch = Scratch {
            chain: Chain::new(),
            available: AvailableBuffers::new(),
        };
        let mut wait = Wait::Kick;
        while thread.wait_open() {
            let woken = match self.wait(index, wait) {
                Ok(woken) => woken,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(device = self.kind.name(), index, %error, "queue stops");
                    return;
                }
            };
            wait = self
                .serve(index, &mut scratch, woken)
                .unwrap_or_else(|error| {
                    self.need_reset(&error);
                    Wait::Kick
                });
        }
    }

    /// Processes what is in the queue on the caller's thread, and waits until none of it is in flight.
    pub(super) fn serve_once(self: &Arc<Self>, index: usize) {
        let mut scratch = Scratch {
            chain: Chain::new(),
            available: AvailableBuffers::new(),
        };
        if let Err(error) = self.serve(index, &mut scratch, Woken::Impatient) {
            self.need_reset(&error);
        }
        while self.gate.in_flight() > 0 {
            std::thread::yield_now();
        }
    }

    /// Waits until there may be work again.
    fn wait(&self, index: usize, wait: Wait) -> io::Result<Woken> {
        let kick = &self.kicks[index];
        let packets = match wait {
            Wait::Kick => {
                kick.read()?;
                return Ok(Woken::ByWork);
            }
            Wait::KickOrPatience | Wait::Recovery => None,
            Wait::Packets | Wait::PacketsImpatiently => {
                let features = self.driver_features.load(Ordering::SeqCst);
                self.device.packets(index, features)
            }
        };
        let patience = match wait {
            Wait::KickOrPatience => Some(PATIENCE),
            Wait::Recovery => Some(RECOVERY),
            Wait::Kick | Wait::Packets | Wait::PacketsImpatiently => None,
        };
        let (kicked, events) = poll(kick, packets.map(Packets::waiting), patience)?;
        if kicked {
            // Does not block: this thread alone reads it.
            kick.read()?;
        }
        Ok(if events == 0 || wait == Wait::PacketsImpatiently {
            Woken::Impatient
        } else {
            Woken::ByWork
        })
    }

    /// Processes what is in the queue, until it is empty or the gate closes; what to wait for then.
    fn serve<'r>(
        self: &'r Arc<Self>,
        index: usize,
        scratch: &mut Scratch<'r>,
        woken: Woken,
    ) -> Result<Wait, BadRequest> {
        if !self.active() {
            return Ok(Wait::Kick);
        }
        let features = self.driver_features.load(Ordering::SeqCst);
        if let Some(requests) = self.device.disk_requests() {
            self.submit_ring(index, requests, features, Server::Own)?;
            return Ok(Wait::Kick);
        }
        let queue = &mut locked(&self.rings[index]).queue;
        if !queue.ready() {
            return Ok(Wait::Kick);
        }
        let mut announcer = Announcer::new(queue);
        let result = match self.device.packets(index, features) {
            Some(packets) => self.fill_ring(
                queue,
                packets,
                &mut scratch.available,
                &mut announcer,
                woken,
            ),
            None => self
                .serve_ring(index, queue, &mut scratch.chain, features, &mut announcer)
                .map(|()| Wait::Kick),
        };
        // What was completed before something broke is announced too.
        let announced = announcer.announce(queue, &self.ram);
        result.and_then(|wait| {
            self.give(announced?);
            Ok(wait)
        })
    }

    fn serve_ring<'r>(
        &'r self,
        index: usize,
        queue: &mut Queue,
        chain: &mut Chain<'r>,
        features: u64,
        announcer: &mut Announcer,
    ) -> Result<(), BadRequest> {
        let limit = usize::from(queue.max_size());
        loop {
            queue.disable_notification(&self.ram).map_err(broken)?;
            loop {
                if self.gate.closed() {
                    // Whoever opens the gate kicks every queue, so that the rest is found again.
                    return Ok(());
                }
                if !self.device.has_work(index) {
                    break;
                }
                let Some(descriptors) = queue.iter(&self.ram).map_err(broken)?.next() else {
                    break;
                };
                let head = descriptors.head_index();
                if head >= queue.size() {
                    return Err(BadRequest::HeadOutOfRange {
                        index: head,
                        size: queue.size(),
                    });
                }
                chain.load(&self.ram, descriptors, limit)?;
                let written = self.device.process(index, chain, features)?;
                queue.add_used(&self.ram, head, written).map_err(broken)?;
                self.give(announcer.completed(queue, &self.ram)?);
            }
            self.give(announcer.announce(queue, &self.ram)?);
            let more = queue.enable_notification(&self.ram).map_err(broken)?;
            if !more || !self.device.has_work(index) {
                return Ok(());
            }
        }
    }
}

/// What the thread of a queue keeps from request to request, so that taking one allocates nothing.
struct Scratch<'r> {
    chain: Chain<'r>,
    available: AvailableBuffers<'r>,
}
