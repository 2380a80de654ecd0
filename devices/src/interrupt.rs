//! How a device interrupts the guest.

use std::fmt;
use std::io;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{Error, Result};

/// An edge-triggered interrupt line.
pub trait Interrupt: Send + Sync + fmt::Debug {
    /// Raises the interrupt once.
    ///
    /// # Errors
    /// When the interrupt controller cannot be reached.
    fn trigger(&self) -> io::Result<()>;
}

/// An interrupt by event descriptor, which KVM turns into an edge of a GSI (`KVM_IRQFD`).
#[derive(Debug)]
pub struct EventFdInterrupt {
    event: EventFd,
}

impl EventFdInterrupt {
    /// Makes the descriptor.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new() -> Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK).map_err(|source| Error::EventFd {
            device: "interrupt",
            source,
        })?;
        Ok(Self { event })
    }

    /// The descriptor, to be registered with KVM.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

impl Interrupt for EventFdInterrupt {
    fn trigger(&self) -> io::Result<()> {
        match self.event.write(1) {
            // The counter is full of edges that nobody has taken: the interrupt is pending anyway.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }
}
