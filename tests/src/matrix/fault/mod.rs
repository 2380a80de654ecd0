//! What can happen to a migration.

pub mod disk;
pub mod guest;
pub mod host;
pub mod peer;
pub mod user;

use super::scene::SetUp;
use super::{Cell, Phase, Scene};
use crate::blackbox::Pair;

/// A fault: what is done, and what must come of it in each phase.
pub struct Fault {
    /// What it is called in the matrix.
    pub name: &'static str,
    /// What this machine lacks for it.
    pub lacks: fn() -> Option<String>,
    /// Whether a cell waits for a time-out of ten seconds or more.
    pub waits: fn(Phase) -> bool,
    /// What it needs before the migration begins.
    pub set_up: fn(&Pair, &tempfile::TempDir) -> SetUp,
    /// Does it, and lets the migration end.
    pub strike: fn(&mut Scene),
    /// What must come of it.
    pub expect: fn(Phase) -> Cell,
}

impl Fault {
    /// A fault that needs no set-up and never waits.
    const fn new(name: &'static str, strike: fn(&mut Scene), expect: fn(Phase) -> Cell) -> Self {
        Self {
            name,
            lacks: || None,
            waits: |_| false,
            set_up: |_, _| SetUp::default(),
            strike,
            expect,
        }
    }
}

/// Limits the faults to those whose name holds this text, for whoever works on one of them.
pub const ONLY_VARIABLE: &str = "VMM_TEST_FAULT";

/// All faults, unless [`ONLY_VARIABLE`] asks for some.
pub fn all() -> Vec<Fault> {
    let mut all = peer::all();
    all.extend(host::all());
    all.extend(disk::all());
    all.extend(guest::all());
    all.extend(user::all());
    let only = std::env::var(ONLY_VARIABLE).unwrap_or_default();
    all.retain(|fault| fault.name.contains(&only));
    all
}
