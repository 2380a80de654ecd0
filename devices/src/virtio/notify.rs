//! What a device has to call with when something happens that no driver asked for.

use std::sync::{Arc, Weak};

use vmm_sys_util::eventfd::EventFd;

/// Wakes the thread of a queue, for a device that has work without being asked by the driver.
#[derive(Debug, Clone)]
pub struct QueueWaker(Arc<EventFd>);

impl QueueWaker {
    pub(crate) fn new(event: EventFd) -> Self {
        Self(Arc::new(event))
    }

    /// Wakes the thread; it looks at the whole queue then.
    pub fn wake(&self) {
        // Fails only when the counter is full, and then the thread is about to wake up.
        let _pending = self.0.write(1);
    }
}

/// Who shows the driver a configuration space.
pub(crate) trait ConfigOwner: Send + Sync {
    /// Counts a change of the configuration space and tells a driver that has started.
    fn config_changed(&self);
}

/// Tells the driver that the configuration space has changed.
#[derive(Debug, Clone)]
pub struct ConfigNotifier(Weak<dyn ConfigOwner>);

impl ConfigNotifier {
    pub(crate) fn new(owner: Weak<dyn ConfigOwner>) -> Self {
        Self(owner)
    }

    /// Counts a change that was made, and interrupts a driver that has started.
    pub fn changed(&self) {
        if let Some(owner) = self.0.upgrade() {
            owner.config_changed();
        }
    }
}
