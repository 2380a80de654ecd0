//! The reset control register of PC chipsets: guests reset the machine through it (`reboot=pci` of Linux).

use std::sync::Arc;

use super::PowerControl;
use crate::bus::BusDevice;

/// Its port. It lies among the ports of PCI's configuration mechanism, which take words there, and this takes
/// bytes.
pub const RESET_CONTROL_PORT: u64 = 0xcf9;

/// Its 0 to 1 transition resets; the other bits say how (Intel ICH9 datasheet, 13.7.5).
const RESET_CPU: u8 = 1 << 2;

/// The register. A machine that is reset has forgotten what was written before, so it reads as zero always.
pub struct ResetControl {
    power: Arc<dyn PowerControl>,
}

impl ResetControl {
    /// A register that resets the machine through `power`.
    pub fn new(power: Arc<dyn PowerControl>) -> Self {
        Self { power }
    }
}

impl BusDevice for ResetControl {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if let &[byte] = data
            && byte & RESET_CPU != 0
        {
            self.power.reset();
        }
    }
}

impl std::fmt::Debug for ResetControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResetControl").finish_non_exhaustive()
    }
}
