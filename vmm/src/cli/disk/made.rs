//! The images of a disk's move: made before it begins, passed to the VM, and given up where it comes to nothing.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use control::api::client::Client;
use control::disk_move::{
    DeviceRequest, DiskMoveMode, ImageFormat, OverlayEnd, OverlayRequest, StorageReach,
};
use control::exit::local;
use control::passed::{FileAccess, FileId, FileKind, FileNote, Passer};
use machine::OverlayTargets;
use machine::disk_in_part::{MapFile, remove_map};
use machine::disk_target::{Overlays, Passed, Target, Wanted};
use migration::journal::FileJournal;
use migration::observation::Observation;

use super::super::storage_reach::told;
use super::args::{MoveArgs, OverlaySide};
use super::wrong::usage;

/// The images of a move, made and open.
pub(super) struct Images {
    target: Target,
    beside: Beside,
}

/// What lies beside the image that a disk moves to.
enum Beside {
    Nothing,
    /// A map of what of it is there.
    Map(MapFile),
    Overlays(OverlaysMade),
}

struct OverlaysMade {
    targets: OverlayTargets,
    beginning: PathBuf,
    room: u64,
}

/// Files as a VM knows them that has taken them: until a request names them it keeps them as long as this is there.
pub(super) struct Taken {
    _passer: Passer,
    pub(super) image: FileId,
    pub(super) direct: Option<FileId>,
    pub(super) device: Option<DeviceRequest>,
    pub(super) map: Option<FileId>,
    pub(super) overlays: Option<OverlayRequest>,
}

/// The images that a VM has.
pub(super) struct AllPassed {
    target: Passed,
    map_of: Option<PathBuf>,
    overlays: Vec<Passed>,
}

/// The images of a move by way of overlays, of a disk at `old` that is to be at `new`.
pub(super) fn overlays_of(
    args: &MoveArgs,
    (old, old_is): (&Path, ImageFormat),
    (new, new_is): (&Path, ImageFormat),
) -> Option<Overlays> {
    (args.mode == DiskMoveMode::Snapshot).then(|| {
        let beside = match args.overlay.unwrap_or_default() {
            OverlaySide::Source => old,
            OverlaySide::Destination => new,
        };
        Overlays {
            beginning: beside.to_owned(),
            old: old.to_owned(),
            old_is,
            new: new.to_owned(),
            new_is,
        }
    })
}

impl Images {
    /// Makes what the move needs; nothing is left where that fails.
    ///
    /// # Errors
    /// As [`Target::create`], [`MapFile::create`] and [`OverlayTargets::create`].
    pub(super) fn make(
        args: &MoveArgs,
        wanted: &Wanted<'_>,
        journal: &FileJournal,
    ) -> Result<Self, Observation> {
        let target = match args.mode {
            DiskMoveMode::OnDemand => Target::create_in_part(wanted, journal)?,
            _ if args.existing => Target::existing(wanted, journal)?,
            _ => Target::create(wanted, journal)?,
        };
        // After it: the image of this name is ours, and so is what lies beside it.
        match Beside::make(args, wanted, journal) {
            Ok(beside) => Ok(Self { target, beside }),
            Err(why) => {
                target.passed().discard(journal);
                Err(why)
            }
        }
    }

    /// Who can reach the storage of the image.
    pub(super) fn reach(&self) -> StorageReach {
        told(self.target.reach())
    }

    /// Passes them to the VM.
    ///
    /// # Errors
    /// When it does not take them.
    pub(super) async fn pass(
        &self,
        client: &Client,
        end: OverlayEnd,
    ) -> Result<Taken, Observation> {
        let mut passer = client.passer().await?;
        let note = |path: &Path| FileNote {
            kind: FileKind::Disk,
            access: FileAccess::ReadWrite,
            name: path.display().to_string(),
        };
        let mut files = vec![(note(self.target.path()), self.target.file().as_fd())];
        if let Some(direct) = self.target.direct() {
            files.push((note(self.target.path()), direct.as_fd()));
        }
        if let Some(device) = self.target.device() {
            let held = FileNote {
                access: FileAccess::Read,
                ..note(self.target.path())
            };
            files.push((held, device.exclusive.as_fd()));
            if let Some(below) = &device.below {
                files.push((note(&below.path), below.file.as_fd()));
            }
        }
        match &self.beside {
            Beside::Nothing => {}
            Beside::Map(map) => files.push((note(map.path()), map.file().as_fd())),
            Beside::Overlays(made) => {
                let overlays = made.targets.all().iter();
                files.extend(overlays.map(|image| (note(image.path()), image.file().as_fd())));
            }
        }
        // An identifier for each, in their order.
        let mut passed = passer.pass(&files).await?.into_iter();
        let mut next = || {
            let id = passed.next();
            id.ok_or_else(|| local("vm.unreachable", "the VM has not taken the image"))
        };
        let image = next()?;
        let direct = self.target.direct().map(|_| next()).transpose()?;
        let device = match self.target.device() {
            None => None,
            Some(device) => Some(DeviceRequest {
                exclusive: next()?,
                below: device.below.as_ref().map(|_| next()).transpose()?,
            }),
        };
        let (mut map, mut overlays) = (None, None);
        match &self.beside {
            Beside::Nothing => {}
            Beside::Map(_) => map = Some(next()?),
            Beside::Overlays(made) => overlays = Some(made.request(passed.collect(), end)?),
        }
        Ok(Taken {
            _passer: passer,
            image,
            direct,
            device,
            map,
            overlays,
        })
    }

    /// The VM has them, or never will. Closes the files, which it shares: they would keep the claims on them alive.
    pub(super) fn passed(self) -> AllPassed {
        let map_of = matches!(self.beside, Beside::Map(_)).then(|| self.target.path().to_owned());
        AllPassed {
            target: self.target.passed(),
            map_of,
            overlays: match self.beside {
                Beside::Overlays(made) => made.targets.passed(),
                Beside::Nothing | Beside::Map(_) => Vec::new(),
            },
        }
    }
}

impl Beside {
    fn make(
        args: &MoveArgs,
        wanted: &Wanted<'_>,
        journal: &FileJournal,
    ) -> Result<Self, Observation> {
        if args.mode == DiskMoveMode::OnDemand {
            return MapFile::create(wanted.path, wanted.size).map(Self::Map);
        }
        let Some(of) = wanted.overlays else {
            return Ok(Self::Nothing);
        };
        let room = OverlayTargets::room(of, wanted.needs)?;
        Ok(Self::Overlays(OverlaysMade {
            targets: OverlayTargets::create(of, wanted.size, wanted.id, journal)?,
            beginning: of.beginning.clone(),
            room,
        }))
    }
}

impl OverlaysMade {
    fn request(&self, files: Vec<FileId>, end: OverlayEnd) -> Result<OverlayRequest, Observation> {
        let beginning = self.beginning.to_str().ok_or_else(|| {
            usage("the path of an overlay is no text (UTF-8), which the VM could not tell")
        })?;
        Ok(OverlayRequest {
            files,
            beginning: beginning.to_owned(),
            reach: told(self.targets.reach()),
            room_bytes: self.room,
            end,
        })
    }
}

impl AllPassed {
    /// Whether the disk has gone over to the image that was made for it, as the journal says.
    pub(super) fn is_the_disk(&self, journal: &FileJournal) -> bool {
        self.target.is_the_disk(journal)
    }

    /// The disk has moved, and is whole: removes what nobody needs any more.
    pub(super) fn discard_beside(&self, journal: &FileJournal) {
        if let Some(image) = &self.map_of {
            remove_map(image);
        }
        self.discard_overlays(journal);
    }

    /// Removes the overlays that nobody needs any more.
    pub(super) fn discard_overlays(&self, journal: &FileJournal) {
        for overlay in &self.overlays {
            overlay.discard(journal);
        }
    }

    /// Gives up what was made for a move that came to nothing.
    pub(super) fn discard(&self, journal: &FileJournal) {
        self.discard_overlays(journal);
        self.target.discard(journal);
        // The image goes first: one that is there without its map would be of no use to anybody.
        if let Some(image) = self.map_of.as_ref().filter(|image| !image.exists()) {
            remove_map(image);
        }
    }
}
