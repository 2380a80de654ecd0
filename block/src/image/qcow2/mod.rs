//! qcow2 images, read and written through the crate imago, with what it leaves to its user.
//!
//! imago maps, allocates and copies. Around it, here, is what keeps an image whole whatever it holds and
//! whenever the process ends (see `docs/adr/0014-qcow2-through-imago.md`):
//!
//! - [`header`] reads the header first, without trust, and [`Refusal`] names what is not used.
//! - `tables` reads the tables that all else hangs on, before anything is believed of them.
//! - [`chain`] opens the files below, in the folders where that is permitted.
//! - `storage` is the file as imago sees it: it orders what is written of data and tables, and says in the
//!   image that it is in use while its reference counts may be wrong.
//! - `recount` makes the reference counts anew for an image whose user ended in the middle.
//! - [`overlay`] is an image over one that is in use: it gets another one below it, and is made empty again.
//! - [`Qcow2Image`] is the disk; [`check`], [`create`] and [`resize`] are for the command line.

pub mod chain;
pub mod check;
pub mod create;
mod disk;
mod entry;
pub mod header;
pub mod overlay;
mod recount;
mod refusal;
pub mod resize;
mod storage;
mod tables;
mod trim;

pub use chain::{BackingRules, Below};
pub use disk::Qcow2Image;
pub use header::Header;
pub use refusal::{Feature, Refusal};
