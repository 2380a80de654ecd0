//! Queues: set up by a driver, saved, and built again from what was saved.

use migration::GuestRam;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_USED_HIGH,
    VIRTIO_MMIO_QUEUE_USED_LOW,
};
use virtio_queue::{Queue, QueueState, QueueT};

use super::state::QueueStateV1;

/// Whether rings are set up, in guest memory, and not all in one place.
pub(super) fn is_usable(queue: &Queue, ram: &GuestRam) -> bool {
    queue.is_valid(ram) && queue.avail_ring() != 0 && queue.avail_ring() != queue.used_ring()
}

/// State of a queue.
pub(super) fn save(queue: &Queue) -> QueueStateV1 {
    let QueueState {
        max_size,
        next_avail,
        next_used,
        // Follows from the features.
        event_idx_enabled: _,
        size,
        ready,
        desc_table,
        avail_ring,
        used_ring,
    } = queue.state();
    QueueStateV1 {
        max_size,
        size,
        ready,
        desc_table,
        avail_ring,
        used_ring,
        next_avail,
        next_used,
    }
}

/// Sets size or addresses of a queue, as long as it is not in use.
pub(super) fn set_up(queue: &mut Queue, offset: u32, value: u32) {
    if queue.ready() {
        return;
    }
    match offset {
        // Sizes that no queue can have are left for the driver to find out.
        VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
        VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
        VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
        VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
        VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
        VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
        VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
        _ => {}
    }
}

/// Builds a queue from a saved one, for a device whose queue has at most `ours` entries; what does not
/// fit is said.
pub(super) fn load(
    state: QueueStateV1,
    ours: u16,
    event_idx: bool,
    ram: &GuestRam,
) -> Result<Queue, String> {
    let QueueStateV1 {
        max_size,
        size,
        ready,
        desc_table,
        avail_ring,
        used_ring,
        next_avail,
        next_used,
    } = state;
    if max_size != ours {
        return Err(format!("{max_size} entries instead of {ours}"));
    }
    let queue = Queue::try_from(QueueState {
        max_size,
        next_avail,
        next_used,
        event_idx_enabled: event_idx,
        size,
        ready,
        desc_table,
        avail_ring,
        used_ring,
    })
    .map_err(|error| error.to_string())?;
    if ready && !is_usable(&queue, ram) {
        return Err("its rings are not in memory".into());
    }
    Ok(queue)
}
