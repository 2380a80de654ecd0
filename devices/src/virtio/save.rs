//! State of a paused device and its transport, to be taken over elsewhere.

use std::sync::atomic::Ordering;
use std::time::Duration;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};

use super::parked::Parked;
use super::queue;
use super::registers::{Registers, STATUS_BITS};
use super::state::{QueueStateV1, TransportStateV1, TransportStateV2};
use super::transport::MmioTransport;
use super::unfinished::Unfinished;
use crate::locked::locked;
use crate::{Error, Result};

impl MmioTransport {
    /// State of transport, queues and device.
    ///
    /// # Errors
    /// [`Error::NotPaused`] while the device runs, or a request of it does.
    pub fn save(&self) -> Result<TransportStateV2> {
        let _paused = self.require_paused("save")?;
        let Registers {
            device_features_sel,
            driver_features_sel,
            queue_sel,
            // As the queues say themselves.
            ready: _,
            // Nothing: no request is in flight.
            unfinished: _,
        } = *locked(&self.registers);
        let shared = &self.shared;
        let mut queues = Vec::with_capacity(shared.rings.len());
        let mut parked = Vec::with_capacity(shared.rings.len());
        for ring in &shared.rings {
            let ring = locked(ring);
            queues.push(queue::save(&ring.queue));
            parked.push(ring.parked.heads());
        }
        if parked.iter().all(Vec::is_empty) {
            parked.clear();
        }
        let first = TransportStateV1 {
            device_id: shared.kind.id(),
            device_features_sel,
            driver_features_sel,
            driver_features: shared.driver_features.load(Ordering::SeqCst),
            queue_sel,
            status: shared.status.load(Ordering::SeqCst),
            interrupt_status: shared.interrupt_status.load(Ordering::SeqCst),
            queues,
            device: shared.device.save(),
        };
        Ok(TransportStateV2 { first, parked })
    }

    /// Takes the place of a device that was saved; [`MmioTransport::resume`] lets it go on.
    ///
    /// # Errors
    /// When the device runs, or the state does not fit device and memory: nothing is changed then.
    pub fn load(&self, state: TransportStateV2) -> Result<()> {
        let _paused = self.require_paused("load")?;
        let TransportStateV2 {
            first:
                TransportStateV1 {
                    device_id,
                    device_features_sel,
                    driver_features_sel,
                    driver_features,
                    queue_sel,
                    status,
                    interrupt_status,
                    queues,
                    device,
                },
            parked,
        } = state;
        let shared = &self.shared;
        if device_id != shared.kind.id() {
            return Err(self.bad_state(format!("it is of device id {device_id}")));
        }
        // Before they are agreed on a driver may have written anything.
        let agreed = status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        let missing = driver_features & !self.features;
        if agreed && missing != 0 {
            return Err(self.bad_state(format!("features {missing:#x} are not offered here")));
        }
        let version_1 = driver_features & (1 << VIRTIO_F_VERSION_1) != 0;
        if status & !STATUS_BITS != 0
            || (agreed && !version_1)
            || (status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !agreed)
        {
            return Err(self.bad_state(format!("impossible status {status:#x}")));
        }
        if interrupt_status & !(VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG) != 0 {
            return Err(self.bad_state(format!("interrupt status {interrupt_status:#x}")));
        }
        let event_idx = agreed && driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let loaded = self.check_queues(queues, event_idx)?;
        let parked = self.check_parked(parked, &loaded)?;
        shared.device.load(device)?;
        let ready = loaded.iter().map(Queue::ready).collect();
        for ((ring, queue), heads) in shared.rings.iter().zip(loaded).zip(parked) {
            locked(ring).replace(queue, Parked::of(heads));
        }
        *locked(&self.registers) = Registers {
            device_features_sel,
            driver_features_sel,
            queue_sel,
            ready,
            unfinished: Unfinished::default(),
        };
        shared
            .driver_features
            .store(driver_features, Ordering::SeqCst);
        shared
            .interrupt_status
            .store(interrupt_status, Ordering::SeqCst);
        if status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            shared.device.took_over(driver_features);
        }
        shared.status.store(status, Ordering::SeqCst);
        Ok(())
    }

    fn require_paused(&self, operation: &'static str) -> Result<std::sync::MutexGuard<'_, bool>> {
        let paused = locked(&self.paused);
        if *paused && self.shared.gate.drained_within(Duration::ZERO) {
            Ok(paused)
        } else {
            Err(Error::NotPaused {
                operation,
                device: self.shared.kind.name(),
            })
        }
    }

    fn bad_state(&self, reason: String) -> Error {
        Error::BadState {
            device: self.shared.kind.name(),
            reason,
        }
    }

    /// Builds queues from saved ones, checked against this device and its memory.
    fn check_queues(&self, saved: Vec<QueueStateV1>, event_idx: bool) -> Result<Vec<Queue>> {
        let count = self.shared.rings.len();
        if saved.len() != count {
            let reason = format!("{} queues where this device has {count}", saved.len());
            return Err(self.bad_state(reason));
        }
        let mut queues = Vec::with_capacity(count);
        for (index, state) in saved.into_iter().enumerate() {
            let ours = locked(&self.shared.rings[index]).queue.max_size();
            let queue = queue::load(state, ours, event_idx, &self.shared.ram)
                .map_err(|reason| self.bad_state(format!("queue {index}: {reason}")))?;
            queues.push(queue);
        }
        Ok(queues)
    }

    /// The parked requests of each of `queues`, checked against them; there are none where nothing is said
    /// of any queue.
    fn check_parked(&self, mut saved: Vec<Vec<u16>>, queues: &[Queue]) -> Result<Vec<Vec<u16>>> {
        if saved.is_empty() {
            saved.resize(queues.len(), Vec::new());
        }
        if saved.len() != queues.len() {
            let (saved, here) = (saved.len(), queues.len());
            let reason = format!("parked requests of {saved} queues where this device has {here}");
            return Err(self.bad_state(reason));
        }
        for (heads, queue) in saved.iter().zip(queues) {
            let size = queue.size();
            let outside = heads.iter().find(|&&head| head >= size);
            let impossible = !queue.ready() || self.shared.device.disk_requests().is_none();
            if heads.len() > usize::from(size)
                || outside.is_some()
                || (impossible && !heads.is_empty())
            {
                return Err(self.bad_state(format!("parked requests {heads:?}")));
            }
        }
        Ok(saved)
    }
}
