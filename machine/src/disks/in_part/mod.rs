//! Disks of which a part is in one image and the rest elsewhere: what of it is where, in a file beside the newer one.
//!
//! The map lies beside its image, under its name with an ending, and says in its note who has the rest. So whoever
//! finds the image after a crash finds what it lacks.

mod filling;
mod image_file;
mod images;
mod lack;
mod lacks;
mod map_file;
mod removal;
mod served;
mod terms;

pub use images::{Completed, complete};
pub(crate) use images::{OtherImage, remove_whole_map};
pub(crate) use lack::{Lack, lack_of};
pub(crate) use map_file::Note;
pub use map_file::{MapFile, ServedBy};
pub use removal::remove_map;
pub(crate) use served::{Absent, Comes, ServedPart, begin_arriving, held_of};
pub use served::{begin, served_by};
pub(crate) use terms::Terms;
