//! The map of a disk that is here in part: a file beside its image, whose note says who has the rest.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::image::Format;
use block::on_demand::{About, MOST_NOTE, PresenceMap};
use block::{Access, BlockDevice, Content, RawImage};
use migration::PullSecret;
use migration::disk_modes::DiskPull;
use migration::observation::{Observation, Side};
use migration::source_loss::OnSourceLoss;
use migration::vm::Behind;
use serde::{Deserialize, Serialize};

/// What is added to the name of an image for that of its map.
const ENDING: &str = ".vmm-map";

/// What the map of a disk says whose rest is in another image of this host.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Note {
    /// Format of the image that it lies beside.
    pub(super) format: String,
    /// Path of the one that has the rest, and its format.
    pub(super) origin: PathBuf,
    pub(super) origin_format: String,
}

/// Who serves the rest of a disk, as its map says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServedBy {
    /// Format of the image that the map lies beside.
    pub format: String,
    /// Where it is served.
    pub served_at: String,
    /// What its client names, 32 hexadecimal digits.
    pub migration: String,
    /// What only the client knows beside.
    pub secret: PullSecret,
    /// Identity of the disk there.
    pub disk: String,
    /// What comes of it that nobody asks for.
    #[serde(default, skip_serializing_if = "DiskPull::is_background")]
    pub pull: DiskPull,
    /// What requests for what is missing do while whoever serves it is lost.
    #[serde(default, skip_serializing_if = "OnSourceLoss::is_pause")]
    pub on_source_loss: OnSourceLoss,
    /// Who serves what is lacking there, too, in the order in which they are asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub behind: Vec<Behind>,
}

/// Who has what a disk lacks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Rest {
    /// Another image of this host.
    Image(Note),
    /// Another host, or another process of this one.
    Served(ServedBy),
}

impl Note {
    pub(crate) fn new(format: Format, origin: &Path, origin_format: Format) -> Self {
        Self {
            format: format.name().to_owned(),
            origin: origin.to_owned(),
            origin_format: origin_format.name().to_owned(),
        }
    }

    /// As bytes; nothing if they are more than a map takes.
    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        encode(self)
    }
}

impl ServedBy {
    /// The first of those that are asked.
    pub(crate) fn first(&self) -> Behind {
        Behind {
            at: self.served_at.clone(),
            id: self.migration.clone(),
            secret: self.secret,
            disk: self.disk.clone(),
        }
    }

    /// As bytes; nothing if they are more than a map takes.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        encode(self)
    }
}

fn encode(note: &impl Serialize) -> Option<Vec<u8>> {
    let bytes = serde_json::to_vec(note).ok()?;
    (bytes.len() <= MOST_NOTE).then_some(bytes)
}

/// A map that is there, with what it says; `R` is what is known of who has the rest. That it is true is not known yet.
pub(super) struct FoundMap<R = Rest> {
    pub(super) storage: Arc<dyn BlockDevice>,
    pub(super) about: About,
    pub(super) rest: R,
}

impl FoundMap {
    /// The map of the image at `path`, if another image of this host has the rest.
    pub(super) fn in_image(self, path: &Path) -> Result<FoundMap<Note>, Observation> {
        let Self {
            storage,
            about,
            rest,
        } = self;
        let Rest::Image(rest) = rest else {
            let why = "what it lacks is served, and in no image of this host";
            return Err(in_part(path, why.into()));
        };
        Ok(FoundMap {
            storage,
            about,
            rest,
        })
    }

    /// The map of the image at `path`, if the rest is served.
    pub(super) fn served(self, path: &Path) -> Result<FoundMap<ServedBy>, Observation> {
        let Self {
            storage,
            about,
            rest,
        } = self;
        let Rest::Served(rest) = rest else {
            let why = "what it lacks is in an image of this host, and served by nobody";
            return Err(in_part(path, why.into()));
        };
        Ok(FoundMap {
            storage,
            about,
            rest,
        })
    }
}

/// Reads what the map of the image at `path` says.
///
/// # Errors
/// `disk.in-part` when there is none, or it is damaged.
pub(super) fn find(path: &Path) -> Result<FoundMap, Observation> {
    let failed = |error: block::Error| failed(path, &error);
    let map_path = map_path(path);
    let storage = RawImage::open(&map_path, Access::ReadWrite, Content::Container);
    let storage: Arc<dyn BlockDevice> = Arc::new(storage.map_err(failed)?);
    let about = PresenceMap::read_about(&*storage).map_err(failed)?;
    let rest = serde_json::from_slice(&about.note).map_err(|e| {
        let why = format!("the note in {} is wrong: {e}", map_path.display());
        in_part(path, why)
    })?;
    Ok(FoundMap {
        storage,
        about,
        rest,
    })
}

/// Path of the map of the image at `path`.
pub(crate) fn map_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ENDING);
    name.into()
}

pub(super) fn refuse(id: &str, message: String) -> Observation {
    Observation::new(Side::Client, id, message)
}

/// The file of a map that is to be made, for the VM that makes it.
#[derive(Debug)]
pub struct MapFile {
    path: PathBuf,
    file: File,
}

impl MapFile {
    /// Makes the file for the image at `image`, which was just made for a disk of `size` bytes: whatever map lies there is of one
    /// that is gone, and goes too.
    ///
    /// # Errors
    /// `disk.map` when it cannot be made.
    pub fn create(image: &Path, size: u64) -> Result<Self, Observation> {
        Self::create_at(map_path(image), size)
    }

    /// As that, at `path`.
    pub(super) fn create_at(path: PathBuf, size: u64) -> Result<Self, Observation> {
        let made = || {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut options = OpenOptions::new();
            let file = options
                .read(true)
                .write(true)
                .create_new(true)
                // It may have a secret.
                .mode(0o600)
                .open(&path)?;
            file.set_len(PresenceMap::length(size))?;
            Ok(file)
        };
        let file = made().map_err(|e: io::Error| {
            let message = format!("cannot make {}", path.display());
            refuse("disk.map", message).caused_by(Observation::from_error(
                Side::Client,
                "disk.io",
                &e,
            ))
        })?;
        Ok(Self { path, file })
    }

    /// The open file, which is to be closed once the VM has it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Removes the file of a map, if there is one.
pub(super) fn remove(map: &Path) {
    match fs::remove_file(map) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %map.display(), "a presence map that is of no more use is left");
        }
        _ => {}
    }
}

pub(super) fn in_part(path: &Path, why: String) -> Observation {
    refuse(
        "disk.in-part",
        format!("{} cannot be made whole: {why}", path.display()),
    )
}

pub(super) fn failed(path: &Path, error: &dyn std::error::Error) -> Observation {
    let message = format!("{} cannot be made whole", path.display());
    let cause = Observation::from_error(Side::Client, "disk.io", error);
    refuse("disk.in-part", message).caused_by(cause)
}
