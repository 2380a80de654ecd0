//! What an image lacks of a disk that a guest is to use meanwhile.

use std::path::Path;

use block::image::Image;
use block::image::qcow2::BackingRules;
use migration::journal::Journal;
use migration::observation::Observation;

use super::images::OtherImage;
use super::map_file::{self, FoundMap, Rest};
use super::served::{Absent, Comes};

/// What an image lacks of its disk.
pub(crate) enum Lack {
    /// What another image of this host has.
    InImage(OtherImage),
    /// What is served.
    Served(Absent),
}

/// What `image`, which lies at `path`, is claimed and holds a part of its disk alone, lacks of that. It may be used from then on
/// together with that, when its guest is here. Files below another image are opened by `rules`.
///
/// # Errors
/// `disk.in-part` when it is no such image, or what it lacks is not where it was; `disk.claim` when somebody uses that.
pub(crate) fn lack_of(
    image: &Image,
    path: &Path,
    comes: Comes,
    journal: &dyn Journal,
    rules: &BackingRules,
) -> Result<Lack, Observation> {
    let FoundMap {
        storage,
        about,
        rest,
    } = map_file::find(path)?;
    match rest {
        Rest::Image(rest) => {
            let found = FoundMap {
                storage,
                about,
                rest,
            };
            found
                .other_image(image, path, journal, rules)
                .map(Lack::InImage)
        }
        Rest::Served(rest) => {
            let found = FoundMap {
                storage,
                about,
                rest,
            };
            let of = (&**image.file(), image.device().size());
            found.absent(of, path, comes, journal).map(Lack::Served)
        }
    }
}
