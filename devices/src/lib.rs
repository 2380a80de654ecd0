//! Guest-facing devices: buses, legacy devices and virtio over MMIO.
//!
//! # Building a machine
//! A machine makes one [`Bus`] for ports and one for MMIO, puts devices on them, shares them with its
//! vCPU threads (`Arc<Bus>`), and keeps the devices' handles:
//!
//! | device | made by | on its bus | besides |
//! |---|---|---|---|
//! | [`serial::Serial`] | `Serial::new(interrupt, Box<dyn Write + Send>)?` | ports 0x3f8, [`serial::SERIAL_PORTS`] | `enqueue_input(&[u8]) -> usize`, `on_room(OnRoom)`, `drain_output(timeout) -> bool` |
//! | [`rtc::Rtc`] | `Rtc::new(interrupt)?` | ports 0x70, [`rtc::RTC_PORTS`] | |
//! | [`power::I8042`] | `I8042::new(power)` | ports 0x60, [`power::I8042_PORTS`] | |
//! | [`power::AcpiPower`] | `AcpiPower::new(power, interrupt)` | ports 0x600, [`power::ACPI_POWER_PORTS`] | `press_power_button()?` |
//! | [`virtio::MmioTransport`] | `MmioTransport::new(Box<dyn VirtioDevice>, ram, interrupt)?` | MMIO slot, [`virtio::MMIO_LEN`] | `queue_notifiers() -> &[EventFd]` |
//!
//! `interrupt` is an `Arc<dyn `[`Interrupt`]`>`, usually an [`EventFdInterrupt`] whose `event()` is
//! registered as irqfd; `power` an `Arc<dyn `[`power::PowerControl`]`>`, which acts on what the guest
//! asks. The devices behind a transport are
//! `virtio::Block::over(Arc<dyn block::BlockDevice>, BlockConfig { serial, queues })?`,
//! `virtio::Console::new(Box<dyn Write + Send>)? -> (Console, ConsoleEnd)` and `virtio::Rng::new()`.
//! Notifier `i` is registered as ioeventfd at [`virtio::mmio::QUEUE_NOTIFY_OFFSET`] of the slot, 4 bytes,
//! with datamatch `i`; notifications that reach the bus all the same are handled too.
//!
//! # Moving a machine
//! 1. While it runs, [`virtio::MmioTransport::flush`] now and then leaves less for the pause.
//! 2. vCPUs stop, then every transport's `pause()?`: requests in flight end, disks are flushed.
//! 3. `save()` of every device (`save()?` of a transport); one transport's is
//!    [`virtio::TransportStateV2`].
//! 4. At the other side a machine made alike: `pause()?` and `load(state)?` of every transport, `load`
//!    of every other device. Loading checks everything and changes nothing when it fails.
//! 5. Interrupt controllers are loaded; then `resume()?` of every device, before the vCPUs run: pending
//!    interrupts are raised again and every queue is looked at once, so that nothing is lost. The
//!    source does the same when it goes on.
//!
//! Dropping a transport ends its threads; dropping a serial port or console writes what is left.

#![deny(missing_docs)]

pub mod bus;
pub mod error;
pub mod interrupt;
mod locked;
mod output;
pub mod power;
mod room;
pub mod rtc;
pub mod serial;
pub mod threads;
pub mod virtio;

pub use bus::{Bus, BusDevice};
pub use error::{Error, Result};
pub use interrupt::{EventFdInterrupt, Interrupt};
pub use room::OnRoom;
