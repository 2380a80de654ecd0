//! What the options of a machine are held to, whichever way they are given.

use std::path::PathBuf;

use migration::observation::{Observation, Side};

/// Longest id of a disk or an interface: what the virtio-blk serial number holds.
pub const MAX_ID: usize = 20;

/// What is wrong with the option that `id` names.
pub(super) fn usage(id: &str, message: impl Into<String>) -> Observation {
    Observation::new(Side::Client, format!("usage.{id}"), message)
}

/// Gives the option `key` its value, the only one: of two, neither is surely what is meant.
///
/// # Errors
/// A sentence for the user when it has one already.
pub fn set_once<T>(slot: &mut Option<T>, key: &str, value: T) -> Result<(), String> {
    if slot.is_some() {
        return Err(format!("{key} is given twice"));
    }
    *slot = Some(value);
    Ok(())
}

/// Says what is wrong with the id of a disk or an interface.
pub(super) fn check_id(id: &str) -> Result<(), String> {
    let fits = (1..=MAX_ID).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if fits {
        return Ok(());
    }
    Err(format!(
        "{id:?}: 1 to {MAX_ID} letters, digits, '-' or '_' are needed"
    ))
}

pub(crate) fn check_disk_id(id: &str) -> Result<(), Observation> {
    check_id(id).map_err(|what| usage("disk", format!("disk id {what}")))
}

/// The path seen from any working directory; as it is when that cannot be told.
pub(super) fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}
