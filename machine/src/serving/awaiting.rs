//! An image whose guest is about to leave it on demand: who is to serve it is there before, and takes it over when the guest has
//! gone.
//!
//! The guest's VM owns the image until it has let go of it, by its own word or by its end; so whoever gets the claim of a reader
//! finds an image that nobody changes any more. What became of the guest is in the journal then: given away, or not.

use std::path::Path;
use std::thread;
use std::time::Duration;

use block::image::Image;
use block::{Access, Claim, Content, RawImage};
use migration::MigrationId;
use migration::journal::Journal;

use super::error::ServeError;
use super::image::{self, ServedImage};
use super::record::{Progress, ServedWhen, ServingRecord};
use super::records::{Held, Records};
use super::to_serve::{self, ToServe};
use crate::disks::marks::{self, Departure};

/// How often it is looked whether the guest has gone.
const LOOK: Duration = Duration::from_millis(10);

/// What whoever has asked for the guest's move says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Nothing, so far or any more.
    None,
    /// The guest stays.
    Stays,
}

/// What became of the guest.
pub enum Waited {
    /// It has gone: its image is here to be served.
    Gone(Box<ServedImage>),
    /// It stays, and nothing is recorded of its image any more.
    Stayed,
}

/// An image that is going to be served when its guest has gone; recorded.
pub struct Awaited<'a> {
    what: ToServe<'a>,
    record: ServingRecord,
    held: Held,
    /// By which it is looked whose it is; nothing else is read here.
    file: RawImage,
}

impl<'a> Awaited<'a> {
    /// Records an image that a guest uses, and that can be read here.
    ///
    /// # Errors
    /// When it cannot, or somebody depends on it from before.
    pub fn begin(records: &Records, what: ToServe<'a>) -> Result<Self, ServeError> {
        // As it is going to be opened. Its tables change as yet, and are read later.
        let seen = Image::open_beside_owner(what.image, Access::ReadOnly, what.format, what.rules);
        let size = seen.map_err(ServeError::Image)?.device().size();
        let file = RawImage::open(what.image, Access::ReadOnly, Content::Container);
        let file = file.map_err(ServeError::Image)?;
        if let Some(found) = records.find(what.image)? {
            let held = records.hold(&found)?;
            match found.progress {
                Progress::Serving { .. } => {
                    return Err(ServeError::Needed {
                        path: found.image,
                        client: found.client.unwrap_or_else(|| "a client".into()),
                    });
                }
                // Of a client that is whole, or of a guest that has not gone: it runs from the image.
                Progress::Released | Progress::Awaiting => held.remove()?,
            }
        }
        let (record, held) = to_serve::begin(records, &what, size, ServedWhen::GuestHasGone)?;
        let record = ServingRecord {
            progress: Progress::Awaiting,
            ..record
        };
        held.write(&record)?;
        Ok(Self {
            what,
            record,
            held,
            file,
        })
    }

    /// What is recorded of it.
    pub fn record(&self) -> &ServingRecord {
        &self.record
    }

    /// Waits until the guest has gone, or it is known that it stays; `word` is asked meanwhile.
    ///
    /// # Errors
    /// When the image cannot be read that the guest has left: its record stays, and the same command tries again.
    pub fn wait(
        self,
        journal: &dyn Journal,
        word: &mut dyn FnMut() -> Word,
    ) -> Result<Waited, ServeError> {
        let mut under: Option<MigrationId> = None;
        loop {
            match self.file.claim() {
                Ok(claim) => return self.decide(journal, claim),
                Err(block::Error::InUse { .. } | block::Error::InUseByQemu { .. }) => {}
                Err(error) => return Err(ServeError::Image(error)),
            }
            let stays = word() == Word::Stays || self.stays(journal, &mut under);
            if stays {
                self.held.remove()?;
                return Ok(Waited::Stayed);
            }
            thread::sleep(LOOK);
        }
    }

    /// Whether the guest, whose VM has the image, was about to go by a migration, which has come to nothing.
    fn stays(&self, journal: &dyn Journal, under: &mut Option<MigrationId>) -> bool {
        match marks::departure(&self.file, journal) {
            Departure::Under(id) | Departure::Given(id) => {
                let before = under.replace(id);
                before.is_some_and(|before| before != id)
            }
            Departure::Stayed(id) => *under == Some(id),
            Departure::NotBegun => under.is_some(),
        }
    }

    /// Nobody has the image any more.
    fn decide(self, journal: &dyn Journal, claim: Claim) -> Result<Waited, ServeError> {
        if !has_gone(&self.file, journal) {
            self.held.remove()?;
            return Ok(Waited::Stayed);
        }
        let ToServe {
            image: path,
            format,
            rules,
            ..
        } = self.what;
        let opened = image::open(path, format, rules, journal)?;
        drop(claim);
        let missing = opened.held();
        let served = ServedImage::new(opened, self.record, self.held);
        served.note(Progress::Serving { missing })?;
        Ok(Waited::Gone(Box::new(served)))
    }
}

/// Whether the guest whose image this was, which nobody uses, was given away on demand.
fn has_gone(image: &RawImage, journal: &dyn Journal) -> bool {
    match marks::departure(image, journal) {
        // Whether it runs there may not be known; if it does, it needs the image.
        Departure::Given(_) => true,
        // Whoever was to give it away has ended before it could.
        Departure::NotBegun | Departure::Under(_) | Departure::Stayed(_) => false,
    }
}

/// Checks that the guest whose image is at `path` has gone, which nobody uses; `held` is the record of it, which goes if it has
/// not.
///
/// # Errors
/// [`ServeError::Stayed`].
pub(super) fn check_gone(
    path: &Path,
    held: Held,
    journal: &dyn Journal,
) -> Result<Held, ServeError> {
    let image = RawImage::open(path, Access::ReadOnly, Content::Container);
    if has_gone(&image.map_err(ServeError::Image)?, journal) {
        return Ok(held);
    }
    held.remove()?;
    Err(ServeError::Stayed {
        path: path.to_owned(),
    })
}
