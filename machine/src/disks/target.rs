//! Images to which disks of running VMs are moved, for the one who asks for that: the process of the VM can open none.
//!
//! An image is there under its name only with the mark that says what it is being made for: so whatever is killed at any
//! moment, nobody takes it for a disk that it is not. What is removed is claimed first, as the VM does before it begins.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use block::image::qcow2::BackingRules;
use block::image::qcow2::create::{self, DEFAULT_CLUSTER_BITS, NewImage};
use block::image::{Format, Image};
use block::{Access, Below, BlockDevice, Content, ExclusiveOpen, ImageKind, RawImage, Reach};
use migration::MigrationId;
use migration::journal::{Handover, Journal};
use migration::observation::{Observation, Side};

pub use crate::disks::marks::Overlays;
use crate::disks::marks::{self, Mark, Part};
use crate::disks::unused::{Unused, left_over, room_in};

/// What is moved.
#[derive(Debug, Clone)]
pub struct Wanted<'w> {
    /// Absolute path of the image.
    pub path: &'w Path,
    /// Its format.
    pub format: Format,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes that it holds.
    pub needs: u64,
    /// The move.
    pub id: MigrationId,
    /// The images of the move, if it is one by way of overlays.
    pub overlays: Option<&'w Overlays>,
}

impl Wanted<'_> {
    fn mark(&self, journal: &dyn Journal) -> Mark {
        let path = self.path.display().to_string();
        let mark = Mark::of_disk_move(self.id, journal.identity(), &path);
        match self.overlays {
            Some(overlays) => mark.in_course(overlays, Part::New),
            None => mark,
        }
    }
}

/// An image that a disk is to move to.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    id: MigrationId,
    file: File,
    /// The same past the page cache, where its storage can do without.
    direct: Option<File>,
    device: Option<Device>,
    reach: Reach,
    made: Made,
    mark: Mark,
}

/// What is open beside a block device.
#[derive(Debug)]
pub struct Device {
    /// Its exclusive open.
    pub exclusive: ExclusiveOpen,
    /// The file that it shows, if it is a loop device.
    pub below: Option<Below>,
}

impl Device {
    fn of(image: &Image) -> block::Result<Self> {
        let file = image.file();
        let exclusive = image.open_exclusively()?;
        let exclusive = exclusive.ok_or_else(|| block::Error::NotAnImage {
            path: file.path().to_owned(),
            kind: "file by now",
        })?;
        let below = file.below().map(|below| {
            Ok(Below {
                file: open(&below.path)?,
                path: below.path.clone(),
            })
        });
        let below = below.transpose().map_err(|source| block::Error::Open {
            path: file.path().to_owned(),
            source,
        })?;
        Ok(Self { exclusive, below })
    }
}

/// Whether it was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    Anew,
    Before,
}

fn refuse(id: &str, message: String) -> Observation {
    Observation::new(Side::Client, id, message)
}

fn failed(what: &str, path: &Path, error: &dyn std::error::Error) -> Observation {
    let message = format!("cannot {what} {}", path.display());
    refuse("disk.target", message).caused_by(Observation::from_error(
        Side::Client,
        "disk.io",
        error,
    ))
}

/// The folder that it lies in.
fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

impl Target {
    /// Makes an image that is not there yet; one that was left of a move that did not come to its end goes first.
    ///
    /// # Errors
    /// `disk.exists`, `disk.no-room` before anything is made, `disk.no-marks` where the storage cannot have the mark, and
    /// `disk.target` when it cannot be made.
    pub fn create(wanted: &Wanted<'_>, journal: &dyn Journal) -> Result<Self, Observation> {
        Self::create_marked(wanted, journal, &wanted.mark(journal))
    }

    /// As [`Target::create`], for a disk that goes over before its content does.
    ///
    /// # Errors
    /// As there.
    pub fn create_in_part(wanted: &Wanted<'_>, journal: &dyn Journal) -> Result<Self, Observation> {
        let path = wanted.path.display().to_string();
        let mark = Mark::of_disk_on_demand(wanted.id, journal.identity(), &path);
        Self::create_marked(wanted, journal, &mark)
    }

    fn create_marked(
        wanted: &Wanted<'_>,
        journal: &dyn Journal,
        mark: &Mark,
    ) -> Result<Self, Observation> {
        let path = wanted.path;
        match fs::symlink_metadata(path) {
            Ok(_) if remove_abandoned(path, journal) => {}
            Ok(_) => {
                let message = format!(
                    "there is something at {} already, which is not overwritten; if it is an image of no more use, say \
                     --existing",
                    path.display()
                );
                return Err(refuse("disk.exists", message));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed("look at", path, &e)),
        }
        check_room(wanted)?;
        let made = Self::marked(path, wanted.id, mark, |nameless| match wanted.format {
            Format::Raw => create::create_raw(nameless, wanted.size),
            Format::Qcow2 => {
                let image = NewImage {
                    size: wanted.size,
                    cluster_bits: DEFAULT_CLUSTER_BITS,
                    backing: None,
                };
                create::create(nameless, &image)
            }
        })?;
        Ok(Self {
            direct: direct(wanted.format, path),
            ..made
        })
    }

    /// Makes an overlay of move `id` at `path`; one that was left of a move that did not come to its end goes first.
    ///
    /// # Errors
    /// As [`Target::create`].
    pub(super) fn create_overlay(
        path: &Path,
        id: MigrationId,
        image: &NewImage,
        mark: &Mark,
        journal: &dyn Journal,
    ) -> Result<Self, Observation> {
        remove_abandoned(path, journal);
        Self::marked(path, id, mark, |nameless| {
            create::create_overlay(nameless, image)
        })
    }

    /// Has an image that `make` makes appear at `path` with its mark.
    fn marked(
        path: &Path,
        id: MigrationId,
        mark: &Mark,
        make: impl FnOnce(&Path) -> block::Result<()>,
    ) -> Result<Self, Observation> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Nobody knows it by this name; the mark is on it when it gets its own.
        let nameless = folder(path).join(format!(".{name}.{id}"));
        let made = make(&nameless).map_err(|e| failed("make", path, &e));
        let made = made.and_then(|()| Self::named(path, &nameless, mark));
        let removed = fs::remove_file(&nameless);
        let file = made?;
        removed.map_err(|e| failed("remove", &nameless, &e))?;
        Ok(Self {
            reach: Reach::of(&file),
            direct: None,
            device: None,
            path: path.to_owned(),
            id,
            file,
            made: Made::Anew,
            mark: mark.clone(),
        })
    }

    fn named(path: &Path, nameless: &Path, mark: &Mark) -> Result<File, Observation> {
        let image = RawImage::open(nameless, Access::ReadWrite, Content::Container)
            .map_err(|e| failed("make", path, &e))?;
        let marked = mark.set_arriving(&image);
        if !marked.map_err(|e| failed("mark", path, &e))? {
            let message = format!(
                "the storage of {} has no marks (extended attributes of users), so that nobody could tell a disk that \
                 was moved in part from a whole one: move it to other storage, or make the image and say --existing",
                path.display()
            );
            return Err(refuse("disk.no-marks", message));
        }
        fs::hard_link(nameless, path).map_err(|e| failed("make", path, &e))?;
        // So that its name is there when the disk is.
        let synced = File::open(folder(path)).and_then(|folder| folder.sync_all());
        let opened = synced.and_then(|()| open(path));
        opened.map_err(|e| {
            let _ = fs::remove_file(path);
            failed("make", path, &e)
        })
    }

    /// Takes an image that is there, of which the content is given up.
    ///
    /// # Errors
    /// `disk.size`, `disk.claim` when somebody uses it, and `disk.target` for what is no such image.
    pub fn existing(wanted: &Wanted<'_>, journal: &dyn Journal) -> Result<Self, Observation> {
        let path = wanted.path;
        let rules = BackingRules::default();
        let image = Image::open(path, Access::ReadWrite, wanted.format, Content::Raw, &rules)
            .map_err(|e| failed("use", path, &e))?;
        let is_device = image.file().kind() == ImageKind::BlockDevice;
        let found = image.device().size();
        if found != wanted.size {
            let message = format!(
                "the disk has {} bytes, and {} has {found}",
                wanted.size,
                path.display()
            );
            return Err(refuse("disk.size", message));
        }
        let claim = image
            .claim()
            .map_err(|e| Observation::from_error(Side::Client, "disk.claim", &e))?;
        if let Some(why) = marks::why_needed(image.file(), journal) {
            let message = format!("{} cannot be written over: {why}", path.display());
            return Err(refuse("disk.target", message));
        }
        let mark = wanted.mark(journal);
        let device = match is_device {
            true => Some(Device::of(&image).map_err(|e| failed("use", path, &e))?),
            false => None,
        };
        // A device is sealed by the VM when it begins.
        let marked = is_device || set_arriving(&mark, &image, path)?;
        if !marked {
            tracing::warn!(
                path = %path.display(),
                "the storage has no marks: should the move be cut short, nothing will tell that the image holds a part of a disk"
            );
        }
        drop(claim);
        let file = open(path).map_err(|e| failed("use", path, &e))?;
        let reach = match image.file().identity().is_local {
            true => Reach::ThisHost,
            false => Reach::OtherHosts,
        };
        Ok(Self {
            direct: direct(wanted.format, path),
            path: path.to_owned(),
            id: wanted.id,
            file,
            device,
            reach,
            made: Made::Before,
            mark,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, which is to be closed once the VM has it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The same, open past the page cache, where it can be.
    pub fn direct(&self) -> Option<&File> {
        self.direct.as_ref()
    }

    /// What is open beside it, if it is a block device.
    pub fn device(&self) -> Option<&Device> {
        self.device.as_ref()
    }

    /// Who can reach its storage.
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// The VM has the file: what is left is to give the image up, should the move come to nothing.
    pub fn passed(self) -> Passed {
        let Self {
            path,
            id,
            made,
            mark,
            file: _,
            direct: _,
            device: _,
            reach: _,
        } = self;
        Passed {
            path,
            id,
            made,
            mark,
        }
    }
}

/// An image that a VM has.
#[derive(Debug)]
pub struct Passed {
    path: PathBuf,
    id: MigrationId,
    made: Made,
    mark: Mark,
}

impl Passed {
    /// Whether the disk has gone over to it, as the journal says.
    pub fn is_the_disk(&self, journal: &dyn Journal) -> bool {
        let recorded = journal.recorded(self.id).ok().flatten();
        recorded.is_some_and(|record| record.handover == Handover::Gone)
    }

    /// Whether there is anything by its name.
    pub fn is_there(&self) -> bool {
        self.path.exists()
    }

    /// Removes the image, if it was made for a move that came to nothing; one that was there before stays, marked if it
    /// holds a part of the disk. Nothing is done while the VM has it, or it is the disk.
    pub fn discard(&self, journal: &dyn Journal) {
        let Ok(unused) = Unused::open(&self.path) else {
            return;
        };
        let image = &unused.image;
        if !self.mark.is_arriving_on(image) {
            return;
        }
        let has_begun = !matches!(journal.recorded(self.id), Ok(None));
        let given_up = match (self.made, has_begun) {
            (Made::Anew, false) => unused.remove(&self.path),
            (Made::Anew, true) if marks::is_abandoned(image, journal) => unused.remove(&self.path),
            (Made::Before, false) => marks::remove_arriving(image).map_err(io::Error::other),
            (Made::Anew | Made::Before, true) => Ok(()),
        };
        if let Err(error) = given_up {
            tracing::warn!(%error, path = %self.path.display(), "a part of a disk that was not moved is left");
        }
    }
}

/// Removes the image that a disk had before, where marks and journal say that it has left in the migration or move `id`,
/// and nobody uses it.
///
/// # Errors
/// `disk.not-removed`.
pub fn remove_old(path: &Path, id: MigrationId, journal: &dyn Journal) -> Result<(), Observation> {
    let not_removed = |why: String| {
        let message = format!("{} is not removed: {why}", path.display());
        refuse("disk.not-removed", message)
    };
    let unused =
        Unused::open(path).map_err(|_| not_removed("it is in use, or cannot be opened".into()))?;
    if unused.image.kind() == ImageKind::BlockDevice {
        return Err(not_removed("it is a block device".into()));
    }
    match marks::has_left(&unused.image, id, journal) {
        true => unused.remove(path).map_err(|e| not_removed(e.to_string())),
        false => Err(not_removed(format!(
            "nothing on it says that its disk has moved away in {id}"
        ))),
    }
}

/// Marks an image that is there as one to which a disk comes; whether it can have marks.
fn set_arriving(mark: &Mark, image: &Image, path: &Path) -> Result<bool, Observation> {
    let marked = mark.set_arriving(image.file());
    marked.map_err(|e| failed("mark", path, &e))
}

/// A raw image once more, past the page cache, where its storage can do without.
fn direct(format: Format, path: &Path) -> Option<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    (format == Format::Raw).then(|| options.open(path).ok())?
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Removes what was left of a copy that nobody makes any more; whether there was such.
fn remove_abandoned(path: &Path, journal: &dyn Journal) -> bool {
    let is_file = fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
    is_file && left_over(path, journal).is_ok_and(|found| found.remove(path).is_ok())
}

/// Whether there is room for what the disk holds.
fn check_room(wanted: &Wanted<'_>) -> Result<(), Observation> {
    let folder = folder(wanted.path);
    let free = room_in(folder).map_err(|e| failed("look for room in", folder, &e))?;
    if free < wanted.needs {
        let message = format!(
            "{} has {free} bytes left, and the disk holds {}",
            folder.display(),
            wanted.needs
        );
        return Err(refuse("disk.no-room", message));
    }
    if free < wanted.size {
        tracing::warn!(
            free,
            size = wanted.size,
            "there is room for what the disk holds, and not for all that it can come to hold"
        );
    }
    Ok(())
}

/// Bytes that an image takes on its host; the size of a block device.
///
/// # Errors
/// When it cannot be told.
pub fn taken_by(path: &Path) -> Result<u64, Observation> {
    let metadata = fs::metadata(path).map_err(|e| failed("look at", path, &e))?;
    if metadata.is_file() {
        return Ok(metadata.blocks() * 512);
    }
    let image = RawImage::open(path, Access::ReadOnly, Content::Container);
    image
        .map(|image| image.size())
        .map_err(|e| failed("look at", path, &e))
}
