//! The virtio-mmio transport (virtio 1.2, section 4.2), without the legacy interface.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use migration::GuestRam;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::flusher::Flusher;
use super::state::{QueueStateV1, TransportStateV1};
use super::worker::Shared;
use super::{ConfigNotifier, DeviceKind, QueueWaker, VirtioDevice, queue};
use crate::bus::BusDevice;
use crate::interrupt::Interrupt;
use crate::locked::locked;
use crate::threads::{self, Role};
use crate::{Error, Result};

/// Bytes of MMIO space that a device takes.
pub const MMIO_LEN: u64 = 0x1000;
/// Offset of QueueNotify, for `KVM_IOEVENTFD` with the queue's index as datamatch (32 bits).
pub const QUEUE_NOTIFY_OFFSET: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// `virt` in ASCII.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// `vmm` in ASCII.
const VENDOR: u32 = 0x006d_6d76;

/// How long a device that is being paused may take to end its requests, and again to flush: the guest
/// stands still meanwhile.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// How long a flush may take while the guest runs.
const FLUSH_PATIENCE: Duration = Duration::from_secs(20);

/// Features of the transport.
const TRANSPORT_FEATURES: u64 =
    (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX) | (1 << VIRTIO_RING_F_INDIRECT_DESC);

/// Every bit of Status that has a meaning.
const STATUS_BITS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_NEEDS_RESET
    | VIRTIO_CONFIG_S_FAILED;

/// Registers that only the driver changes, and that no queue's thread reads.
#[derive(Debug, Default)]
struct Registers {
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
}

/// A virtio device in MMIO space: its registers, its queues and their threads.
pub struct MmioTransport {
    shared: Arc<Shared>,
    features: u64,
    registers: Mutex<Registers>,
    /// Whether [`MmioTransport::pause`] holds the gate.
    paused: Mutex<bool>,
    flusher: Flusher,
    threads: Vec<JoinHandle<()>>,
}

impl MmioTransport {
    /// Puts `device` behind a transport, running and reset.
    ///
    /// # Errors
    /// When its event descriptors or threads cannot be made.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: GuestRam,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<Arc<Self>> {
        let name = device.kind().name();
        let role = match device.kind() {
            DeviceKind::Block => Role::Disk,
            DeviceKind::Net => Role::Net,
            DeviceKind::Console | DeviceKind::Rng => Role::Queue,
        };
        let features = device.features() | TRANSPORT_FEATURES;
        let event_error = |source| Error::EventFd {
            device: name,
            source,
        };
        let mut queues = Vec::new();
        let mut kicks = Vec::new();
        let mut wakers = Vec::new();
        for (queue, &size) in device.queue_sizes().iter().enumerate() {
            let ring = Queue::new(size).map_err(|_| Error::QueueSize {
                device: name,
                queue,
                size,
            })?;
            queues.push(Mutex::new(ring));
            let kick = EventFd::new(0).map_err(event_error)?;
            wakers.push(QueueWaker::new(kick.try_clone().map_err(event_error)?));
            kicks.push(kick);
        }
        device.attach(wakers);
        let shared = Arc::new(Shared::new(device, ram, interrupt, queues, kicks));
        shared.device.attach_config(ConfigNotifier::new(&shared));
        let mut transport = Self {
            shared,
            features,
            registers: Mutex::default(),
            paused: Mutex::new(false),
            flusher: Flusher::default(),
            threads: Vec::new(),
        };
        for index in 0..transport.shared.queues.len() {
            let shared = Arc::clone(&transport.shared);
            shared.gate.expect();
            let thread = std::thread::Builder::new()
                .name(format!("{name}-{index}"))
                .stack_size(256 << 10)
                .spawn(move || {
                    threads::begin(role);
                    shared.run(index);
                });
            match thread {
                Ok(thread) => transport.threads.push(thread),
                // Dropping the transport ends the threads that were started.
                Err(source) => {
                    transport.shared.gate.unexpect();
                    return Err(Error::Thread {
                        device: name,
                        source,
                    });
                }
            }
        }
        Ok(Arc::new(transport))
    }

    /// One event descriptor per queue, for `KVM_IOEVENTFD` at [`QUEUE_NOTIFY_OFFSET`].
    pub fn queue_notifiers(&self) -> &[EventFd] {
        &self.shared.kicks
    }

    /// Processes what is in a queue on the caller's thread, for tests that need to know when that was
    /// done; otherwise the queue's own thread does it when it is notified.
    #[doc(hidden)]
    pub fn serve_now(&self, queue: usize) {
        if queue < self.shared.queues.len() {
            self.shared.serve_once(queue);
        }
    }

    /// Finishes the requests in flight, stops the queues' threads, and flushes what is behind the
    /// device. Idempotent; vCPUs are stopped before.
    ///
    /// # Errors
    /// When the flush is not confirmed; the device is paused all the same. When a request does not end
    /// in time: the device takes no other, and [`MmioTransport::resume`] lets it go on.
    pub fn pause(&self) -> Result<()> {
        let mut paused = locked(&self.paused);
        if !*paused {
            self.shared.gate.close(|| self.shared.kick_all());
            *paused = true;
        }
        if !self.shared.gate.drained_within(DRAIN_PATIENCE) {
            return Err(self.shared.hangs(DRAIN_PATIENCE));
        }
        self.shared.device.stand();
        self.flusher.flush(&self.shared, DRAIN_PATIENCE)
    }

    /// Makes durable what was completed, while the device runs, so that [`MmioTransport::pause`] finds
    /// less to do.
    ///
    /// # Errors
    /// When the flush is not confirmed, or not in time.
    pub fn flush(&self) -> Result<()> {
        self.flusher.flush(&self.shared, FLUSH_PATIENCE)
    }

    /// Lets the device go on where it was paused, or where the saved one was. Idempotent.
    ///
    /// # Errors
    /// When the device cannot go on, and stays paused; or when a pending interrupt cannot be raised,
    /// and the device runs all the same.
    pub fn resume(&self) -> Result<()> {
        let mut paused = locked(&self.paused);
        if !*paused {
            return Ok(());
        }
        self.shared.device.go_on()?;
        *paused = false;
        self.shared.gate.release();
        // A notification may have been taken before the pause, or at the other host, without its
        // request; and an edge may have gone to an interrupt controller that was already saved.
        self.shared.kick_all();
        if self.shared.interrupt_status.load(Ordering::SeqCst) != 0 {
            self.shared
                .interrupt
                .trigger()
                .map_err(|source| Error::Interrupt {
                    device: self.shared.kind.name(),
                    source,
                })?;
        }
        Ok(())
    }

    /// State of transport, queues and device.
    ///
    /// # Errors
    /// [`Error::NotPaused`] while the device runs.
    pub fn save(&self) -> Result<TransportStateV1> {
        let _paused = self.require_paused("save")?;
        let Registers {
            device_features_sel,
            driver_features_sel,
            queue_sel,
        } = *locked(&self.registers);
        let shared = &self.shared;
        Ok(TransportStateV1 {
            device_id: shared.kind.id(),
            device_features_sel,
            driver_features_sel,
            driver_features: shared.driver_features.load(Ordering::SeqCst),
            queue_sel,
            status: shared.status.load(Ordering::SeqCst),
            interrupt_status: shared.interrupt_status.load(Ordering::SeqCst),
            queues: shared
                .queues
                .iter()
                .map(|queue| queue::save(&locked(queue)))
                .collect(),
            device: shared.device.save(),
        })
    }

    /// Takes the place of a device that was saved; [`MmioTransport::resume`] lets it go on.
    ///
    /// # Errors
    /// When the device runs, or the state does not fit device and memory: nothing is changed then.
    pub fn load(&self, state: TransportStateV1) -> Result<()> {
        let _paused = self.require_paused("load")?;
        let TransportStateV1 {
            device_id,
            device_features_sel,
            driver_features_sel,
            driver_features,
            queue_sel,
            status,
            interrupt_status,
            queues,
            device,
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
        shared.device.load(device)?;
        for (queue, loaded) in shared.queues.iter().zip(loaded) {
            *locked(queue) = loaded;
        }
        *locked(&self.registers) = Registers {
            device_features_sel,
            driver_features_sel,
            queue_sel,
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
        if *paused {
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
        let count = self.shared.queues.len();
        if saved.len() != count {
            let reason = format!("{} queues where this device has {count}", saved.len());
            return Err(self.bad_state(reason));
        }
        let mut queues = Vec::with_capacity(count);
        for (index, state) in saved.into_iter().enumerate() {
            let ours = locked(&self.shared.queues[index]).max_size();
            let queue = queue::load(state, ours, event_idx, &self.shared.ram)
                .map_err(|reason| self.bad_state(format!("queue {index}: {reason}")))?;
            queues.push(queue);
        }
        Ok(queues)
    }

    fn selected<T>(&self, registers: &Registers, of: impl FnOnce(&mut Queue) -> T) -> Option<T> {
        let index = usize::try_from(registers.queue_sel).ok()?;
        self.shared
            .queues
            .get(index)
            .map(|queue| of(&mut locked(queue)))
    }

    fn read_register(&self, offset: u32) -> u32 {
        let registers = locked(&self.registers);
        let shared = &self.shared;
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => shared.kind.id(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => match registers.device_features_sel {
                0 => self.features as u32,
                1 => (self.features >> 32) as u32,
                _ => 0,
            },
            VIRTIO_MMIO_QUEUE_NUM_MAX => self
                .selected(&registers, |queue| u32::from(queue.max_size()))
                .unwrap_or(0),
            VIRTIO_MMIO_QUEUE_READY => self
                .selected(&registers, |queue| u32::from(queue.ready()))
                .unwrap_or(0),
            VIRTIO_MMIO_INTERRUPT_STATUS => shared.interrupt_status.load(Ordering::SeqCst),
            VIRTIO_MMIO_STATUS => shared.status.load(Ordering::SeqCst),
            // There is no shared memory region, of whatever id.
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_CONFIG_GENERATION => shared.config_generation.load(Ordering::SeqCst),
            _ => 0,
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        // First, and without a lock: the only register that is written often.
        if offset == VIRTIO_MMIO_QUEUE_NOTIFY {
            if let Ok(queue) = usize::try_from(value) {
                self.shared.kick(queue);
            }
            return;
        }
        let mut registers = locked(&self.registers);
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.write_driver_features(&registers, value),
            VIRTIO_MMIO_QUEUE_SEL => registers.queue_sel = value,
            VIRTIO_MMIO_INTERRUPT_ACK => {
                self.shared
                    .interrupt_status
                    .fetch_and(!value, Ordering::SeqCst);
            }
            VIRTIO_MMIO_STATUS => self.write_status(&mut registers, value),
            VIRTIO_MMIO_QUEUE_READY => self.write_queue_ready(&registers, value),
            VIRTIO_MMIO_QUEUE_NUM
            | VIRTIO_MMIO_QUEUE_DESC_LOW
            | VIRTIO_MMIO_QUEUE_DESC_HIGH
            | VIRTIO_MMIO_QUEUE_AVAIL_LOW
            | VIRTIO_MMIO_QUEUE_AVAIL_HIGH
            | VIRTIO_MMIO_QUEUE_USED_LOW
            | VIRTIO_MMIO_QUEUE_USED_HIGH => {
                self.selected(&registers, |queue| queue::set_up(queue, offset, value));
            }
            _ => {}
        }
    }

    fn write_driver_features(&self, registers: &Registers, value: u32) {
        let status = self.shared.status.load(Ordering::SeqCst);
        if status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            self.shared
                .complain(&"features changed after they were agreed on");
            return;
        }
        let shift = match registers.driver_features_sel {
            0 => 0,
            1 => 32,
            _ => return,
        };
        let features = self.shared.driver_features.load(Ordering::SeqCst);
        let features = (features & !(0xffff_ffff << shift)) | (u64::from(value) << shift);
        self.shared
            .driver_features
            .store(features, Ordering::SeqCst);
    }

    fn write_queue_ready(&self, registers: &Registers, value: u32) {
        let usable = self.selected(registers, |queue| {
            if value != 1 {
                queue.set_ready(false);
                // Should it be used again, then with new rings.
                queue.set_next_avail(0);
                queue.set_next_used(0);
                return true;
            }
            queue.set_ready(true);
            let usable = queue::is_usable(queue, &self.shared.ram);
            queue.set_ready(usable);
            usable
        });
        if usable == Some(false) {
            self.shared
                .need_reset(&"rings of a queue are not in guest memory");
        }
    }

    fn write_status(&self, registers: &mut Registers, value: u32) {
        if value == 0 {
            self.reset(registers);
            return;
        }
        let shared = &self.shared;
        let before = shared.status.load(Ordering::SeqCst);
        // A driver cannot take back what it said, nor say what the device says.
        let mut new = value & STATUS_BITS & !VIRTIO_CONFIG_S_NEEDS_RESET & !before;
        if new & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            let features = shared.driver_features.load(Ordering::SeqCst);
            let version_1 = features & (1 << VIRTIO_F_VERSION_1) != 0;
            if version_1 && features & !self.features == 0 {
                let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
                for queue in &shared.queues {
                    locked(queue).set_event_idx(event_idx);
                }
            } else {
                // The driver reads the status back, and sees that the bit did not stay.
                new &= !VIRTIO_CONFIG_S_FEATURES_OK;
            }
        }
        if new & VIRTIO_CONFIG_S_DRIVER_OK != 0 && (before | new) & VIRTIO_CONFIG_S_FEATURES_OK == 0
        {
            shared.complain(&"driver starts without agreed features");
            new &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        if new & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            let features = shared.driver_features.load(Ordering::SeqCst);
            shared.device.started(features);
        }
        shared.status.fetch_or(new, Ordering::SeqCst);
        if new & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            // What was notified before was not processed.
            shared.kick_all();
        }
    }

    fn reset(&self, registers: &mut Registers) {
        let shared = &self.shared;
        // The driver may use the memory of its requests for something else from here on.
        shared.gate.hold(|| shared.kick_all());
        for queue in &shared.queues {
            locked(queue).reset();
        }
        shared.device.reset();
        *registers = Registers::default();
        shared.driver_features.store(0, Ordering::SeqCst);
        shared.interrupt_status.store(0, Ordering::SeqCst);
        shared.status.store(0, Ordering::SeqCst);
        shared.gate.release();
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            self.shared.device.read_config(offset, data);
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            // Below the configuration space.
            *data = self.read_register(offset as u32).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // No device has configuration that a driver may write.
        if offset < u64::from(VIRTIO_MMIO_CONFIG)
            && offset.is_multiple_of(4)
            && let Ok(data) = <[u8; 4]>::try_from(data)
        {
            self.write_register(offset as u32, u32::from_le_bytes(data));
        }
    }
}

impl Drop for MmioTransport {
    fn drop(&mut self) {
        self.shared.gate.stop();
        self.shared.kick_all();
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device", &self.shared.kind)
            .field("status", &self.shared.status)
            .field("paused", &self.paused)
            .finish_non_exhaustive()
    }
}
