//! How a guest's end reaches whoever holds the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use devices::power::PowerControl;

use crate::vcpu::GuestEvent;

/// Sending end: vCPUs and the power devices tell what the guest did.
#[derive(Debug, Clone)]
pub struct GuestEvents {
    sender: Sender<GuestEvent>,
    ended: Arc<AtomicBool>,
}

impl GuestEvents {
    /// A new pair of ends.
    pub fn new() -> (Self, Receiver<GuestEvent>) {
        let (sender, receiver) = channel();
        (
            Self {
                sender,
                ended: Arc::new(AtomicBool::new(false)),
            },
            receiver,
        )
    }

    /// Tells the guest's end; only the first one counts.
    pub fn tell(&self, event: GuestEvent) {
        if !self.ended.swap(true, Ordering::SeqCst) {
            // Without a receiver the machine is being dropped, and nobody asks any more.
            let _ = self.sender.send(event);
        }
    }

    /// Whether an end was told; true before the machine can be seen paused after it.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }
}

impl PowerControl for GuestEvents {
    fn reset(&self) {
        self.tell(GuestEvent::Reset);
    }

    fn power_off(&self) {
        self.tell(GuestEvent::PowerOff);
    }
}
