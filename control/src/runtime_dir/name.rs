//! Names of VMs: which there may be, and in which order they are listed.

use migration::observation::Observation;

use super::error::failed;
use crate::state_dir::MIGRATIONS;

/// Checks a name: 1 to 64 letters, digits, `.`, `_` or `-`, beginning with a letter or digit.
///
/// # Errors
/// `usage.name`.
pub fn check_name(name: &str) -> Result<(), Observation> {
    let fits = (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && name != MIGRATIONS;
    if fits {
        return Ok(());
    }
    Err(failed(
        "usage.name",
        format!("{name:?} is not a name: 1 to 64 letters, digits, '.', '_' or '-' are needed"),
    ))
}

/// Orders `vm-2` before `vm-10`.
pub(super) fn natural(name: &str) -> (String, u64, String) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = name[stem.len()..].parse().unwrap_or(0);
    (stem.to_owned(), number, name.to_owned())
}
