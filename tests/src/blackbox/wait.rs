//! Waiting for what must happen, with a deadline that only a broken product reaches.

use std::time::Duration;

/// How long anything may take before it counts as hung; generous, because the machine is shared.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks `look` until it has an answer.
///
/// # Panics
/// When there is none within [`PATIENCE`].
#[track_caller]
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    match crate::eventually(PATIENCE, look) {
        Some(found) => found,
        None => panic!("did not happen within {PATIENCE:?}: {what}"),
    }
}

/// Waits until `condition` is true.
///
/// # Panics
/// When it is not within [`PATIENCE`].
#[track_caller]
pub fn holds(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, || condition().then_some(()));
}
