//! Serving a queue whose buffers a device fills by itself, as packets come.

use std::io;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::announcer::Announcer;
use super::available::{AvailableBuffers, Packets, Received};
use super::chain::{BadRequest, broken};
use super::shared::Shared;
use super::wait::{Wait, Woken};

impl Shared {
    /// Fills buffers until no packet waits, no more are available, or the gate closes; what is to
    /// be waited for then.
    pub(super) fn fill_ring<'r>(
        &'r self,
        queue: &mut Queue,
        packets: &dyn Packets,
        available: &mut AvailableBuffers<'r>,
        announcer: &mut Announcer,
        woken: Woken,
    ) -> Result<Wait, BadRequest> {
        let result = self.fill(queue, packets, available, announcer, woken);
        // What was not filled is the driver's again: it may reset the queue, or be moved away.
        let back = available.give_back();
        // At most the size of the queue.
        queue.set_next_avail(queue.next_avail().wrapping_sub(back as u16));
        result
    }

    fn fill<'r>(
        &'r self,
        queue: &mut Queue,
        packets: &dyn Packets,
        available: &mut AvailableBuffers<'r>,
        announcer: &mut Announcer,
        woken: Woken,
    ) -> Result<Wait, BadRequest> {
        queue.disable_notification(&self.ram).map_err(broken)?;
        let room = packets.room();
        let mut patient = woken != Woken::Impatient;
        loop {
            if self.gate.closed() {
                // Whoever opens the gate kicks every queue.
                return Ok(Wait::Kick);
            }
            while !available.is_enough(room) && self.take_one(queue, packets, available)? {}
            if available.is_enough(room) {
                patient = true;
            } else if available.is_empty() || patient {
                // Everything is taken, so that the driver's next buffer is notified.
                self.give(announcer.announce(queue, &self.ram)?);
                // One that claims to have more available than the queue holds has nothing that could be taken.
                let all_taken = available.chains() >= usize::from(queue.size());
                if queue.enable_notification(&self.ram).map_err(broken)? && !all_taken {
                    queue.disable_notification(&self.ram).map_err(broken)?;
                    continue;
                }
                // A driver may have so few buffers that there is never room for the largest packet:
                // it gets those that fit.
                return Ok(if available.is_empty() {
                    Wait::Kick
                } else {
                    Wait::KickOrPatience
                });
            }
            match packets.receive(available) {
                Ok(Received::Packet(len)) => {
                    self.complete(queue, available, len)?;
                    self.give(announcer.completed(queue, &self.ram)?);
                }
                Ok(Received::Dropped) => {}
                // The driver does not use this queue now; it is woken when it does.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                    return Ok(Wait::Kick);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(if patient {
                        Wait::Packets
                    } else {
                        Wait::PacketsImpatiently
                    });
                }
                Err(error) => {
                    self.host_fails(&format_args!("no packets can be had: {error}"));
                    return Ok(Wait::Recovery);
                }
            }
        }
    }

    /// Takes the next chain of the available ring, if there is one.
    fn take_one<'r>(
        &'r self,
        queue: &mut Queue,
        packets: &dyn Packets,
        available: &mut AvailableBuffers<'r>,
    ) -> Result<bool, BadRequest> {
        if available.chains() >= usize::from(queue.size()) {
            // A driver that makes more available than the queue holds; what is taken is given back in its order.
            return Ok(false);
        }
        let Some(chain) = queue.iter(&self.ram).map_err(broken)?.next() else {
            return Ok(false);
        };
        let head = chain.head_index();
        let (size, limit) = (queue.size(), usize::from(queue.max_size()));
        if head >= size {
            return Err(BadRequest::HeadOutOfRange { index: head, size });
        }
        available.take(&self.ram, head, chain, limit, packets.header())?;
        Ok(true)
    }

    /// Puts the chains that hold a packet into the used ring, all at once: a driver that looks at the
    /// first must find the others.
    fn complete(
        &self,
        queue: &mut Queue,
        available: &mut AvailableBuffers<'_>,
        len: u64,
    ) -> Result<(), BadRequest> {
        let mut filled = available.filled(len);
        while let Some((head, bytes)) = filled.next() {
            if filled.len() == 0 {
                return queue.add_used(&self.ram, head, bytes).map_err(broken);
            }
            let next = queue.next_used();
            // Behind flags and index; a used element is a head and a length of 32 bits each.
            let at = 4 + 8 * u64::from(next % queue.size());
            let element = u64::from(head) | u64::from(bytes) << 32;
            self.ram
                .write_obj(element.to_le(), GuestAddress(queue.used_ring() + at))
                .map_err(|error| BadRequest::Ring(error.to_string()))?;
            queue.set_next_used(next.wrapping_add(1));
        }
        Ok(())
    }
}
