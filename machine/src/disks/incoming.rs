//! Disks whose content comes in with their guest: where they are put, and what is removed of them if it does not come.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use block::image::qcow2::BackingRules;
use block::image::qcow2::create::{self, DEFAULT_CLUSTER_BITS, NewImage};
use block::image::{Format, Image};
use block::{Access, RawImage};
use control::runtime_dir::check_name;
use migration::MigrationId;
use migration::address::{Address, AddressError};
use migration::disk_modes::DiskFormat;
use migration::endpoint::Endpoint;
use migration::journal::{FileJournal, Journal};
use migration::observation::{Observation, Side};
use migration::vm::{Behind, MOST_BEHIND, Served, VmResult, VolumeOffer, Wish};

use crate::build::spec::{DiskSpec, MachineSpec};
use crate::config::{DiskTarget, IncomingDisk};
use crate::disks::in_part::{self, ServedBy};
use crate::disks::marks::{self, Mark};
use crate::disks::unused::{FileId, Unused, left_over, room_in};
use crate::opener;

/// A disk that comes in, and where it is put.
#[derive(Debug, Clone)]
pub(crate) struct Placement {
    pub(crate) id: String,
    pub(crate) path: PathBuf,
    pub(super) target: DiskTarget,
    pub(crate) format: Format,
    size: u64,
    /// Bytes that are going to be stored.
    needs: u64,
    /// What was made there for another guest, which did not come, goes first; how many bytes that gives back.
    replaces: Option<u64>,
    /// Who serves its content, if that does not come with the guest.
    pub(crate) rest: Option<ServedBy>,
}

/// Who says where the disks of an incoming machine lie.
///
/// Whatever path is named is opened with the rights of this process, and the guest reads and writes
/// what is there. See `docs/adr/0004-disk-paths-from-the-source.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskPaths {
    /// The source, unless this host does: only who can reach this host's own sockets can send.
    FromSource,
    /// This host alone: whoever reaches its network can send.
    GivenHere,
}

/// Where this host says that disks are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places {
    pub(crate) named: Vec<IncomingDisk>,
    /// Where those are made that are not named.
    pub(crate) folder: Option<PathBuf>,
}

fn refuse(message: String) -> Observation {
    Observation::new(Side::Destination, "negotiate.disk", message)
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Observation {
    let message = format!("cannot {what} {}", path.display());
    refuse(message).caused_by(Observation::from_error(Side::Destination, "disk.io", error))
}

impl Places {
    /// The place that is named for disk `id`.
    pub(crate) fn of(&self, id: &str) -> Option<&IncomingDisk> {
        self.named.iter().find(|disk| disk.id == id)
    }

    /// Where each disk of guest `name` is put that travels; the others have to be shared.
    ///
    /// # Errors
    /// When a disk that travels has no place, one that is shared is to be made, or a place is named for none.
    pub(crate) fn placements(
        &self,
        name: &str,
        spec: &MachineSpec,
        offered: &[VolumeOffer],
        paths: DiskPaths,
    ) -> Result<Vec<Placement>, Observation> {
        let disk = |id: &str| spec.disks.iter().find(|disk| disk.id == id);
        for IncomingDisk { id, target, .. } in &self.named {
            if disk(id).is_none() {
                return Err(refuse(format!("the guest has no disk {id}")));
            }
            if *target != DiskTarget::Shared && !offered.iter().any(|offer| offer.id == *id) {
                return Err(refuse(format!(
                    "disk {id} does not travel: its source shares it, so say only where it lies here, by \
                     --disk {id}=PATH, or have it travel, by --disks {id}=precopy there"
                )));
            }
        }
        let placed = offered.iter().map(|offer| {
            let disk = disk(&offer.id)
                .filter(|disk| disk.size == offer.size)
                .ok_or_else(|| refuse(format!("the guest has no such disk {}", offer.id)))?;
            self.place(name, disk, offer, paths)
        });
        placed.collect()
    }

    fn place(
        &self,
        name: &str,
        disk: &DiskSpec,
        offer: &VolumeOffer,
        paths: DiskPaths,
    ) -> Result<Placement, Observation> {
        let id = &disk.id;
        let asked = offer.format.map(|format| match format {
            DiskFormat::Raw => Format::Raw,
            DiskFormat::Qcow2 => Format::Qcow2,
        });
        let (path, target, format) = match (self.of(id), &self.folder) {
            (Some(named), _) if named.target != DiskTarget::Shared => {
                let format = agreed_format(id, named.format, asked)?;
                (named.path.clone(), named.target, format)
            }
            (Some(_), _) => {
                return Err(refuse(format!(
                    "disk {id} travels with the guest: say here that it is made, by --disk {id}=PATH,create, or what \
                     it is written over, by --disk {id}=PATH,existing"
                )));
            }
            (None, Some(folder)) => {
                // It becomes a part of a path, and is what a peer says.
                check_name(name)?;
                let format = asked.unwrap_or(Format::Raw);
                let path = folder.join(format!("{name}-{id}.{}", format.name()));
                (path, DiskTarget::Create, format)
            }
            (None, None) => {
                return Err(refuse(format!(
                    "disk {id} travels with the guest, and this host has no place for it: name one here, by --disk \
                     {id}=PATH,create or --disk-dir FOLDER"
                )));
            }
        };
        let rest = match offer.wish {
            Wish::Travels | Wish::MayTravel if !offer.may_leave_rest() => None,
            _ if target == DiskTarget::Existing => {
                return Err(refuse(format!(
                    "disk {id} is fetched when its guest is here, or a rest of it, and what is in an image before could not be told from that: \
                     have it made, by --disk {id}=PATH,create"
                )));
            }
            // Nobody serves it yet where it is only asked whether it would work.
            Wish::OnDemand | Wish::Travels | Wish::MayTravel => offer
                .served
                .as_ref()
                .map(|served| served_by(id, (served, &offer.behind), format, paths))
                .transpose()?,
        };
        Ok(Placement {
            rest,
            id: id.clone(),
            path,
            target,
            format,
            size: offer.size,
            needs: offer.allocated,
            replaces: None,
        })
    }
}

/// Who serves disk `id`, as the map of its image here is to say it.
fn served_by(
    id: &str,
    (served, behind): (&Served, &[Behind]),
    format: Format,
    paths: DiskPaths,
) -> Result<ServedBy, Observation> {
    check_served(id, (&served.at, &served.id), paths)?;
    if behind.len() > MOST_BEHIND {
        return Err(refuse(format!(
            "disk {id} is to be fetched from {} hosts, and {} are the most: have it be whole before it moves on",
            behind.len() + 1,
            MOST_BEHIND + 1
        )));
    }
    for Behind {
        at, id: as_whom, ..
    } in behind
    {
        check_served(id, (at, as_whom), paths)?;
    }
    Ok(ServedBy {
        behind: behind.to_vec(),
        format: format.name().to_owned(),
        served_at: served.at.clone(),
        migration: served.id.clone(),
        secret: served.secret,
        disk: id.to_owned(),
        pull: served.pull,
        on_source_loss: served.on_source_loss,
    })
}

/// That disk `id` can be fetched from who serves it at `at`, as `as_whom`.
fn check_served(
    id: &str,
    (at, as_whom): (&str, &str),
    paths: DiskPaths,
) -> Result<(), Observation> {
    let no_server = |why: &str| refuse(format!("disk {id} cannot be fetched from {at:?}: {why}"));
    let address: Address = at
        .parse()
        .map_err(|e: AddressError| no_server(&e.to_string()))?;
    if paths == DiskPaths::GivenHere && matches!(address, Address::Unix(_)) {
        return Err(no_server(
            "this host listens on the network, where nobody says which sockets it connects to",
        ));
    }
    if Endpoint::numeric(address).is_none() {
        return Err(no_server("it is no address that needs no look-up"));
    }
    if as_whom.parse::<MigrationId>().is_err() {
        return Err(no_server("its identifier is none"));
    }
    Ok(())
}

/// The format that disk `id` gets, of what this host was told and what the source asks for.
fn agreed_format(
    id: &str,
    told: Option<Format>,
    asked: Option<Format>,
) -> Result<Format, Observation> {
    match (told, asked) {
        (Some(told), Some(asked)) if told != asked => Err(refuse(format!(
            "disk {id} is asked for in the format {} by its source, and this host was told to have it in {}: leave one \
             of the two out",
            asked.name(),
            told.name()
        ))),
        (Some(format), _) | (None, Some(format)) => Ok(format),
        (None, None) => Ok(Format::Raw),
    }
}

/// Checks that each can be put where it is to be, as far as that can be told before; nothing is made. What is known of
/// them then. The journal of this host lies in `journal`.
///
/// # Errors
/// When something is in the way, is missing, has another size, or there is too little room.
pub(crate) fn check(placements: &[Placement], journal: PathBuf) -> VmResult<Vec<Placement>> {
    let mut placements = placements.to_vec();
    opener::outside(move || {
        let journal = FileJournal::open(journal)
            .map_err(|e| Observation::from_error(Side::Destination, "migration.journal", &e))?;
        for placement in &mut placements {
            placement.check(&journal)?;
        }
        for (number, placement) in placements.iter().enumerate() {
            // Those that are made in one file system need room together.
            let device = placement.device()?;
            let mut needs = 0;
            for other in &placements[..=number] {
                if other.target == DiskTarget::Create && other.device()? == device {
                    needs += other
                        .needs
                        .saturating_sub(other.replaces.unwrap_or_default());
                }
            }
            placement.check_room(needs)?;
        }
        Ok(placements)
    })
}

impl Placement {
    /// What says of the image that is made that its guest comes by migration `id`.
    pub(crate) fn mark(&self, id: MigrationId, journal: &dyn Journal) -> Mark {
        match self.rest {
            None => Mark::new(id, journal.identity(), None),
            Some(_) => Mark::of_guest_on_demand(id, journal.identity(), None),
        }
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    fn check(&mut self, journal: &dyn Journal) -> VmResult<()> {
        let (id, path) = (&self.id, &self.path);
        let found = fs::symlink_metadata(path);
        match (self.target, found) {
            (DiskTarget::Create, Ok(found)) if left_over(path, journal).is_ok() => {
                self.replaces = Some(found.blocks() * 512);
                Ok(())
            }
            (DiskTarget::Create, Ok(_)) => Err(refuse(format!(
                "disk {id} cannot be made at {}: something is there already; if its content is of no more use, say \
                 --disk {id}=PATH,existing",
                path.display()
            ))),
            (DiskTarget::Create, Err(e)) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            (_, Err(e)) => Err(failed("look at", path, &e)),
            (_, Ok(_)) => {
                let image = self.open()?;
                if let Some(why) = marks::why_needed(image.file(), journal) {
                    let at = path.display();
                    return Err(refuse(format!("{at} cannot be written over: {why}")));
                }
                match image.device().size() {
                    size if size == self.size => Ok(()),
                    size => Err(refuse(format!(
                        "disk {id} has {} bytes, and {} has {size}",
                        self.size,
                        path.display()
                    ))),
                }
            }
        }
    }

    fn open(&self) -> VmResult<Image> {
        let rules = BackingRules::default();
        Image::open_beside_owner(&self.path, Access::ReadWrite, self.format, &rules).map_err(|e| {
            let message = format!("disk {} cannot be put at {}", self.id, self.path.display());
            refuse(message).caused_by(Observation::from_error(Side::Destination, "disk.io", &e))
        })
    }

    fn device(&self) -> VmResult<u64> {
        let metadata = fs::metadata(self.folder());
        let metadata = metadata.map_err(|e| failed("look at", self.folder(), &e))?;
        Ok(metadata.dev())
    }

    /// Whether there is room for `needs` bytes where it is made.
    fn check_room(&self, needs: u64) -> VmResult<()> {
        if self.target == DiskTarget::Existing {
            // What is there has its room.
            return Ok(());
        }
        let free =
            room_in(self.folder()).map_err(|e| failed("look for room in", self.folder(), &e))?;
        if free < needs {
            return Err(refuse(format!(
                "disk {} does not fit: {} has {free} bytes left, and {needs} are needed",
                self.id,
                self.folder().display()
            )));
        }
        if free < self.size {
            tracing::warn!(
                disk = %self.id, free, size = self.size,
                "there is room for what the disk holds, and not for all that it can come to hold"
            );
        }
        Ok(())
    }
}

/// Images that were made for a guest that is coming. Dropped, they stay: nobody may know yet whether it came.
#[derive(Debug, Default)]
pub(crate) struct Made {
    files: Vec<(PathBuf, FileId)>,
}

impl Made {
    /// Makes each of `placements` that is to be made, for the guest of migration `id`.
    ///
    /// # Errors
    /// When one cannot be made; none is left then.
    pub(crate) fn make(
        placements: &[Placement],
        id: MigrationId,
        journal: FileJournal,
    ) -> VmResult<Self> {
        let placements = placements.to_vec();
        opener::outside(move || {
            let mut made = Self::default();
            let to_make = placements
                .iter()
                .filter(|placement| placement.target == DiskTarget::Create);
            for placement in to_make {
                if let Err(why) = made.create(placement, id, &journal) {
                    made.remove();
                    return Err(why);
                }
            }
            Ok(made)
        })
    }

    fn create(
        &mut self,
        placement: &Placement,
        id: MigrationId,
        journal: &dyn Journal,
    ) -> VmResult<()> {
        let path = &placement.path;
        let cannot_make = |e: &io::Error| failed("make", path, e);
        let marked = self.create_image(placement, &placement.mark(id, journal), journal);
        let is_marked = marked.map_err(|e| cannot_make(&e))?;
        if let Some(rest) = &placement.rest {
            if !is_marked {
                // After a crash nobody could tell it from a whole one.
                return Err(refuse(format!(
                    "disk {} is fetched when its guest is here, and the storage of {} has no marks (extended attributes of \
                     users) by which it is known until it is whole",
                    placement.id,
                    path.display()
                )));
            }
            in_part::begin_arriving(path, rest, id, placement.size)?;
        }
        // So that its name is there when the guest is.
        let synced = File::open(placement.folder()).and_then(|folder| folder.sync_all());
        synced.map_err(|e| cannot_make(&e))
    }

    /// Makes an image and marks it; `false` where the storage has no marks.
    fn create_image(
        &mut self,
        placement: &Placement,
        mark: &Mark,
        journal: &dyn Journal,
    ) -> io::Result<bool> {
        let path = &placement.path;
        if placement.replaces.is_some() {
            // Not as was found before: somebody else may have replaced it meanwhile.
            left_over(path, journal)?.remove(path)?;
            in_part::remove_map(path);
        }
        let made = match placement.format {
            Format::Raw => create::create_raw(path, placement.size),
            Format::Qcow2 => {
                let image = NewImage {
                    size: placement.size,
                    cluster_bits: DEFAULT_CLUSTER_BITS,
                    backing: None,
                };
                create::create(path, &image)
            }
        };
        made.map_err(io::Error::other)?;
        self.files.push((path.clone(), FileId::of(path)?));
        let image = placement.open().map_err(io::Error::other)?;
        let is_marked = mark.set_arriving(image.file()).map_err(io::Error::other)?;
        if !is_marked {
            tracing::debug!(
                "the storage has no marks: what is left after a crash has to be removed by hand"
            );
        }
        Ok(is_marked)
    }

    /// Whether `image`, which was opened by its name, is the one that was made, if one was.
    pub(crate) fn is_still(&self, placement: &Placement, image: &RawImage) -> bool {
        let made = self.files.iter().find(|(path, _)| *path == placement.path);
        made.is_none_or(|(_, file)| *file == FileId::of_image(image))
    }

    /// The guest never was here and does not come: removes those that nobody has open any more.
    pub(crate) fn discard(self) {
        if self.files.is_empty() {
            return;
        }
        let removed = opener::outside(move || {
            self.remove();
            Ok::<_, Observation>(())
        });
        if let Err(why) = removed {
            tracing::warn!("disks of a guest that did not come are left: {why}");
        }
    }

    fn remove(self) {
        for (path, file) in self.files {
            let removed = match Unused::open(&path) {
                Ok(unused) if !unused.is(file) => continue,
                Ok(unused) => unused
                    .remove(&path)
                    .inspect(|()| in_part::remove_map(&path)),
                Err(error) => Err(io::Error::other(error)),
            };
            if let Err(error) = removed {
                tracing::warn!(%error, path = %path.display(), "a disk of a guest that did not come is left");
            }
        }
    }
}
