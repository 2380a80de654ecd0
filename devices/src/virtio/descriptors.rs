//! The descriptors of a request that is known by its head: one that was just taken from the available
//! ring, or one that was parked, perhaps by another process.

use migration::GuestRam;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::{BadRequest, broken};

/// Bytes of a descriptor.
const LEN: u64 = size_of::<Descriptor>() as u64;

/// Walks from `head` on through the descriptor table, and through an indirect one (virtio 1.2, 2.7.5). It
/// ends where the driver breaks the rules, and never goes on for longer than the table has entries.
pub(super) fn of<'r>(
    queue: &Queue,
    ram: &'r GuestRam,
    head: u16,
) -> Result<impl Iterator<Item = Descriptor> + use<'r>, BadRequest> {
    let size = queue.size();
    if head >= size {
        return Err(BadRequest::HeadOutOfRange { index: head, size });
    }
    Ok(Walk {
        ram,
        table: queue.desc_table(),
        entries: size,
        left: size,
        next: Some(head),
        is_indirect: false,
    })
}

/// The head of the next request in the available ring, which is taken by that.
pub(super) fn next_head(queue: &mut Queue, ram: &GuestRam) -> Result<Option<u16>, BadRequest> {
    let mut available = queue.iter(ram).map_err(broken)?;
    Ok(available.next().map(|chain| chain.head_index()))
}

struct Walk<'r> {
    ram: &'r GuestRam,
    table: u64,
    entries: u16,
    /// So that a loop of descriptors comes to an end.
    left: u16,
    next: Option<u16>,
    is_indirect: bool,
}

impl Walk<'_> {
    fn read(&self, index: u16) -> Option<Descriptor> {
        let at = self.table.checked_add(u64::from(index) * LEN)?;
        self.ram.read_obj(GuestAddress(at)).ok()
    }

    /// Goes on in the table that `descriptor` names.
    fn enter(&mut self, descriptor: Descriptor) -> Option<()> {
        let len = u64::from(descriptor.len());
        let entries = u16::try_from(len / LEN).ok()?;
        if self.is_indirect || !len.is_multiple_of(LEN) || entries == 0 {
            return None;
        }
        *self = Self {
            ram: self.ram,
            table: descriptor.addr().0,
            entries,
            left: entries,
            next: Some(0),
            is_indirect: true,
        };
        Some(())
    }
}

impl Iterator for Walk<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        loop {
            let index = self.next.take()?;
            if self.left == 0 || index >= self.entries {
                return None;
            }
            let descriptor = self.read(index)?;
            if descriptor.refers_to_indirect_table() {
                self.enter(descriptor)?;
                continue;
            }
            self.left -= 1;
            self.next = descriptor.has_next().then(|| descriptor.next());
            return Some(descriptor);
        }
    }
}
