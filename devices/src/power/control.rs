//! What devices need of the machine to reset it or to power it off.

/// What the guest can ask of the machine. Called on a vCPU thread: must not wait for one.
pub trait PowerControl: Send + Sync {
    /// The guest asked for a reset.
    fn reset(&self);
    /// The guest powered itself off.
    fn power_off(&self);
}
