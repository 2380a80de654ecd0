//! Who runs the guest.

use std::sync::Mutex;

use migration::observation::Side;

/// Sees who runs the guest, and panics when two do.
#[derive(Default)]
pub struct Witness {
    running: Mutex<(bool, bool)>,
}

impl Witness {
    pub(super) fn set(&self, side: Side, runs: bool) {
        let mut running = self.running.lock().unwrap();
        match side {
            Side::Source => running.0 = runs,
            _ => running.1 = runs,
        }
        assert!(*running != (true, true), "both sides run the guest");
    }

    /// Whether the source and the destination run it.
    pub fn running(&self) -> (bool, bool) {
        *self.running.lock().unwrap()
    }
}
