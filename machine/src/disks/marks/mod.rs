//! Marks on images that leave their host, and on those that are being made for a guest that comes: they tell whoever
//! finds the image later, after whatever crash, that the guest's disk may be elsewhere.
//!
//! A mark says of which migration it is, and in whose journal that stands; what became of the migration is only told
//! there. So a mark that was left by a crash does no harm.
//!
//! A disk that moves to another image on its host has both marks, of one move, on its two images. The journal has one
//! record of it, the source's, which says at any moment which of the two is the disk: so they never both are, and never
//! neither is.

#[cfg(test)]
mod tests;
mod within;

use std::path::{Path, PathBuf};

use block::{Access, Content, RawImage};
use control::disk_move::ImageFormat;
use migration::journal::{
    Decision, FileJournal, Handover, Journal, JournalError, Overlay, OverlayBase, SourceRecord,
};
use migration::wire::control::Resolution;
use migration::{HostId, MigrationId};
use serde::{Deserialize, Serialize};

/// On the image of a disk whose content leaves; stays when the guest has gone.
const LEAVING: &str = "user.vmm.leaving";
/// On an image that is made for a disk whose content comes; removed when the guest is here.
const ARRIVING: &str = "user.vmm.arriving";
/// Name of what was changed of how the rest of a disk in part is had.
const TERMS: &str = "user.vmm.on-demand";

/// What a mark is of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Of {
    /// A guest that moves to another host with its disks.
    #[default]
    Migration,
    /// A disk that moves to another image on this host.
    DiskMove,
    /// One that has gone over before its content has: what its presence map says is missing is in the image that it left.
    DiskOnDemand,
    /// A guest that moves to another host before a disk's content does: what the presence map there says is missing is served
    /// from the image that it left.
    GuestOnDemand,
}

impl Of {
    fn is_migration(&self) -> bool {
        *self == Self::Migration
    }

    fn is_of_a_guest(self) -> bool {
        matches!(self, Self::Migration | Self::GuestOnDemand)
    }
}

/// A migration, and who recorded what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    migration: String,
    journal: HostId,
    /// Where the guest goes, for people; absent on an image that comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    destination: Option<String>,
    /// When it was made, in seconds of Unix time.
    since: u64,
    #[serde(default, skip_serializing_if = "Of::is_migration")]
    of: Of,
    /// Of a disk that moves by way of overlays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    course: Option<Course>,
    /// The migration with which such a disk goes: when the guest has gone by that, nothing is needed here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    within: Option<String>,
    #[serde(skip)]
    lies: Lies,
}

/// Where a mark was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Lies {
    /// Beside the bytes of the image, where its guest writes nothing.
    #[default]
    Beside,
    /// Before them: it is the seal of a block device, which is opened before its disk is there. A guest can write one, too.
    Within,
}

/// What an image is in a move by way of overlays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Part {
    /// The one that the disk had before.
    Old,
    /// An overlay, by its number.
    Overlay(u8),
    /// The one that it moves to.
    New,
}

/// The images of a move by way of overlays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlays {
    /// Path of the image that the disk had before, and its format.
    pub old: PathBuf,
    /// Its format.
    pub old_is: ImageFormat,
    /// Path of the one that it moves to.
    pub new: PathBuf,
    /// Its format.
    pub new_is: ImageFormat,
    /// What the paths of the overlays begin with.
    pub beginning: PathBuf,
}

/// How many overlays a move has: one that the guest writes, one that is consolidated, and one that comes next.
pub const OVERLAYS: u8 = 3;

impl Overlays {
    /// Path of overlay `number`.
    pub fn path(&self, number: u8) -> String {
        overlay_path(&self.beginning, number)
    }
}

/// Path of overlay `number` of those whose paths begin with `beginning`.
pub(super) fn overlay_path(beginning: &Path, number: u8) -> String {
    format!("{}.overlay-{number}.qcow2", beginning.display())
}

/// An image in a move by way of overlays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Course {
    part: Part,
    #[serde(flatten)]
    overlays: Overlays,
}

/// What is known of an image that has a mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whereabouts {
    /// The guest's disk is here.
    Here,
    /// It went elsewhere.
    Gone(String),
    /// It may be elsewhere.
    Unknown(String),
}

impl Mark {
    /// Of migration `id`, which `journal` records.
    pub(crate) fn new(id: MigrationId, journal: HostId, destination: Option<&str>) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            migration: id.to_string(),
            journal,
            destination: destination.map(str::to_owned),
            since: now.map_or(0, |now| now.as_secs()),
            of: Of::Migration,
            course: None,
            within: None,
            lies: Lies::default(),
        }
    }

    /// As it is, of `part` in a move by way of overlays.
    pub(crate) fn in_course(self, of: &Overlays, part: Part) -> Self {
        Self {
            course: Some(Course {
                part,
                overlays: of.clone(),
            }),
            ..self
        }
    }

    /// Of move `id` of a disk to the image at `path`, which `journal` records.
    pub(crate) fn of_disk_move(id: MigrationId, journal: HostId, path: &str) -> Self {
        Self {
            of: Of::DiskMove,
            ..Self::new(id, journal, Some(path))
        }
    }

    /// As [`Mark::of_disk_move`], for a move of which the content comes when the disk has gone over.
    pub(crate) fn of_disk_on_demand(id: MigrationId, journal: HostId, path: &str) -> Self {
        Self {
            of: Of::DiskOnDemand,
            ..Self::new(id, journal, Some(path))
        }
    }

    /// As [`Mark::new`], for a disk whose content comes, or is fetched from here, when its guest has gone over.
    pub(crate) fn of_guest_on_demand(
        id: MigrationId,
        journal: HostId,
        destination: Option<&str>,
    ) -> Self {
        Self {
            of: Of::GuestOnDemand,
            ..Self::new(id, journal, destination)
        }
    }

    /// Sets it on an image that leaves; `false` where the storage has no marks.
    pub(crate) fn set_leaving(&self, image: &RawImage) -> block::Result<bool> {
        image.set_mark(LEAVING, &self.encode())
    }

    /// Sets it on an image that is made; `false` where the storage has no marks.
    pub(crate) fn set_arriving(&self, image: &RawImage) -> block::Result<bool> {
        image.set_mark(ARRIVING, &self.encode())
    }

    /// Whether the image says that its disk leaves it by this.
    pub(crate) fn is_leaving(&self, image: &RawImage) -> bool {
        let found = read(image, LEAVING).and_then(Result::ok);
        found.is_some_and(|found| {
            (&found.migration, found.journal) == (&self.migration, self.journal)
        })
    }

    /// Whether the image says that it is being made by this.
    pub(crate) fn is_arriving_on(&self, image: &RawImage) -> bool {
        let found = read(image, ARRIVING).and_then(Result::ok);
        found.is_some_and(|found| {
            (found.of, &found.migration, found.journal) == (self.of, &self.migration, self.journal)
        })
    }

    /// As it is written.
    pub(super) fn encode(&self) -> Vec<u8> {
        // Of strings and numbers alone: that cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn id(&self) -> Option<MigrationId> {
        self.migration.parse().ok()
    }
}

/// The guest stays, or is here for good: nothing on its image says otherwise any more.
pub(crate) fn remove(image: &RawImage) -> block::Result<()> {
    let removed = [LEAVING, ARRIVING, TERMS].map(|name| image.remove_mark(name));
    removed.into_iter().collect()
}

/// What was changed of how the rest of a disk in part is had, if anything was.
pub(crate) fn terms(image: &RawImage) -> block::Result<Option<Vec<u8>>> {
    image.mark(TERMS)
}

/// Keeps what was changed of that; durable when this returns.
pub(crate) fn set_terms(image: &RawImage, terms: &[u8]) -> block::Result<()> {
    // An image in part has marks, so there is room for this one.
    image.set_mark(TERMS, terms).map(drop)
}

/// The guest stays, whatever its image says: it does not leave it. One that holds a part of its disk alone says so on.
pub(crate) fn stays(image: &RawImage) -> block::Result<()> {
    match is_in_part(image) {
        true => image.remove_mark(LEAVING),
        false => remove(image),
    }
}

/// Whether the image may hold a part of a disk alone, of which the rest is in the one that it left.
pub(crate) fn is_in_part(image: &RawImage) -> bool {
    let mark = read(image, ARRIVING).and_then(Result::ok);
    mark.is_some_and(|mark| matches!(mark.of, Of::DiskOnDemand | Of::GuestOnDemand))
}

/// Whether the image was made for a guest that came in migration `id` before the content of its disk, and did come.
pub(crate) fn came_on_demand(image: &RawImage, id: MigrationId, journal: &dyn Journal) -> bool {
    let mark = Mark::of_guest_on_demand(id, journal.identity(), None);
    mark.is_arriving_on(image) && arrival(&mark, journal) == Arrival::InPart
}

/// Where the guest is, or goes, whose disk is to be served from the image that it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Departure {
    /// Nothing says that it goes.
    NotBegun,
    /// It may go, by this migration.
    Under(MigrationId),
    /// It stays, whatever came of this migration.
    Stayed(MigrationId),
    /// It was given away, by this migration; it may not be known yet whether it runs there.
    Given(MigrationId),
}

/// What the mark of `image` and `journal` say of its guest.
pub(crate) fn departure(image: &RawImage, journal: &dyn Journal) -> Departure {
    let mark = read(image, LEAVING).and_then(Result::ok);
    let mark = mark.filter(|mark| mark.of == Of::GuestOnDemand);
    let id = mark
        .filter(|mark| mark.journal == journal.identity())
        .and_then(|mark| mark.id());
    let Some(id) = id else {
        return Departure::NotBegun;
    };
    match journal.recorded(id) {
        Ok(Some(record)) => match record.handover {
            Handover::Begun => Departure::Under(id),
            Handover::Kept => Departure::Stayed(id),
            Handover::CommitSent | Handover::Gone => Departure::Given(id),
        },
        // What is recorded before the mark is made has been forgotten since, or cannot be read: somebody may need the image.
        Ok(None) | Err(_) => Departure::Given(id),
    }
}

/// Nothing is being made of the image: what it was before, it is.
pub(crate) fn remove_arriving(image: &RawImage) -> block::Result<()> {
    image.remove_mark(ARRIVING)
}

/// Whatever is recorded of the copy of a disk that was being made here, it is not the disk.
pub(crate) fn disown(image: &RawImage) -> block::Result<()> {
    // One that cannot be read, which nobody takes for anything.
    image.set_mark(ARRIVING, b"disowned").map(drop)
}

/// Whether there are any on the image, or it cannot be told.
pub(crate) fn are_on(image: &RawImage) -> bool {
    let is_on = |name| !matches!(image.mark(name), Ok(None));
    is_on(LEAVING) || is_on(ARRIVING) || !matches!(image.seal(), Ok(None))
}

fn read(image: &RawImage, name: &str) -> Option<Result<Mark, String>> {
    let told = |e: block::Error| e.to_string();
    let read = |bytes: Vec<u8>| serde_json::from_slice(&bytes).map_err(|e| e.to_string());
    if let Some(bytes) = image.mark(name).transpose() {
        return Some(bytes.map_err(told).and_then(read));
    }
    if name != ARRIVING {
        return None;
    }
    let seal = image.seal().transpose()?;
    Some(seal.map_err(told).and_then(read).and_then(of_seal))
}

/// The mark that a seal has.
fn of_seal(mark: Mark) -> Result<Mark, String> {
    match (mark.of, &mark.course) {
        (Of::Migration | Of::DiskMove, None) => Ok(Mark {
            lies: Lies::Within,
            ..mark
        }),
        (Of::Migration | Of::DiskMove | Of::DiskOnDemand | Of::GuestOnDemand, _) => {
            Err("it is of something that seals no block device".into())
        }
    }
}

/// Where the guest's disk is whose image this is or was, as far as its marks and `journal` tell.
pub(crate) fn whereabouts(image: &RawImage, journal: &dyn Journal) -> Whereabouts {
    if let Some(arriving) = read(image, ARRIVING) {
        return match arriving.map(|mark| (arrival(&mark, journal), mark.migration)) {
            // It was the disk, and its host ended before it could say so.
            Ok((Arrival::Came, _)) => Whereabouts::Here,
            // Its guest may have gone on since.
            Ok((Arrival::InPart, _)) => match left(image, journal) {
                Whereabouts::Here => Whereabouts::Unknown(
                    "it is the disk, but a part of that is where it was moved from".into(),
                ),
                elsewhere => elsewhere,
            },
            Ok((Arrival::Never(Of::DiskMove | Of::DiskOnDemand), _)) => Whereabouts::Unknown(
                "a disk was being moved to it, which did not come to its end: it holds a part of that disk".into(),
            ),
            Ok((Arrival::Never(Of::Migration | Of::GuestOnDemand), _)) => Whereabouts::Unknown(
                "it was being made for a guest that did not come, and holds a part of its disk"
                    .into(),
            ),
            Ok((Arrival::InChain(why), _)) => Whereabouts::Unknown(why),
            Ok((Arrival::Unknown(Of::DiskMove | Of::DiskOnDemand), _)) => Whereabouts::Unknown(
                "it was being made as a copy of a disk, and there is no record here of what became of that".into(),
            ),
            Ok((Arrival::Unknown(Of::Migration | Of::GuestOnDemand), id)) => Whereabouts::Unknown(format!(
                "it was being made for a guest that came in migration {id}, of which it is not known here how it ended"
            )),
            Err(why) => Whereabouts::Unknown(format!("its mark cannot be read: {why}")),
        };
    }
    left(image, journal)
}

/// Why the guest may be elsewhere whose disk has a part, or all, in `image`, as the mark of leaving and `journal` say; `None` where
/// it is not.
pub(crate) fn why_left(image: &RawImage, journal: &dyn Journal) -> Option<String> {
    match left(image, journal) {
        Whereabouts::Here => None,
        Whereabouts::Gone(why) | Whereabouts::Unknown(why) => Some(why),
    }
}

/// Where the guest's disk is, as far as the mark of leaving and `journal` tell.
fn left(image: &RawImage, journal: &dyn Journal) -> Whereabouts {
    let mark = match read(image, LEAVING) {
        None => return Whereabouts::Here,
        Some(Err(why)) => return Whereabouts::Unknown(format!("its mark cannot be read: {why}")),
        Some(Ok(mark)) => mark,
    };
    if let Some(went) = mark.guest_went(journal) {
        return went;
    }
    let id = &mark.migration;
    let to = mark.destination.as_deref().unwrap_or("another host");
    let recorded = match mark.id() {
        Some(id) if mark.journal == journal.identity() => journal.recorded(id).ok().flatten(),
        _ => None,
    };
    if let Some(overlay) = recorded.as_ref().and_then(|record| record.overlay) {
        return match recorded.map(|record| record.handover) {
            Some(Handover::Gone) => {
                Whereabouts::Gone(format!("the disk was moved to {to}, by job {id}"))
            }
            _ => Whereabouts::Unknown(goes_on_in(&mark, overlay)),
        };
    }
    match recorded.map(|record| record.handover) {
        Some(Handover::Begun | Handover::Kept) => Whereabouts::Here,
        Some(Handover::Gone) if !mark.of.is_of_a_guest() => {
            Whereabouts::Gone(format!("the disk was moved to {to}, by job {id}"))
        }
        Some(Handover::Gone) => {
            Whereabouts::Gone(format!("the guest went to {to}, in migration {id}"))
        }
        Some(Handover::CommitSent) => Whereabouts::Unknown(format!(
            "the guest was given to {to}, in migration {id}, and it is not known whether it runs there"
        )),
        None if !mark.of.is_of_a_guest() => Whereabouts::Unknown(format!(
            "the disk was being moved to {to}, by job {id}, of which there is no record here"
        )),
        None => Whereabouts::Unknown(format!(
            "the guest was on its way to {to}, in migration {id}, of which there is no record here"
        )),
    }
}

/// Whether the disk whose image this is has left it in the migration or move `id`, as its mark and `journal` say.
pub(crate) fn has_left(image: &RawImage, id: MigrationId, journal: &dyn Journal) -> bool {
    let mark = read(image, LEAVING).and_then(Result::ok);
    let moves = mark.map(|mark| mark.within.unwrap_or(mark.migration));
    moves.and_then(|moves| moves.parse().ok()) == Some(id)
        && matches!(whereabouts(image, journal), Whereabouts::Gone(_))
}

/// Whether the image was being made for a guest that did not come, and will not, or for a disk that did not move there.
pub(crate) fn is_abandoned(image: &RawImage, journal: &dyn Journal) -> bool {
    let mark = read(image, ARRIVING).and_then(Result::ok);
    mark.is_some_and(|mark| matches!(arrival(&mark, journal), Arrival::Never(_)))
}

/// Why a disk needs the image, which is the disk by itself or not: a part of what it holds may be nowhere else; `None` where
/// nothing says so.
pub(crate) fn why_needed(image: &RawImage, journal: &dyn Journal) -> Option<String> {
    let arriving = read(image, ARRIVING).and_then(Result::ok);
    match arriving.map(|mark| arrival(&mark, journal)) {
        Some(Arrival::InPart) if why_left(image, journal).is_none() => {
            return Some("a part of a disk is nowhere else".into());
        }
        Some(Arrival::InChain(why)) => return Some(why),
        _ => {}
    }
    let mark = read(image, LEAVING).and_then(Result::ok)?;
    match mark.guest_went(journal) {
        Some(Whereabouts::Unknown(why)) => return Some(why),
        Some(Whereabouts::Gone(_)) => return None,
        Some(Whereabouts::Here) | None => {}
    }
    let id = mark.id().filter(|_| mark.journal == journal.identity())?;
    let record = journal.recorded(id).ok().flatten()?;
    if let Some(overlay) = record.overlay
        && record.handover != Handover::Gone
    {
        return Some(goes_on_in(&mark, overlay));
    }
    if mark.of == Of::GuestOnDemand
        && matches!(record.handover, Handover::Gone | Handover::CommitSent)
    {
        let to = mark.destination.as_deref().unwrap_or("another host");
        return Some(format!(
            "the guest that went to {to} may lack what is here (vmm disk serve --list tells); when that is released, remove it"
        ));
    }
    let went_on_demand = mark.of == Of::DiskOnDemand && record.handover == Handover::Gone;
    let new = Path::new(mark.destination.as_deref().filter(|_| went_on_demand)?);
    let new = RawImage::open(new, Access::ReadOnly, Content::Container).ok()?;
    let of_new = read(&new, ARRIVING).and_then(Result::ok)?;
    (of_new.of == Of::DiskOnDemand && of_new.migration == mark.migration).then(|| {
        let new = mark.destination.as_deref().unwrap_or_default();
        format!("the disk at {new} lacks what is here: vmm disk pull {new} brings it there")
    })
}

/// Why the disk may be elsewhere whose image this is, as its marks and the journal in `folder` tell; `None` where it is
/// here.
///
/// # Errors
/// When it has marks, and the journal cannot be opened.
pub(crate) fn why_stale(image: &RawImage, folder: &Path) -> Result<Option<String>, JournalError> {
    if !are_on(image) {
        return Ok(None);
    }
    let found = whereabouts(image, &FileJournal::open(folder)?);
    Ok(match found {
        Whereabouts::Here => None,
        Whereabouts::Gone(why) | Whereabouts::Unknown(why) => Some(why),
    })
}

/// What became of an image that was being made.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Arrival {
    /// It is the guest's disk, or was.
    Came,
    /// It is, together with the image that it was moved from.
    InPart,
    /// It is not the disk, and what is may need it; why.
    InChain(String),
    /// It never was, and nobody can say otherwise.
    Never(Of),
    /// Another journal tells, or none can be read.
    Unknown(Of),
}

fn arrival(mark: &Mark, journal: &dyn Journal) -> Arrival {
    match (recorded(mark, journal), mark.lies) {
        // It would not be sealed.
        (Arrival::Came, Lies::Within) => Arrival::Never(mark.of),
        (arrival, _) => arrival,
    }
}

/// What `journal` says became of it.
fn recorded(mark: &Mark, journal: &dyn Journal) -> Arrival {
    let unknown = Arrival::Unknown(mark.of);
    let id = match mark.id() {
        Some(id) if mark.journal == journal.identity() => id,
        _ => return unknown,
    };
    match mark.guest_went(journal) {
        Some(Whereabouts::Gone(_)) => return Arrival::Never(mark.of),
        Some(Whereabouts::Unknown(why)) => return Arrival::InChain(why),
        Some(Whereabouts::Here) | None => {}
    }
    match mark.of {
        Of::Migration | Of::GuestOnDemand => match (journal.decision(id), journal.answered(id)) {
            (Ok(None | Some(Decision::GiveUp)), _) => Arrival::Never(mark.of),
            // It could not be started, which took the commit back.
            (Ok(Some(Decision::Commit)), Ok(Some(Resolution::NeverRan))) => Arrival::Never(mark.of),
            (Ok(Some(Decision::Commit)), Ok(_)) if mark.of == Of::GuestOnDemand => Arrival::InPart,
            (Ok(Some(Decision::Commit)), Ok(_)) => Arrival::Came,
            (Err(_), _) | (_, Err(_)) => unknown,
        },
        Of::DiskOnDemand => match journal.recorded(id).ok().flatten() {
            Some(record) if record.handover == Handover::Gone => Arrival::InPart,
            Some(_) => Arrival::Never(mark.of),
            None => unknown,
        },
        Of::DiskMove => match journal.recorded(id).ok().flatten() {
            Some(record) => in_move(mark, &record),
            None => unknown,
        },
    }
}

/// What became of an image that was being made for a disk that moves on its host.
fn in_move(mark: &Mark, record: &SourceRecord) -> Arrival {
    let part = mark.course.as_ref().map_or(Part::New, |course| course.part);
    let is_over = record.handover == Handover::Gone;
    match (part, record.overlay) {
        (Part::New, None) if is_over => Arrival::Came,
        (Part::Overlay(number), Some(overlay)) if overlay.number == number => Arrival::Came,
        // The one below, until the next step of the move.
        (Part::Overlay(_), Some(overlay)) if !is_over => {
            Arrival::InChain(goes_on_in(mark, overlay))
        }
        (Part::New, Some(overlay)) if overlay.base == OverlayBase::New => {
            Arrival::InChain(goes_on_in(mark, overlay))
        }
        (Part::New | Part::Overlay(_), _) => Arrival::Never(mark.of),
        // Nothing comes to the image that the disk had before.
        (Part::Old, _) => Arrival::Unknown(mark.of),
    }
}

fn goes_on_in(mark: &Mark, overlay: Overlay) -> String {
    let id = &mark.migration;
    let at = mark
        .course
        .as_ref()
        .map(|course| course.overlays.path(overlay.number));
    let at = at.unwrap_or_else(|| "an overlay".into());
    format!(
        "the disk goes on in {at} (qcow2), which may need this image below it, since job {id} was cut short or told to \
         leave it so"
    )
}

/// The move by way of overlays of which `image` has a mark, and which was cut short while the disk was in one of them.
pub(crate) fn unsettled(image: &RawImage, journal: &dyn Journal) -> Option<Unsettled> {
    let marks = [ARRIVING, LEAVING].into_iter();
    let mut marks = marks.filter_map(|name| read(image, name).and_then(Result::ok));
    marks.find_map(|mark| {
        if mark.given_away(journal).is_some() {
            return None;
        }
        let id = mark.id().filter(|_| mark.journal == journal.identity())?;
        let record = journal.recorded(id).ok().flatten()?;
        let overlay = record.overlay?;
        let overlays = mark.course?.overlays;
        (record.handover == Handover::Begun).then_some(Unsettled {
            id,
            overlay,
            overlays,
            record,
        })
    })
}

/// A move by way of overlays that was cut short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unsettled {
    pub(crate) id: MigrationId,
    /// Where the disk is.
    pub(crate) overlay: Overlay,
    /// All that it may consist of.
    pub(crate) overlays: Overlays,
    pub(crate) record: SourceRecord,
}
