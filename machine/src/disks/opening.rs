//! How disks are opened and claimed, by an owner or a successor, and what is looked at before.

use std::io;
use std::path::Path;
use std::sync::Arc;

use block::image::{Format, Image};
use block::{Access, BlockDevice, ExclusiveOpen};
use migration::journal::FileJournal;

use crate::build::spec::DiskAccess;
use crate::debug;
use crate::disks::disk::{Disk, first_stack, open_direct};
use crate::disks::exclusive_opens;
use crate::disks::in_part::{self, Comes, Lack};
use crate::disks::marks;
use crate::disks::pivots::Current;
use crate::disks::places::{self, DiskPlaces, Verdict};
use crate::disks::seal::Seal;
use crate::disks::source::{DiskClaim, DiskOwner, DiskSource};
use crate::error::MachineError;
use crate::opener;

fn open_image(disk: &DiskSource, claim: DiskClaim<'_>) -> Result<Image, MachineError> {
    let access = match (disk.access, disk.owner) {
        // What comes in is written, whatever the guest may.
        (DiskAccess::ReadWrite, _) | (_, DiskOwner::Here | DiskOwner::HereInPart) => {
            Access::ReadWrite
        }
        (DiskAccess::ReadOnly, DiskOwner::AsTheMachine) => Access::ReadOnly,
    };
    let image = disk
        .debug
        .opening(&disk.id, &disk.path)
        .and_then(|()| match (disk.owner, claim) {
            // What comes in is of no use in the page cache. A last page that is short needs it.
            (DiskOwner::Here | DiskOwner::HereInPart, _) if disk.has_whole_pages() => {
                Image::open_beside_owner(&disk.path, access, disk.format, &disk.backing)
            }
            (_, DiskClaim::Owner) => {
                Image::open(&disk.path, access, disk.format, disk.content, &disk.backing)
            }
            (_, DiskClaim::Successor(_)) => {
                Image::open_beside_owner(&disk.path, access, disk.format, &disk.backing)
            }
        })
        .and_then(|image| open_direct(&image, disk.cache).map(|()| image))
        .map_err(cannot_use(disk))?;
    match disk.expected_size {
        Some(expected) if expected != image.device().size() => Err(MachineError::DiskSize {
            id: disk.id.clone(),
            path: disk.path.clone(),
            expected,
            found: image.device().size(),
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
    image: &Image,
    told: Option<&DiskPlaces>,
    here: Option<&str>,
) -> Result<bool, MachineError> {
    let owner = image.file().has_owner().map_err(cannot_use(disk))?;
    match places::judge(&disk.id, &image.file().identity(), owner, told, here) {
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
        match &told {
            Some(told) => {
                let here = debug::host();
                is_doubtful(&disk, &image, told.as_ref(), here.as_deref())?;
            }
            None => check_not_moved(&disk, &image)?,
        }
        Ok(image.device().size())
    })
}

/// Checks that the guest whose disk the image was is not elsewhere, as far as its marks tell.
///
/// # Errors
/// [`MachineError::StaleDisk`] when it is, or may be; [`MachineError::DiskInPart`] when a part of it may be.
fn check_not_moved(disk: &DiskSource, image: &Image) -> Result<(), MachineError> {
    if disk.owner == DiskOwner::HereInPart {
        // It says that its guest is not here yet.
        return Ok(());
    }
    if disk.owner == DiskOwner::AsTheMachine && marks::is_in_part(image.file()) {
        // Nobody can want it without what it lacks, which would be zeroes.
        return match goes_on(disk) {
            Some(folder) => match marks::why_left(image.file(), &journal_in(folder)?) {
                None => Ok(()),
                // Its guest has gone on since, and what it lacks is not its own any more.
                Some(why) => Err(MachineError::StaleDisk {
                    id: disk.id.clone(),
                    path: disk.path.clone(),
                    why,
                }),
            },
            None => Err(MachineError::DiskInPart {
                id: disk.id.clone(),
                path: disk.path.clone(),
            }),
        };
    }
    let folder = match (&disk.journal, disk.access) {
        (Some(folder), DiskAccess::ReadWrite) => folder,
        // Whoever only reads it does no harm.
        (Some(_), DiskAccess::ReadOnly) | (None, _) => return Ok(()),
    };
    let why = marks::why_stale(image.file(), folder)
        .map_err(|e| MachineError::Build("open the journal of migrations", io::Error::other(e)))?;
    why.map_or(Ok(()), |why| {
        Err(MachineError::StaleDisk {
            id: disk.id.clone(),
            path: disk.path.clone(),
            why,
        })
    })
}

/// The journal that tells where the rest of a disk is of which the image holds a part alone, if its guest may run without that:
/// it has to be known where the disk is, and what comes is written.
fn goes_on(disk: &DiskSource) -> Option<&Path> {
    let may = disk.access == DiskAccess::ReadWrite;
    disk.journal.as_deref().filter(|_| may)
}

fn journal_in(folder: &Path) -> Result<FileJournal, MachineError> {
    FileJournal::open(folder)
        .map_err(|e| MachineError::Build("open the journal of migrations", io::Error::other(e)))
}

/// What the image lacks of its disk, which is claimed: `None` if it is the disk by itself.
fn lack_of(disk: &DiskSource, image: &Image) -> Result<Option<Lack>, MachineError> {
    let comes = match disk.owner {
        DiskOwner::AsTheMachine => Comes::Here,
        DiskOwner::HereInPart => Comes::Later,
        DiskOwner::Here => return Ok(None),
    };
    if disk.access != DiskAccess::ReadWrite {
        return Ok(None);
    }
    let Some(journal) = goes_on(disk).filter(|_| marks::is_in_part(image.file())) else {
        in_part::remove_whole_map(image, &disk.path);
        return Ok(None);
    };
    let journal = journal_in(journal)?;
    let lack = in_part::lack_of(image, &disk.path, comes, &journal, &disk.backing);
    lack.map(Some).map_err(|why| MachineError::DiskRest {
        id: disk.id.clone(),
        source: Box::new(why),
    })
}

/// What a successor was told, as its own.
pub(super) fn told(claim: DiskClaim<'_>) -> Option<Option<DiskPlaces>> {
    match claim {
        DiskClaim::Owner => None,
        DiskClaim::Successor(told) => Some(told.cloned()),
    }
}

pub(super) fn claim_as(told: Option<&Option<DiskPlaces>>) -> DiskClaim<'_> {
    match told {
        None => DiskClaim::Owner,
        Some(told) => DiskClaim::Successor(told.as_ref()),
    }
}

/// Opens and claims one disk, with what its image lacks.
pub(super) fn open(
    disk: &DiskSource,
    claim: DiskClaim<'_>,
    host: Option<&str>,
) -> Result<(Disk, Option<Lack>), MachineError> {
    let failed = cannot_use(disk);
    let mut lack = None;
    let image = open_image(disk, claim)?;
    let current = Current::new(first_stack(&disk.id, &disk.debug, disk.format, &image));
    let (owned, exclusive, doubtful) = match claim {
        DiskClaim::Owner => {
            let claim = image.claim().map_err(&failed)?;
            let exclusive = image.open_exclusively().map_err(&failed)?;
            // Under the claim: a guest that was here until now may have left in between.
            check_not_moved(disk, &image)?;
            if disk.format == Format::Qcow2 || disk.owner == DiskOwner::AsTheMachine {
                image.begin_use().map_err(&failed)?;
            }
            lack = lack_of(disk, &image)?;
            if lack.is_none()
                && disk.owner == DiskOwner::AsTheMachine
                && disk.access == DiskAccess::ReadWrite
            {
                // What was left of a migration that failed, or of a guest whose disk it is no longer.
                marks::remove(image.file()).map_err(&failed)?;
            }
            (claim, exclusive, false)
        }
        DiskClaim::Successor(told) => {
            let claim = image.claim_as_successor().map_err(&failed)?;
            let doubtful = is_doubtful(disk, &image, told, host)?;
            if !told.is_some_and(|told| told.is_on(host)) {
                // Whoever read it here before may have left blocks behind that are old by now.
                image.file().forget_cached().map_err(&failed)?;
            }
            (claim, None, doubtful)
        }
    };
    let mut opened = Disk {
        id: disk.id.clone(),
        claim: Arc::new(owned),
        exclusive,
        image,
        doubtful,
        not_exclusive: false,
        has_moved: false,
        debug: disk.debug.clone(),
        cache: disk.cache,
        _keeps: None,
        current,
        served: Arc::default(),
        seal: Seal::default(),
        coming: None,
    };
    if let DiskClaim::Successor(told) = claim {
        let source = told.filter(|told| told.is_on(host));
        match opened.image.open_exclusively() {
            Ok(exclusive) => opened.exclusive = exclusive,
            Err(error @ block::Error::OpenedExclusively { .. }) => {
                // By the source, which alone can pass it on, or by somebody else. A source whose disk has moved to the device
                // may not be able to.
                let source = source.ok_or_else(|| failed(error))?;
                let device = opened.image.file().identity().device;
                let holds = source.holds.as_deref();
                opened.exclusive = holds.and_then(|name| passed_on(name, device));
                opened.not_exclusive = opened.exclusive.is_none();
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok((opened, lack))
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
