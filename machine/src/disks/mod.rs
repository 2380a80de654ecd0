//! The disks of a machine: how their images are opened and claimed, by an owner or a successor, and
//! whether a successor has the right ones.

pub(crate) mod away;
pub(crate) mod changes;
pub(crate) mod claims;
pub(crate) mod coming;
pub(crate) mod content;
mod disk;
pub(crate) mod exclusive_opens;
pub mod in_part;
pub(crate) mod incoming;
pub(crate) mod incoming_volumes;
pub(crate) mod lacking;
pub(crate) mod marks;
pub(crate) mod opened_image;
mod opening;
pub mod overlay_target;
pub(crate) mod pivots;
pub(crate) mod places;
mod samples;
mod seal;
mod served;
pub mod settling;
mod source;
pub mod target;
pub(crate) mod tracking;
mod unused;
pub(crate) mod write_limit;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use block::image::Image;
use block::layer::tracker::ChangeMap;
use block::{BlockDevice, RawImage};
use migration::observation::{Observation, Side};
use migration::wire::kind::MAX_SAMPLES;

use crate::debug;
use crate::disks::away::Away;
use crate::disks::coming::Coming;
pub(crate) use crate::disks::disk::Disk;
use crate::disks::exclusive_opens::ExclusiveOpens;
use crate::disks::in_part::Lack;
use crate::disks::lacking::Lacking;
pub(crate) use crate::disks::opening::check;
use crate::disks::opening::{claim_as, open, told};
use crate::disks::places::{DiskPlace, DiskPlaces};
use crate::disks::samples::DiskSamples;
pub use crate::disks::source::{DiskClaim, DiskOwner, DiskSource};
use crate::disks::tracking::Tracked;
use crate::error::MachineError;
use crate::opener;

/// All disks of a machine.
#[derive(Default)]
pub(crate) struct Disks {
    /// In the order of their slots; one is replaced when it moves to another image.
    all: RwLock<Vec<Arc<Disk>>>,
    /// Which host this is, see [`DiskPlaces`].
    host: Option<String>,
    exclusive_opens: ExclusiveOpens,
    tracked: Tracked,
    away: Away,
    lacking: Mutex<Vec<Lacking>>,
}

impl Disks {
    /// Opens and claims all disks of a machine.
    ///
    /// # Errors
    /// When one cannot be opened or claimed, or is not the one that a successor was told of.
    pub(crate) fn open(sources: &[DiskSource], claim: DiskClaim<'_>) -> Result<Self, MachineError> {
        if sources.is_empty() {
            return Ok(Self::default());
        }
        let (sources, told) = (sources.to_vec(), told(claim));
        let (opened, host) = opener::outside(move || {
            let host = debug::host();
            let claim = claim_as(told.as_ref());
            let opened = sources
                .iter()
                .map(|disk| open(disk, disk.claimed(claim), host.as_deref()));
            let all = opened.collect::<Result<Vec<_>, MachineError>>()?;
            Ok::<_, MachineError>((all, host))
        })?;
        let mut all = Vec::with_capacity(opened.len());
        let mut lacking = Vec::new();
        for (mut disk, lack) in opened {
            match lack {
                None => {}
                Some(Lack::InImage(other)) => lacking.push(Lacking::lay(&disk, other)?),
                Some(Lack::Served(absent)) => {
                    disk.coming = Some(Arc::new(served::lay(&disk, absent)?));
                }
            }
            disk.make_ring()?;
            all.push(disk);
        }
        let opened = all.iter_mut().filter_map(|disk| disk.exclusive.take());
        let exclusive_opens = ExclusiveOpens::new(opened.collect())
            .map_err(|e| MachineError::Build("be ready to pass on block devices", e))?;
        Ok(Self {
            all: RwLock::new(all.into_iter().map(Arc::new).collect()),
            host,
            exclusive_opens,
            tracked: Tracked::default(),
            away: Away::default(),
            lacking: Mutex::new(lacking),
        })
    }

    /// The guest is here: what is served of its disks is asked for from here on, at most `rate` bytes a second of each that it does
    /// not wait for.
    pub(crate) fn have_rest_come(&self, rate: Option<u64>) {
        for disk in self.iter() {
            if let Some(coming) = &disk.coming {
                coming.begin(rate);
            }
        }
    }

    /// The guest is about to go on with those for which `leaves`, some of which may lack something: nobody is told from here that they
    /// are whole, until it [stays](Self::stay).
    ///
    /// # Errors
    /// `disk.in-part` when another one lacks something.
    pub(crate) fn leave(&self, leaves: impl Fn(&str) -> bool) -> Result<(), Observation> {
        let in_part = self
            .iter()
            .find(|disk| disk.is_in_part() && !leaves(&disk.id));
        if let Some(disk) = in_part {
            let id = &disk.id;
            let message = format!(
                "a part of disk {id} is not here yet: it moves on by --disks {id}=on-demand, or when that has come (vmm status \
                 tells)"
            );
            return Err(Observation::new(Side::Source, "disk.in-part", message));
        }
        self.coming().for_each(|disk| disk.leave());
        Ok(())
    }

    /// The guest stays.
    pub(crate) fn stay(&self) {
        self.coming().for_each(|disk| disk.stay());
    }

    /// The guest has gone with them: nothing of them is fetched here any more, and what has come is durable.
    pub(crate) fn end_coming(&self) {
        self.coming().for_each(|disk| disk.end());
    }

    fn coming(&self) -> impl Iterator<Item = Arc<Coming>> {
        self.iter().filter_map(|disk| disk.coming.clone())
    }

    /// Those that lacked something when they were opened, for whoever has it come.
    pub(crate) fn take_lacking(&self) -> Vec<Lacking> {
        let mut lacking = self.lacking.lock();
        let lacking = lacking.as_deref_mut();
        lacking.map(std::mem::take).unwrap_or_default()
    }

    fn all(&self) -> RwLockReadGuard<'_, Vec<Arc<Disk>>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Disk `id`.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<Disk>> {
        self.all().iter().find(|disk| disk.id == id).cloned()
    }

    /// Has `next` take the place of the disk of the same identity.
    pub(crate) fn replace(&self, next: &Arc<Disk>) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(disk) = all.iter_mut().find(|disk| disk.id == next.id) {
            *disk = Arc::clone(next);
        }
    }

    /// The image of disk `id`, if nothing is between it and the guest and its bytes are those of the disk.
    pub(crate) fn bare_image(&self, id: &str) -> Option<Arc<RawImage>> {
        let disk = self.find(id)?;
        match &disk.image {
            Image::Raw(image) if disk.stack().names().count() == 1 => Some(image.clone()),
            Image::Raw(_) | Image::Qcow2(_) => None,
        }
    }

    /// The changes of disk `id`, as long as they are tracked.
    pub(crate) fn changes(&self, id: &str) -> Option<Arc<ChangeMap>> {
        self.tracked.changes(id)
    }

    /// Those that are in overlays.
    pub(crate) fn away(&self) -> &Away {
        &self.away
    }

    /// Those whose changes are tracked.
    pub(crate) fn tracked(&self) -> &Tracked {
        &self.tracked
    }

    /// The image of disk `id`, if the disk has moved to it since the machine was built.
    pub(crate) fn moved(&self, id: &str) -> Option<Image> {
        let disk = self.find(id).filter(|disk| disk.has_moved);
        disk.map(|disk| disk.image.clone())
    }

    /// The image of disk `id`.
    pub(crate) fn image(&self, id: &str) -> Option<Image> {
        self.find(id).map(|disk| disk.image.clone())
    }

    /// That all of each disk is here.
    ///
    /// # Errors
    /// `disk.in-part`.
    pub(crate) fn all_here(&self) -> Result<(), Observation> {
        match self.iter().find(|disk| disk.is_in_part()) {
            None => Ok(()),
            Some(disk) => {
                let message = format!(
                    "a part of disk {} is not here yet: it moves on when that has come",
                    disk.id
                );
                Err(Observation::new(Side::Source, "disk.in-part", message))
            }
        }
    }

    /// Each disk, in the order of their slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Arc<Disk>> + use<> {
        let all: Vec<_> = self.all().clone();
        all.into_iter()
    }

    /// The exclusive opens of those that are block devices.
    pub(crate) fn exclusive_opens(&self) -> &ExclusiveOpens {
        &self.exclusive_opens
    }

    /// Where they lie; `None` where there are none.
    pub(crate) fn places(&self) -> Option<DiskPlaces> {
        let all = self.all();
        let places = all
            .iter()
            .map(|disk| DiskPlace::of(&disk.id, &disk.image.file().identity()));
        (!all.is_empty()).then(|| DiskPlaces {
            host: self.host.clone(),
            holds: self.exclusive_opens.name().map(str::to_owned),
            disks: places.collect(),
        })
    }

    /// Disks of which only their content can tell whether they are the guest's.
    pub(crate) fn doubtful(&self) -> Vec<String> {
        let doubtful = self.iter().filter(|disk| disk.doubtful);
        doubtful.map(|disk| disk.id.clone()).collect()
    }

    /// Reads what is needed of images that the source has flushed, while it may still take them back: changes nothing.
    ///
    /// # Errors
    /// When one cannot be read, or is not as the source leaves it.
    pub(crate) fn take_over(&self) -> Result<(), MachineError> {
        self.iter().try_for_each(|disk| {
            let taken = disk.image.take_over();
            taken.map_err(|source| MachineError::Disk {
                id: disk.id.clone(),
                path: disk.image.file().path().to_owned(),
                source,
            })
        })
    }

    /// Makes the images as any others: nobody else writes them any more.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub(crate) fn begin_use(&self) -> Result<(), MachineError> {
        self.iter().try_for_each(|disk| {
            let begun = disk.image.begin_use();
            begun.map_err(|source| MachineError::Claim {
                id: disk.id.clone(),
                source,
            })
        })
    }

    /// Samples of the content of the disks `of`, those that are not here aside, while the guest stands
    /// still.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(crate) fn samples(&self, of: &[String]) -> Result<String, MachineError> {
        let asked = self.iter().filter(|disk| of.contains(&disk.id));
        let asked = asked.map(|disk| {
            let (image, last) = (disk.sampled()?, disk.image.file().last_writes());
            Ok((disk.id.clone(), image, last))
        });
        let asked = asked.collect::<Result<Vec<_>, MachineError>>()?;
        let samples = DiskSamples::take(asked).map_err(|e| MachineError::Samples(Box::new(e)))?;
        serde_json::to_string(&samples).map_err(|e| MachineError::Samples(Box::new(e)))
    }

    /// Checks that the disks that were in doubt hold what the source's do.
    ///
    /// # Errors
    /// When one does not, or it cannot be told.
    pub(crate) fn check_samples(&self, samples: Option<&str>) -> Result<(), MachineError> {
        let bad = |why: &str| MachineError::Samples(why.into());
        let doubtful: Vec<Arc<Disk>> = self.iter().filter(|disk| disk.doubtful).collect();
        if doubtful.is_empty() {
            return Ok(());
        }
        let text = samples.ok_or_else(|| bad("the source sent none"))?;
        if text.len() > MAX_SAMPLES {
            return Err(bad("they are too long"));
        }
        let samples: DiskSamples =
            serde_json::from_str(text).map_err(|e| MachineError::Samples(Box::new(e)))?;
        let mut asked = Vec::with_capacity(doubtful.len());
        for disk in &doubtful {
            let sample = samples.of(&disk.id).ok_or_else(|| bad("one is missing"))?;
            asked.push((sample, disk.sampled()?));
        }
        let differences = samples
            .differences(asked)
            .map_err(|e| MachineError::Samples(Box::new(e)))?;
        for (disk, difference) in doubtful.iter().zip(differences) {
            if let Some(offset) = difference {
                return Err(MachineError::AnotherContent {
                    id: disk.id.clone(),
                    path: disk.image.file().path().to_owned(),
                    offset,
                });
            }
        }
        tracing::info!(
            disks = doubtful.len(),
            "disks in doubt hold what the guest's do"
        );
        Ok(())
    }

    /// Block devices that nobody is kept from mounting, because the source did not pass its exclusive open on.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = Observation> + use<> {
        let not_exclusive = self.iter().filter(|disk| disk.not_exclusive);
        not_exclusive.map(|disk| {
            let (id, path): (_, &Path) = (&disk.id, disk.image.file().path());
            let message = format!(
                "the hold on disk {id} at {} could not be passed on: nobody is kept from mounting it",
                path.display()
            );
            Observation::new(Side::Destination, "disk.hold", message)
        })
    }
}

/// Reads what a peer tells of where disks lie, and of what they hold, for whoever tries it with anything.
pub(crate) fn told_of_disks(text: &str) {
    if let Ok(places) = serde_json::from_str::<DiskPlaces>(text) {
        for place in &places.disks {
            let found = place.identity();
            for owner in [true, false] {
                places::judge(
                    &place.id,
                    &found,
                    owner,
                    Some(&places),
                    places.host.as_deref(),
                );
                places::judge(&place.id, &found, owner, Some(&places), None);
            }
        }
    }
    if let Ok(samples) = serde_json::from_str::<DiskSamples>(text) {
        let _ = samples.of("data");
    }
}

#[cfg(test)]
mod tests;
