//! What can happen to a migration.

mod definition;
pub mod disk;
pub mod guest;
pub mod host;
pub mod peer;
pub mod travelling;
pub mod user;

pub use definition::Fault;

/// Limits the faults to those whose name holds this text, for whoever works on one of them.
pub const ONLY_VARIABLE: &str = "VMM_TEST_FAULT";

/// All faults, unless [`ONLY_VARIABLE`] asks for some.
pub fn all() -> Vec<Fault> {
    let mut all = peer::all();
    all.extend(travelling::all());
    all.extend(host::all());
    all.extend(disk::all());
    all.extend(guest::all());
    all.extend(user::all());
    let only = std::env::var(ONLY_VARIABLE).unwrap_or_default();
    all.retain(|fault| fault.name.contains(&only));
    all
}
