//! What a load has done since boot, as its line tells.

use crate::lines;

#[derive(Default)]
pub struct Counts {
    /// Units.
    pub read: u64,
    pub written: u64,
    pub verified: u64,
    /// Requests that the device failed.
    pub errors: u64,
    /// Units that were wrong.
    pub faults: u64,
    /// Looks at the whole region.
    pub passes: u64,
}

/// What is told beside the counts.
pub struct Told {
    pub disk: usize,
    pub end: bool,
    /// Numbers of changes.
    pub submitted: u64,
    pub acknowledged: u64,
    pub flushed: u64,
    pub in_flight: usize,
}

impl Counts {
    /// Queues the line; it is lost where there is no room, and the next tells more.
    pub fn print(&self, told: &Told) {
        let Told {
            disk,
            end,
            submitted,
            acknowledged,
            flushed,
            in_flight,
        } = *told;
        let _ = lines::post(format_args!(
            "disk disk={disk} end={} submitted={submitted} acked={acknowledged} flushed={flushed} \
             in_flight={in_flight} units_read={} units_written={} units_verified={} errors={} \
             faults={} passes={}",
            u8::from(end),
            self.read,
            self.written,
            self.verified,
            self.errors,
            self.faults,
            self.passes,
        ));
    }
}
