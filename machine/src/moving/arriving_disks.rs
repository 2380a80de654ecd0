//! The disks of an incoming guest: which of them travel, and what is made for those.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use migration::MigrationId;
use migration::endpoint::RemoteHost;
use migration::journal::FileJournal;
use migration::observation::{Observation, Side};
use migration::vm::{DestinationVolume, TravellingDisk, VmResult, VolumeOffer, Wish};

use crate::build::spec::MachineSpec;
use crate::config::DiskTarget;
use crate::disks::incoming::{self, DiskPaths, Made, Placement, Places};
use crate::disks::incoming_volumes::{IncomingVolume, LaterVolume};
use crate::disks::marks::{self, Mark};
use crate::disks::places::DiskPlaces;
use crate::disks::{self, DiskClaim, DiskSource, Disks};
use crate::error::MachineError;
use crate::opener;
use crate::serving::reaching;

/// Where this host puts or finds disks.
pub(super) struct Here<'a> {
    pub(super) places: &'a Places,
    pub(super) paths: DiskPaths,
    /// Folder of this host's journal.
    pub(super) journal: PathBuf,
}

/// Disks of one migration. Dropped, what was made for them stays, unless it was [abandoned](Self::abandon) before: nobody
/// may know yet whether the guest came.
#[derive(Default)]
pub(super) struct ArrivingDisks {
    migration: Option<MigrationId>,
    /// Those that travel or may, as their source tells of them; once chosen, those that do.
    offered: Vec<VolumeOffer>,
    /// The same that do, in the same order, and why.
    travelling: Vec<TravellingDisk>,
    placements: Vec<Placement>,
    /// What says of each image that it is coming, in the same order.
    marks: Vec<Mark>,
    made: Made,
    volumes: Vec<Arc<dyn DestinationVolume>>,
    /// Those of them whose content comes with the guest.
    incoming: Vec<Arc<IncomingVolume>>,
    /// What is to be told of those whose content comes later.
    warnings: Vec<Observation>,
}

impl ArrivingDisks {
    /// Of migration `id`, whose source offers these.
    pub(super) fn of(id: MigrationId, offered: &[VolumeOffer]) -> Self {
        Self {
            migration: Some(id),
            offered: offered.to_vec(),
            ..Self::default()
        }
    }

    /// Which of them travel.
    pub(super) fn travelling(&self) -> &[TravellingDisk] {
        &self.travelling
    }

    /// Where the blocks of those go.
    pub(super) fn volumes(&self) -> impl Iterator<Item = Arc<dyn DestinationVolume>> {
        let volumes = self.volumes.iter().cloned();
        volumes.map(|volume| volume as Arc<dyn DestinationVolume>)
    }

    /// Where disk `id` is put, if it travels.
    pub(super) fn placement(&self, id: &str) -> Option<&Placement> {
        self.placements.iter().find(|placed| placed.id == id)
    }

    /// Leaves out those that need not travel, as this host reaches them where they lie, which is `shared`, or was not told
    /// where to put them.
    pub(super) fn choose(
        &mut self,
        here: &Here<'_>,
        shared: &[DiskSource],
        told: Option<&DiskPlaces>,
    ) {
        self.travelling.clear();
        for offer in std::mem::take(&mut self.offered) {
            let why = match offer.wish {
                Wish::Travels | Wish::OnDemand => None,
                Wish::MayTravel => {
                    let disk = shared.iter().find(|disk| disk.id == offer.id);
                    match disk.and_then(|disk| here.why_it_travels(disk, told)) {
                        Some(why) => Some(why),
                        None => continue,
                    }
                }
            };
            let id = offer.id.clone();
            self.travelling.push(TravellingDisk { id, why });
            self.offered.push(offer);
        }
    }

    /// Says where each goes that travels with guest `name`; nothing is made yet.
    ///
    /// # Errors
    /// When one cannot be put anywhere, as far as that can be told before.
    pub(super) fn place(
        &mut self,
        here: &Here<'_>,
        name: &str,
        spec: &MachineSpec,
    ) -> VmResult<()> {
        let placements = here
            .places
            .placements(name, spec, &self.offered, here.paths)?;
        self.placements = match placements.is_empty() {
            true => placements,
            false => incoming::check(&placements, here.journal.clone())?,
        };
        Ok(())
    }

    /// Looks whether who serves those is reached whose content comes later, at `source`, where the guest is.
    ///
    /// # Errors
    /// `negotiate.server` when one is not.
    pub(super) fn reach_servers(&mut self, source: RemoteHost) -> VmResult<()> {
        let servers = self.placements.iter().filter_map(|it| it.rest.as_ref());
        let servers: Vec<_> = servers.collect();
        self.warnings = reaching::reach(&servers, source)?;
        Ok(())
    }

    /// What went wrong and did not keep the guest from coming.
    pub(super) fn warnings(&self) -> impl Iterator<Item = Observation> + '_ {
        self.warnings.iter().cloned()
    }

    /// Makes the images that are to be made, each marked as one that is coming.
    ///
    /// # Errors
    /// When one cannot be made; none is left then.
    pub(super) fn make(&mut self, here: &Here<'_>) -> VmResult<()> {
        let (Some(id), false) = (self.migration, self.placements.is_empty()) else {
            return Ok(());
        };
        let journal = here.journal.clone();
        let journal = opener::outside(move || {
            FileJournal::open(journal)
                .map_err(|e| Observation::from_error(Side::Destination, "migration.journal", &e))
        })?;
        let lacks_server = |(placement, offer): &(&Placement, &VolumeOffer)| {
            offer.wish == Wish::OnDemand && placement.rest.is_none()
        };
        let mut all = self.placements.iter().zip(&self.offered);
        if let Some((placement, _)) = all.find(lacks_server) {
            let message = format!(
                "nobody serves disk {}, which is to be fetched",
                placement.id
            );
            return Err(Observation::new(
                Side::Destination,
                "negotiate.disk",
                message,
            ));
        }
        let marks = self.placements.iter();
        self.marks = marks
            .map(|placement| placement.mark(id, &journal))
            .collect();
        self.made = Made::make(&self.placements, id, journal)?;
        Ok(())
    }

    /// Takes the images that `disks` has opened.
    ///
    /// # Errors
    /// When one cannot be marked.
    pub(super) fn opened(&mut self, disks: &Disks) -> VmResult<()> {
        let all = self.placements.iter().zip(&self.offered).zip(&self.marks);
        for ((placement, offer), mark) in all {
            let id = &placement.id;
            let disk = disks.find(id).ok_or_else(|| {
                let message = format!("disk {id} was not built");
                Observation::new(Side::Destination, "machine.build", message)
            })?;
            if !self.made.is_still(placement, disk.image().file()) {
                let message = format!("somebody else replaced what was made for disk {id}");
                return Err(Observation::new(
                    Side::Destination,
                    "machine.build",
                    message,
                ));
            }
            let incoming = match (&disk.coming, offer.may_leave_rest()) {
                (Some(_), false) => {
                    self.volumes.push(Arc::new(LaterVolume {
                        id: id.clone(),
                        size: disk.device().size(),
                    }));
                    continue;
                }
                (Some(coming), true) => {
                    IncomingVolume::in_part(placement, (disk.image(), coming), mark)?
                }
                (None, _) => {
                    IncomingVolume::marked(placement, (disk.image(), disk.device()), mark)?
                }
            };
            let incoming = Arc::new(incoming);
            self.incoming.push(incoming.clone());
            self.volumes.push(incoming);
        }
        Ok(())
    }

    /// All of those is here, and durable, whose content comes with the guest.
    ///
    /// # Errors
    /// When a block device cannot be told from one that is not whole.
    pub(super) fn are_whole(&self) -> VmResult<()> {
        self.incoming.iter().try_for_each(|volume| volume.unseal())
    }

    /// The guest is here: the images are its own, and of those that lack something that is fetched from here on.
    pub(super) fn arrived(&mut self, disks: &Disks, rate: Option<u64>) {
        disks.have_rest_come(rate);
        for placement in self.placements.iter().filter(|it| it.rest.is_none()) {
            let image = disks.image(&placement.id);
            if let Some(Err(error)) = image.map(|image| marks::remove(image.file())) {
                tracing::warn!(disk = %placement.id, %error, "its image stays marked as one that is coming");
            }
        }
    }

    /// The guest never was here and does not come: what was made for it goes, now that nobody has it open.
    pub(super) fn abandon(self) {
        self.made.discard();
    }

    /// As that, while they are still open: what was told as whole is not.
    pub(super) fn give_up(&self) {
        for volume in &self.incoming {
            volume.seal_again();
        }
    }
}

impl Here<'_> {
    /// Why a disk that need not travel does, if it does.
    fn why_it_travels(&self, disk: &DiskSource, told: Option<&DiskPlaces>) -> Option<String> {
        match self.places.of(&disk.id) {
            Some(named) if named.target == DiskTarget::Shared => None,
            Some(named) => Some(format!(
                "the destination was told to put it at {}",
                named.path.display()
            )),
            // There is no place for it.
            None if self.places.folder.is_none() => None,
            None if self.paths == DiskPaths::GivenHere => Some(
                "the destination listens on the network, where no source says which file it opens"
                    .into(),
            ),
            None => disks::check(disk, DiskClaim::Successor(told))
                .err()
                .map(|why| format!("the destination does not reach it: {}", explained(&why))),
        }
    }
}

/// An error and its causes, in one line.
fn explained(error: &MachineError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
