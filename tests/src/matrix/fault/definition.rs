//! What a fault consists of.

use crate::blackbox::Pair;
use crate::matrix::scene::SetUp;
use crate::matrix::{Cell, Phase, Scene};

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
    pub(super) const fn new(
        name: &'static str,
        strike: fn(&mut Scene),
        expect: fn(Phase) -> Cell,
    ) -> Self {
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
