//! What tracking the changes of a disk costs its writes.

mod figures;
mod measure;

pub use figures::TrackingFigures;
pub(super) use measure::{NEEDED_SPACE, measure, needed_memory};
