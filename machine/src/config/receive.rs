//! What `vmm receive` is told.

use std::collections::BTreeSet;
use std::path::PathBuf;

use migration::endpoint::Endpoint;
use migration::observation::Observation;
use migration::units::Rate;

use super::check::{absolute, check_disk_id, usage};
use super::incoming_disk::IncomingDisk;
use super::net::check_net_id;
use crate::memory;

/// What a destination is told before a guest arrives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiveConfig {
    /// `HOST:PORT`, `unix:PATH` or `fd:N`.
    pub listen: Endpoint,
    /// Name on this host; the guest's own name where absent.
    pub name: Option<String>,
    /// Where disks are on this host; one that is not named keeps its path.
    pub disks: Vec<IncomingDisk>,
    /// Where those are made that travel and are not named.
    pub disk_dir: Option<PathBuf>,
    /// Folders in which files below their images may lie, besides their own.
    pub allow_backing: Vec<PathBuf>,
    /// Taps on this host by the id of their interface; one that is not named keeps its name.
    pub nets: Vec<(String, String)>,
    /// Bytes of memory to have ready before the guest comes.
    pub reserve: Option<u64>,
    /// Bytes per second that come in at most.
    pub max_inbound: Rate,
}

impl ReceiveConfig {
    /// What the command line says, checked, with paths that do not depend on the folder of this process.
    ///
    /// # Errors
    /// `usage.disk`, `usage.net`, `usage.reserve`.
    pub fn checked(self) -> Result<Self, Observation> {
        let mut ids = BTreeSet::new();
        for IncomingDisk { id, .. } in &self.disks {
            check_disk_id(id)?;
            if !ids.insert(id) {
                return Err(usage("disk", format!("the disk {id:?} is named twice")));
            }
        }
        let mut ids = BTreeSet::new();
        for (id, _) in &self.nets {
            check_net_id(id)?;
            if !ids.insert(id) {
                return Err(usage("net", format!("the interface {id:?} is named twice")));
            }
        }
        if let Some(size) = self.reserve {
            memory::check_size(size).map_err(|e| usage("reserve", e.to_string()))?;
        }
        Ok(Self {
            disks: self.disks.into_iter().map(IncomingDisk::absolute).collect(),
            disk_dir: self.disk_dir.map(absolute),
            allow_backing: self.allow_backing.into_iter().map(absolute).collect(),
            ..self
        })
    }
}
