//! The files of the overlays of a move, which whoever asked for it has made and opened.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use block::image::Format;
use block::image::qcow2::create::NewImage;
use block::image::qcow2::overlay;
use block::{Access, Claim, Content, RawImage, Reach};
use control::disk_move::{ImageFormat, OverlayEnd};
use control::passed::PassedFile;
use migration::observation::{Observation, Side};

use crate::disks::Disk;
use crate::disks::marks::{Mark, OVERLAYS, Overlays, Part};

/// The overlays of a move.
pub(crate) struct OverlayFiles {
    files: Vec<OverlayFile>,
    paths: Overlays,
    pub(super) end: OverlayEnd,
    /// Bytes that there are for them.
    pub(super) room: u64,
    size: u64,
    cluster_bits: u32,
}

/// The file of one.
pub(super) struct OverlayFile {
    pub(super) file: Arc<RawImage>,
    pub(super) claim: Arc<Claim>,
}

fn refuse(id: &str, message: String) -> Observation {
    Observation::new(Side::Source, id, message)
}

/// Logarithm of the size of clusters that overlays over such a disk have: none is a part of a cluster below, so that what is
/// brought below changes nothing that is read past the overlay.
pub(crate) fn cluster_bits(below: Option<u32>) -> u32 {
    below.map_or(overlay::CLUSTER_BITS, |bits| {
        bits.max(overlay::CLUSTER_BITS)
    })
}

pub(crate) fn is(format: Format) -> ImageFormat {
    match format {
        Format::Raw => ImageFormat::Raw,
        Format::Qcow2 => ImageFormat::Qcow2,
    }
}

impl OverlayFiles {
    /// Takes what was passed, of a disk that is `old` by now and moves to `new`; `mark` is that of the move.
    ///
    /// # Errors
    /// `disk.overlay` for what are no empty overlays that were made for this move, `disk.claim` where one is in use.
    pub(crate) fn take(
        passed: Vec<PassedFile>,
        beginning: PathBuf,
        (reach, end, room): (Reach, OverlayEnd, u64),
        (old, new): (&Disk, &Disk),
        mark: &Mark,
    ) -> Result<Self, Observation> {
        if passed.len() != usize::from(OVERLAYS) {
            let message = format!(
                "{OVERLAYS} overlays are needed, and {} were passed",
                passed.len()
            );
            return Err(refuse("disk.overlay", message));
        }
        let (old, new) = (old.image(), new.image());
        let paths = Overlays {
            old: old.file().path().to_owned(),
            old_is: is(old.format()),
            new: new.file().path().to_owned(),
            new_is: is(new.format()),
            beginning,
        };
        let files = passed.into_iter().zip(0..).map(|(passed, number)| {
            let path = PathBuf::from(paths.path(number));
            let file = File::from(passed.descriptor);
            let opened = RawImage::from_opened(
                file,
                path.clone(),
                Access::ReadWrite,
                Content::Container,
                reach,
            );
            let file =
                opened.map_err(|e| Observation::from_error(Side::Source, "disk.overlay", &e))?;
            let claim = file.claim();
            let claim =
                claim.map_err(|e| Observation::from_error(Side::Source, "disk.claim", &e))?;
            if !mark.is_arriving_on(&file) || !matches!(file.has_name(), Ok(true)) {
                let message = format!("{} was not made as an overlay for this job", path.display());
                return Err(refuse("disk.overlay", message));
            }
            Ok(OverlayFile {
                file: Arc::new(file),
                claim: Arc::new(claim),
            })
        });
        Ok(Self {
            files: files.collect::<Result<_, _>>()?,
            paths,
            end,
            room,
            size: old.device().size(),
            cluster_bits: cluster_bits(old.cluster_bits()),
        })
    }

    /// The mark of the image that the disk had before.
    pub(crate) fn mark_of_old(&self, mark: Mark) -> Mark {
        mark.in_course(&self.paths, Part::Old)
    }

    /// The mark of another image of the move.
    pub(super) fn mark_of(&self, mark: Mark, part: Part) -> Mark {
        mark.in_course(&self.paths, part)
    }

    /// The numbers of all.
    pub(super) fn numbers(&self) -> std::ops::Range<u8> {
        0..OVERLAYS
    }

    pub(super) fn of(&self, number: u8) -> &OverlayFile {
        // Numbers are those of `OVERLAYS`, of which there are so many.
        &self.files[usize::from(number)]
    }

    /// Makes overlay `number` an empty one over an image.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn empty(&self, number: u8, below: PathBuf, format: Format) -> block::Result<()> {
        let image = NewImage {
            size: self.size,
            cluster_bits: self.cluster_bits,
            backing: Some((below, format)),
        };
        overlay::reset(&self.of(number).file, &image)
    }

    /// Bytes that all of them take.
    pub(super) fn taken(&self) -> u64 {
        self.files.iter().map(|of| of.file.allocated()).sum()
    }
}
