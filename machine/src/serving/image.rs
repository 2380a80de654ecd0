//! An image that nobody changes any more, as a server of a pull reads it.

use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use block::image::qcow2::BackingRules;
use block::image::{Format, Image};
use block::{Access, Claim, Content, Stack};
use migration::journal::Journal;
use migration::observation::Side;
use migration::pull::{PullSource, PulledVolume};
use migration::vm::{BLOCK_SIZE, VmResult};

use super::error::ServeError;
use super::record::{Progress, ServingRecord};
use super::records::Held;
use crate::debug::DebugLayers;
use crate::disks::content::DiskContent;
use crate::disks::in_part;

/// An image that is open for reading, claimed with other readers, and recorded.
pub struct ServedImage {
    content: DiskContent,
    /// Which of its blocks are here, if not all.
    held: Option<Vec<bool>>,
    /// Keeps every writer away.
    _claim: Claim,
    record: Mutex<(ServingRecord, Held)>,
}

/// An image that nobody can change, and which of its blocks are here, if not all.
pub(super) struct OpenedToServe {
    image: Image,
    claim: Claim,
    held: Option<Vec<bool>>,
    /// What is over it, for tests of this program.
    debug: DebugLayers,
}

/// Opens an image to be served, and claims it: nobody can change it meanwhile.
///
/// # Errors
/// When it cannot be opened so, or somebody writes it; and when it holds a part of its disk, and cannot tell which.
pub(super) fn open(
    path: &Path,
    format: Format,
    rules: &BackingRules,
    journal: &dyn Journal,
) -> Result<OpenedToServe, ServeError> {
    let debug = DebugLayers::asked_for(Side::Source).map_err(|e| ServeError::Debug(Box::new(e)))?;
    let image = Image::open(path, Access::ReadOnly, format, Content::Raw, rules);
    let image = image.map_err(ServeError::Image)?;
    let claim = image.claim().map_err(ServeError::Image)?;
    image.begin_use().map_err(ServeError::Image)?;
    let of = (&**image.file(), image.device().size());
    let held = in_part::held_of(of, path, journal);
    let held = held.map_err(|why| ServeError::InPart(Box::new(why)))?;
    Ok(OpenedToServe {
        image,
        claim,
        held,
        debug,
    })
}

impl ServedImage {
    pub(super) fn new(opened: OpenedToServe, record: ServingRecord, recorded: Held) -> Self {
        let OpenedToServe {
            image,
            claim,
            held,
            debug,
        } = opened;
        let mut stack = Stack::over(image.device(), image.format().name());
        debug.lay(&record.disk, &mut stack);
        Self {
            held,
            content: DiskContent {
                side: Side::Source,
                id: record.disk.clone(),
                uncached: match &image {
                    Image::Raw(image) if stack.names().count() == 1 => Some(image.clone()),
                    Image::Raw(_) | Image::Qcow2(_) => None,
                },
                disk: stack.device(),
            },
            _claim: claim,
            record: Mutex::new((record, recorded)),
        }
    }

    /// What is recorded of it.
    pub fn record(&self) -> ServingRecord {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.0.clone()
    }

    /// Records how far the client has come, unless it is whole or nothing is new.
    ///
    /// # Errors
    /// [`ServeError::Record`].
    pub fn note(&self, progress: Progress) -> Result<(), ServeError> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let (stands, held) = &mut *record;
        if stands.progress == Progress::Released || stands.progress == progress {
            return Ok(());
        }
        let new = ServingRecord {
            progress,
            ..stands.clone()
        };
        held.write(&new)?;
        *stands = new;
        Ok(())
    }
}

impl OpenedToServe {
    /// Bytes of the disk.
    pub(super) fn size(&self) -> u64 {
        self.image.device().size()
    }

    /// Bytes of it that are here.
    pub(super) fn held(&self) -> u64 {
        let size = self.size();
        let Some(held) = &self.held else {
            return size;
        };
        let blocks = (0..).step_by(BLOCK_SIZE as usize).zip(held);
        let here = blocks.filter(|(_, held)| **held);
        here.map(|(start, _)| size.saturating_sub(start).min(BLOCK_SIZE))
            .sum()
    }

    /// Whether a part of it is elsewhere.
    pub(super) fn is_in_part(&self) -> bool {
        self.held.is_some()
    }
}

impl PullSource for ServedImage {
    fn volume(&self) -> PulledVolume {
        PulledVolume {
            id: self.content.id.clone(),
            size: self.content.disk.size(),
            unit: BLOCK_SIZE as u32,
        }
    }

    fn holds(&self, unit: u64) -> bool {
        let at = |held: &Vec<bool>| held.get(unit as usize) == Some(&true);
        self.held.as_ref().is_none_or(at)
    }

    fn data(&self, range: Range<u64>) -> VmResult<Vec<Range<u64>>> {
        self.content.data(range)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> VmResult<()> {
        self.content.read(offset, into)
    }

    fn release(&self) -> VmResult<()> {
        self.note(Progress::Released).map_err(|e| e.observe())
    }

    fn is_released(&self) -> bool {
        self.record().progress == Progress::Released
    }
}
