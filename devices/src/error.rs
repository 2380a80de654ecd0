//! What can go wrong with a device.

use std::io;
use std::time::Duration;

/// Result of an operation on a device.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed operation on a device or a bus.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two devices want the same addresses.
    #[error("device at {base:#x} of {len:#x} bytes overlaps the one at {other:#x}")]
    Overlap {
        /// First address of the refused device.
        base: u64,
        /// Its length.
        len: u64,
        /// First address of the device that is there already.
        other: u64,
    },
    /// A device has no addresses, or more than there are.
    #[error("device at {base:#x} of {len:#x} bytes does not fit the address space")]
    BadRange {
        /// First address.
        base: u64,
        /// Length.
        len: u64,
    },
    /// An event descriptor could not be made.
    #[error("create event descriptor for {device}")]
    EventFd {
        /// The device.
        device: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// A thread of a device could not be started.
    #[error("start thread of {device}")]
    Thread {
        /// The device.
        device: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// The size of a queue that a device wants is impossible.
    #[error("queue {queue} of {device} cannot have {size} entries")]
    QueueSize {
        /// The device.
        device: &'static str,
        /// Index of the queue.
        queue: usize,
        /// Entries wanted.
        size: u16,
    },
    /// What carries the requests of a disk out could not be made.
    #[error("make a virtual disk")]
    Disk {
        /// Cause.
        source: block::Error,
    },
    /// The disk behind a device did not confirm that everything is durable.
    #[error("flush disk {disk}")]
    Flush {
        /// Identity of the disk.
        disk: String,
        /// Cause.
        source: block::Error,
    },
    /// What is behind a device does not end its work, as a disk whose storage has gone away.
    #[error("{device} has not {awaited} in {waited:?}: its storage does not answer")]
    Hangs {
        /// The device and what is behind it.
        device: String,
        /// What it was to have done.
        awaited: &'static str,
        /// How long it was waited for.
        waited: Duration,
    },
    /// State was asked of, or given to, a device that runs.
    #[error("{operation} state of {device}: the device is not paused")]
    NotPaused {
        /// `save` or `load`.
        operation: &'static str,
        /// The device.
        device: &'static str,
    },
    /// Saved state does not fit the device; nothing was changed.
    #[error("load state of {device}: {reason}")]
    BadState {
        /// The device.
        device: &'static str,
        /// What does not fit.
        reason: String,
    },
    /// A device cannot be made as asked for.
    #[error("{device} cannot be had so: {reason}")]
    Unfit {
        /// The device.
        device: &'static str,
        /// What does not fit.
        reason: String,
    },
    /// A tap interface cannot be used.
    #[error(transparent)]
    Tap(#[from] crate::virtio::net::TapError),
    /// The network behind a device does not do what it must.
    #[error("{operation} the network")]
    Network {
        /// What was tried.
        operation: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// The interrupt could not be raised again after the device was loaded.
    #[error("raise interrupt of {device}")]
    Interrupt {
        /// The device.
        device: &'static str,
        /// Cause.
        source: io::Error,
    },
}
