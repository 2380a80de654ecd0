//! How a guest's end reaches whoever holds the machine.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};

use devices::power::PowerControl;
use migration::observation::{Observation, Side};

/// What a guest did that ends its run.
#[derive(Debug, Clone)]
pub enum GuestEvent {
    /// It asked for a reset, in any of the ways that kernels know.
    Reset,
    /// It powered itself off.
    PowerOff,
    /// It cannot go on: a triple fault that it did not announce as a restart, or KVM refused to run it.
    Failed(Observation),
}

/// Sending end: vCPUs and the power devices tell what the guest did.
#[derive(Debug, Clone)]
pub struct GuestEvents {
    sender: Sender<GuestEvent>,
    end: Arc<OnceLock<Observation>>,
}

impl GuestEvents {
    /// A new pair of ends.
    pub fn new() -> (Self, Receiver<GuestEvent>) {
        let (sender, receiver) = channel();
        (
            Self {
                sender,
                end: Arc::default(),
            },
            receiver,
        )
    }

    /// Tells the guest's end; only the first one counts.
    pub fn tell(&self, event: GuestEvent) {
        if self.end.set(observed(&event)).is_ok() {
            // Without a receiver the machine is being dropped, and nobody asks any more.
            let _ = self.sender.send(event);
        }
    }

    /// Whether an end was told; true before the machine can be seen paused after it.
    pub fn ended(&self) -> bool {
        self.end.get().is_some()
    }

    /// How it ended.
    pub(crate) fn end(&self) -> Option<&Observation> {
        self.end.get()
    }
}

/// What a guest did, for whoever wanted to go on with it.
pub(crate) fn observed(event: &GuestEvent) -> Observation {
    let at_source = |id: &str, message: &str| Observation::new(Side::Source, id, message);
    match event {
        GuestEvent::PowerOff => at_source("guest.powered-off", "the guest powered off"),
        GuestEvent::Reset => at_source(
            "guest.reset",
            "the guest asked for a reset, which ends its VM",
        ),
        GuestEvent::Failed(why) => why.clone(),
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
