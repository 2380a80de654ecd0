//! Layers: block devices over another, see [`pass_on::Layer`].

pub mod backlog;
pub mod control_file;
pub mod fault;
pub mod mirror;
pub mod on_demand;
pub mod pass_on;
pub mod recorder;
pub mod room;
pub mod sealed;
pub mod throttle;
pub mod tracker;
