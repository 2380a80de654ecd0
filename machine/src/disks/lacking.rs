//! Disks that a guest begins with before they are whole: the layer over the image that fetches what is missing, in the first
//! stack of the disk.
//!
//! Where the rest is, is a matter of the [`Origin`] alone: an image of this host, or one that another host serves.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use block::copy::Steering;
use block::on_demand::{ImageOrigin, OnDemand, Origin, Policy, PresenceMap, Pull};
use block::{Claim, Stack};
use migration::MigrationId;

use crate::disks::Disk;
use crate::disks::in_part::OtherImage;
use crate::error::MachineError;
use crate::threads::{self, ThreadKind};

/// A disk that lacks something, as its guest begins with it. Nothing comes by itself until [`OnDemand::set_pull`] says so.
pub(crate) struct Lacking {
    /// The disk.
    pub(crate) disk: String,
    /// The job that brings what it lacks.
    pub(crate) job: MigrationId,
    /// Where that comes from.
    pub(crate) from: PathBuf,
    /// What fetches it.
    pub(crate) layer: Arc<OnDemand>,
    /// What steers that.
    pub(crate) steering: Arc<Steering>,
    /// The layers of the disk when it is whole.
    pub(crate) bare: Stack,
    /// On the image that it comes from, if that lies here.
    pub(crate) claim: Claim,
}

impl Lacking {
    /// Lays the layer over what `disk` begins with, which no device uses yet.
    pub(super) fn lay(disk: &Disk, rest: OtherImage) -> Result<Self, MachineError> {
        let OtherImage {
            from,
            job,
            origin,
            map,
            claim,
        } = rest;
        let origin = Arc::new(ImageOrigin::new(origin.device()));
        let steering = Arc::new(Steering::new(None, Duration::ZERO));
        steering.go_on_for_good();
        let bare = disk.stack();
        // Until the job runs that is told how fast.
        let policy = Policy {
            pull: Pull::Off,
            ..Policy::default()
        };
        let layer = lay(disk, map, origin, (policy, &steering), || {
            threads::begin(ThreadKind::Disk);
        })?;
        Ok(Self {
            disk: disk.id.clone(),
            job,
            from,
            layer,
            steering,
            bare,
            claim,
        })
    }
}

/// Has `disk`, which no device uses yet, be its image together with what `origin` gives of what is missing by `map`, which
/// threads that have called `begin` ask for.
pub(super) fn lay(
    disk: &Disk,
    map: PresenceMap,
    origin: Arc<dyn Origin>,
    (policy, steering): (Policy, &Arc<Steering>),
    begin: fn(),
) -> Result<Arc<OnDemand>, MachineError> {
    let mut stack = disk.stack();
    let layer =
        stack.try_lay(|image| OnDemand::new(image, map, origin, policy, steering.clone(), begin));
    let layer = layer.map_err(|source| MachineError::Disk {
        id: disk.id.clone(),
        path: disk.image.file().path().to_owned(),
        source,
    })?;
    disk.current.put(stack);
    Ok(layer)
}
