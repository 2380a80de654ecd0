//! What of a disk is here that another host serves, as that is told on each connection.

use std::sync::{Arc, OnceLock, Weak};

use block::on_demand::{BLOCK, OnDemand};
use migration::pull::Presence;

/// What of a disk is here, for who serves it.
pub(crate) struct Here {
    /// Before the disk is used.
    before: Vec<bool>,
    disk: OnceLock<Weak<OnDemand>>,
}

impl Presence for Here {
    fn is_present(&self, _volume: usize, unit: u64) -> bool {
        match self.disk.get().and_then(Weak::upgrade) {
            Some(disk) => disk.has(unit * BLOCK),
            None => {
                let known = usize::try_from(unit).ok();
                known.is_some_and(|unit| self.before.get(unit) == Some(&true))
            }
        }
    }
}

impl Here {
    /// What was here `before`, a block each, until there is a disk.
    pub(crate) fn as_in(before: Vec<bool>) -> Arc<Self> {
        Arc::new(Self {
            before,
            disk: OnceLock::new(),
        })
    }

    /// What `disk` has, from here on.
    pub(crate) fn is(&self, disk: &Arc<OnDemand>) {
        // There is one at most.
        let _ = self.disk.set(Arc::downgrade(disk));
    }
}
