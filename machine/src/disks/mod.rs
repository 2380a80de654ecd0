//! The disks of a machine: how their images are opened and claimed, by an owner or a successor, and
//! whether a successor has the right ones.

pub(crate) mod claims;
pub(crate) mod exclusive_opens;
pub(crate) mod places;
mod samples;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::control_file::ControlFile;
use block::{Access, BlockDevice, Claim, Content, ExclusiveOpen, RawImage};
use migration::observation::{Observation, Side};
use migration::wire::kind::MAX_SAMPLES;

use crate::build::spec::DiskAccess;
use crate::debug;
use crate::disks::exclusive_opens::ExclusiveOpens;
use crate::disks::places::{DiskPlace, DiskPlaces, Verdict};
use crate::disks::samples::DiskSamples;
use crate::error::MachineError;
use crate::opener;

/// A disk image and what is expected of it.
#[derive(Debug, Clone)]
pub struct DiskSource {
    /// Identity of the disk.
    pub id: String,
    /// Path of the image on this host.
    pub path: PathBuf,
    /// What the guest may do with it.
    pub access: DiskAccess,
    /// Whether another format than raw is recognised, and refused.
    pub content: Content,
    /// Size that it must have, when the guest knows it already.
    pub expected_size: Option<u64>,
    /// What orders faults of it, for tests of this program.
    pub faults: Option<ControlFile>,
}

/// As whom a machine claims its disks.
#[derive(Debug, Clone, Copy)]
pub enum DiskClaim<'a> {
    /// It runs from its beginning: nobody else may hold them.
    Owner,
    /// It comes in: the source still owns them and has offered the succession. What the source tells of
    /// where they lie, if it does.
    Successor(Option<&'a DiskPlaces>),
}

/// A disk of a machine, opened and claimed.
pub(crate) struct Disk {
    pub(crate) id: String,
    pub(crate) claim: Arc<Claim>,
    image: Arc<RawImage>,
    exclusive: Option<ExclusiveOpen>,
    /// Only what it holds can tell whether it is the guest's.
    doubtful: bool,
    /// It is a block device, and its owner did not pass its exclusive open on.
    not_exclusive: bool,
    faults: Option<ControlFile>,
}

impl Disk {
    /// The image as a device uses it.
    pub(crate) fn device(&self) -> Arc<dyn BlockDevice> {
        let image = self.image.clone();
        match &self.faults {
            Some(faults) => faults.over(&self.id, image),
            None => image,
        }
    }
}

/// All disks of a machine.
#[derive(Default)]
pub(crate) struct Disks {
    all: Vec<Disk>,
    /// Which host this is, see [`DiskPlaces`].
    host: Option<String>,
    exclusive_opens: ExclusiveOpens,
}

fn open_image(disk: &DiskSource, claim: DiskClaim<'_>) -> Result<RawImage, MachineError> {
    let access = match disk.access {
        DiskAccess::ReadWrite => Access::ReadWrite,
        DiskAccess::ReadOnly => Access::ReadOnly,
    };
    let faults = disk.faults.as_ref();
    let image = faults
        .map_or(Ok(()), |faults| faults.opening(&disk.id, &disk.path))
        .and_then(|()| match claim {
            DiskClaim::Owner => RawImage::open(&disk.path, access, disk.content),
            DiskClaim::Successor(_) => RawImage::open_beside_owner(&disk.path, access),
        })
        .map_err(cannot_use(disk))?;
    match disk.expected_size {
        Some(expected) if expected != image.size() => Err(MachineError::DiskSize {
            id: disk.id.clone(),
            path: disk.path.clone(),
            expected,
            found: image.size(),
        }),
        _ => Ok(image),
    }
}

fn cannot_use(disk: &DiskSource) -> impl Fn(block::Error) -> MachineError {
    let (id, path) = (disk.id.clone(), disk.path.clone());
    move |source| MachineError::Disk {
        id: id.clone(),
        path: path.clone(),
        source,
    }
}

/// Whether the image, opened beside its owner, is the guest's disk; `true` where only its content tells.
fn is_doubtful(
    disk: &DiskSource,
    image: &RawImage,
    told: Option<&DiskPlaces>,
    here: Option<&str>,
) -> Result<bool, MachineError> {
    let owner = image.has_owner().map_err(cannot_use(disk))?;
    match places::judge(&disk.id, &image.identity(), owner, told, here) {
        Verdict::Same => Ok(false),
        Verdict::Doubtful => Ok(true),
        Verdict::Another(why) => Err(MachineError::AnotherDisk {
            id: disk.id.clone(),
            path: disk.path.clone(),
            why,
        }),
    }
}

/// Checks that a disk can be opened and is the expected one; claims nothing. Its size in bytes.
///
/// # Errors
/// When it cannot be opened as asked, has another size, or is not the disk that a successor was told of.
pub(crate) fn check(disk: &DiskSource, claim: DiskClaim<'_>) -> Result<u64, MachineError> {
    let (disk, told) = (disk.clone(), told(claim));
    opener::outside(move || {
        let claim = claim_as(told.as_ref());
        let image = open_image(&disk, claim)?;
        if let Some(told) = &told {
            let here = debug::host();
            is_doubtful(&disk, &image, told.as_ref(), here.as_deref())?;
        }
        Ok(image.size())
    })
}

/// What a successor was told, as its own.
fn told(claim: DiskClaim<'_>) -> Option<Option<DiskPlaces>> {
    match claim {
        DiskClaim::Owner => None,
        DiskClaim::Successor(told) => Some(told.cloned()),
    }
}

fn claim_as(told: Option<&Option<DiskPlaces>>) -> DiskClaim<'_> {
    match told {
        None => DiskClaim::Owner,
        Some(told) => DiskClaim::Successor(told.as_ref()),
    }
}

/// Opens and claims one disk.
fn open(disk: &DiskSource, claim: DiskClaim<'_>, host: Option<&str>) -> Result<Disk, MachineError> {
    let failed = cannot_use(disk);
    let image = open_image(disk, claim)?;
    let mut opened = match claim {
        DiskClaim::Owner => Disk {
            id: disk.id.clone(),
            claim: Arc::new(image.claim().map_err(&failed)?),
            exclusive: image.open_exclusively().map_err(&failed)?,
            image: Arc::new(image),
            doubtful: false,
            not_exclusive: false,
            faults: disk.faults.clone(),
        },
        DiskClaim::Successor(told) => {
            let claim = image.claim_as_successor().map_err(&failed)?;
            let doubtful = is_doubtful(disk, &image, told, host)?;
            if !told.is_some_and(|told| told.is_on(host)) {
                // Whoever read it here before may have left blocks behind that are old by now.
                image.forget_cached().map_err(&failed)?;
            }
            Disk {
                id: disk.id.clone(),
                claim: Arc::new(claim),
                exclusive: None,
                image: Arc::new(image),
                doubtful,
                not_exclusive: false,
                faults: disk.faults.clone(),
            }
        }
    };
    if let DiskClaim::Successor(told) = claim {
        let source = told.filter(|told| told.is_on(host));
        match opened.image.open_exclusively() {
            Ok(exclusive) => opened.exclusive = exclusive,
            Err(error @ block::Error::OpenedExclusively { .. }) => {
                // By the source, which alone can pass it on, or by somebody else.
                let name = source.and_then(|source| source.holds.as_deref());
                let name = name.ok_or_else(|| failed(error))?;
                opened.exclusive = passed_on(name, opened.image.identity().device);
                opened.not_exclusive = opened.exclusive.is_none();
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(opened)
}

/// The source's exclusive open of a block device.
fn passed_on(name: &str, device: u64) -> Option<ExclusiveOpen> {
    match exclusive_opens::ask(name) {
        Ok(passed) => {
            let mut passed = passed.into_iter();
            passed.find_map(|copy| ExclusiveOpen::from_passed(copy, device).ok())
        }
        Err(error) => {
            tracing::warn!(%error, "the source cannot be asked for its holds on block devices");
            None
        }
    }
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
        let (mut all, host) = opener::outside(move || {
            let host = debug::host();
            let claim = claim_as(told.as_ref());
            let opened = sources
                .iter()
                .map(|disk| open(disk, claim, host.as_deref()));
            let all = opened.collect::<Result<Vec<Disk>, MachineError>>()?;
            Ok::<_, MachineError>((all, host))
        })?;
        let opened = all.iter_mut().filter_map(|disk| disk.exclusive.take());
        let exclusive_opens = ExclusiveOpens::new(opened.collect())
            .map_err(|e| MachineError::Build("be ready to pass on block devices", e))?;
        Ok(Self {
            all,
            host,
            exclusive_opens,
        })
    }

    /// Each disk, in the order of their slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Disk> {
        self.all.iter()
    }

    /// The exclusive opens of those that are block devices.
    pub(crate) fn exclusive_opens(&self) -> &ExclusiveOpens {
        &self.exclusive_opens
    }

    /// Where they lie; `None` where there are none.
    pub(crate) fn places(&self) -> Option<DiskPlaces> {
        let places = self
            .all
            .iter()
            .map(|disk| DiskPlace::of(&disk.id, &disk.image.identity()));
        (!self.all.is_empty()).then(|| DiskPlaces {
            host: self.host.clone(),
            holds: self.exclusive_opens.name().map(str::to_owned),
            disks: places.collect(),
        })
    }

    /// Disks of which only their content can tell whether they are the guest's.
    pub(crate) fn doubtful(&self) -> Vec<String> {
        let doubtful = self.all.iter().filter(|disk| disk.doubtful);
        doubtful.map(|disk| disk.id.clone()).collect()
    }

    /// Makes the images as any others: nobody else writes them any more.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub(crate) fn begin_use(&self) -> Result<(), MachineError> {
        self.all.iter().try_for_each(|disk| {
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
        let asked = self.all.iter().filter(|disk| of.contains(&disk.id));
        let asked = asked.map(|disk| (disk.id.clone(), disk.device(), disk.image.last_writes()));
        let samples =
            DiskSamples::take(asked.collect()).map_err(|e| MachineError::Samples(Box::new(e)))?;
        serde_json::to_string(&samples).map_err(|e| MachineError::Samples(Box::new(e)))
    }

    /// Checks that the disks that were in doubt hold what the source's do.
    ///
    /// # Errors
    /// When one does not, or it cannot be told.
    pub(crate) fn check_samples(&self, samples: Option<&str>) -> Result<(), MachineError> {
        let bad = |why: &str| MachineError::Samples(why.into());
        let doubtful: Vec<&Disk> = self.all.iter().filter(|disk| disk.doubtful).collect();
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
            asked.push((sample, disk.device()));
        }
        let differences = samples
            .differences(asked)
            .map_err(|e| MachineError::Samples(Box::new(e)))?;
        for (disk, difference) in doubtful.iter().zip(differences) {
            if let Some(offset) = difference {
                return Err(MachineError::AnotherContent {
                    id: disk.id.clone(),
                    path: disk.image.path().to_owned(),
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
    pub(crate) fn warnings(&self) -> impl Iterator<Item = Observation> {
        let not_exclusive = self.all.iter().filter(|disk| disk.not_exclusive);
        not_exclusive.map(|disk| {
            let (id, path): (_, &Path) = (&disk.id, disk.image.path());
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
mod tests {
    use std::fs::{self, File};

    use super::*;

    const SIZE: u64 = 64 << 10;

    /// A disk that comes from a share of another machine, on which locks do not travel.
    fn in_doubt(path: &Path) -> (DiskSource, DiskPlaces) {
        File::create(path).unwrap().set_len(SIZE).unwrap();
        let source = DiskSource {
            id: "data".into(),
            path: path.to_owned(),
            access: DiskAccess::ReadWrite,
            content: Content::Raw,
            expected_size: Some(SIZE),
            faults: None,
        };
        let place = DiskPlace {
            id: "data".into(),
            device: 60,
            inode: 12,
            below: None,
            is_local: false,
        };
        let told = DiskPlaces {
            host: Some("another".into()),
            holds: None,
            disks: vec![place],
        };
        (source, told)
    }

    #[test]
    fn a_disk_in_doubt_is_taken_only_with_the_samples_of_its_source() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let (source, told) = in_doubt(&path);
        let disks = Disks::open(&[source], DiskClaim::Successor(Some(&told))).unwrap();
        assert_eq!(disks.doubtful(), ["data"]);
        let refused = |samples: Option<&str>| disks.check_samples(samples).unwrap_err().id();
        assert_eq!(refused(None), "disk.samples");
        assert_eq!(refused(Some("{}")), "disk.samples");
        // Of disks that are not in doubt, or not there.
        let none = disks.samples(&["other".into()]).unwrap();
        assert_eq!(refused(Some(&none)), "disk.samples");
        let samples = disks.samples(&["data".into()]).unwrap();
        disks.check_samples(Some(&samples)).unwrap();
        let outside = samples.replacen("[0,", "[1099511627776,", 1);
        assert_ne!(outside, samples);
        assert_eq!(refused(Some(&outside)), "disk.samples");
        assert_eq!(refused(Some(&" ".repeat(MAX_SAMPLES + 1))), "disk.samples");
        fs::write(&path, vec![1; SIZE as usize]).unwrap();
        assert_eq!(refused(Some(&samples)), "disk.content");
        disks.begin_use().unwrap();
    }

    #[test]
    fn a_disk_that_a_successor_is_sure_of_needs_no_samples() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let (source, _) = in_doubt(&path);
        let owner = Disks::open(std::slice::from_ref(&source), DiskClaim::Owner).unwrap();
        let told = owner.places().unwrap();
        check(&source, DiskClaim::Successor(Some(&told))).unwrap();
        owner.all[0].claim.offer_successor().unwrap();
        let successor = Disks::open(&[source], DiskClaim::Successor(Some(&told))).unwrap();
        assert!(successor.doubtful().is_empty());
        successor.check_samples(None).unwrap();
    }
}
