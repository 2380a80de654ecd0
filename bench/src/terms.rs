//! The terms of a scenario, on which all contenders are measured.

use std::time::Duration;

use super::disks::MovingDisk;
use super::link::Link;
use super::mapping::Warmth;

/// What all contenders of a scenario find alike.
pub(super) struct Terms<'a> {
    /// The way between the hosts.
    pub link: &'a Link,
    /// Longest that the guest may be stopped.
    pub downtime_limit_ms: u64,
    /// Longest that a migration may take.
    pub patience: Duration,
    /// Memory that is populated and freed right before the request.
    pub warmth: Warmth,
    /// Disks that the guest has, and that travel with it.
    pub disks: &'a [MovingDisk],
}
