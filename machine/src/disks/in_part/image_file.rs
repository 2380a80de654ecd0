//! Images that a map tells of, opened and claimed.

use std::path::Path;

use block::image::qcow2::BackingRules;
use block::image::{Format, Image};
use block::{Access, Claim, Content};
use migration::observation::{Observation, Side};

use super::map_file::{failed, in_part};

/// The format that the map of the image at `path` names.
pub(super) fn format_of(path: &Path, text: &str) -> Result<Format, Observation> {
    text.parse().map_err(|e: String| in_part(path, e))
}

/// Opens the image at `at`, of which the map of the image at `path` says that it has this format, and claims it.
///
/// # Errors
/// `disk.in-part` when it is no such image, `disk.claim` when somebody uses it.
pub(super) fn open(
    path: &Path,
    (at, format): (&Path, &str),
    rules: &BackingRules,
) -> Result<(Image, Claim), Observation> {
    let format = format_of(path, format)?;
    // Also one that is only read is claimed as what is written: nobody is to write it meanwhile.
    let image = Image::open(at, Access::ReadWrite, format, Content::Raw, rules);
    let image = image.map_err(|e| failed(path, &e))?;
    let claim = image.claim();
    let claim = claim.map_err(|e| Observation::from_error(Side::Client, "disk.claim", &e))?;
    Ok((image, claim))
}
