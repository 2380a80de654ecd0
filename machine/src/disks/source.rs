//! What is said of a disk before it is opened, and as whom it is claimed.

use std::path::PathBuf;

use block::Content;
use block::image::Format;
use block::image::qcow2::BackingRules;

use crate::build::spec::DiskAccess;
use crate::config::DiskCache;
use crate::debug::DebugLayers;
use crate::disks::places::DiskPlaces;

/// A disk image and what is expected of it.
#[derive(Debug, Clone)]
pub struct DiskSource {
    /// Identity of the disk.
    pub id: String,
    /// Path of the image on this host.
    pub path: PathBuf,
    /// What the guest may do with it.
    pub access: DiskAccess,
    /// Format of the image.
    pub format: Format,
    /// Whether another format than raw is recognised, and refused, where it is said to be raw.
    pub content: Content,
    /// Where the files below it may lie.
    pub backing: BackingRules,
    /// Size that it must have, when the guest knows it already.
    pub expected_size: Option<u64>,
    /// Who has it when the machine is built.
    pub owner: DiskOwner,
    /// Whether the page cache is used for the guest's requests.
    pub cache: DiskCache,
    /// Folder of the journal that tells what becomes of guests whose disks leave; without it no mark on the image keeps
    /// anybody from using it.
    pub journal: Option<PathBuf>,
    /// What is laid over its image, for tests of this program.
    pub debug: DebugLayers,
}

/// Who has the image of a disk when the machine is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskOwner {
    /// As the machine's disks in general: nobody, or the source of a guest that comes in.
    AsTheMachine,
    /// This machine, also of a guest that comes in: its content travels here.
    Here,
    /// As [`DiskOwner::Here`]: its content is fetched when the guest is here.
    HereInPart,
}

impl DiskSource {
    pub(super) fn has_whole_pages(&self) -> bool {
        let size = self.expected_size;
        size.is_some_and(|size| size.is_multiple_of(migration::PAGE_SIZE))
    }

    /// As whom it is claimed by a machine that claims its disks as `claim`.
    pub(super) fn claimed<'a>(&self, claim: DiskClaim<'a>) -> DiskClaim<'a> {
        match self.owner {
            DiskOwner::AsTheMachine => claim,
            DiskOwner::Here | DiskOwner::HereInPart => DiskClaim::Owner,
        }
    }
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
