//! A disk whose guest is elsewhere and has not got all of it: served here by a process of its own, asked for there.

mod awaiting;
pub(crate) mod chain;
mod error;
pub(crate) mod gate;
pub(crate) mod here;
mod image;
pub(crate) mod origin;
mod pulling;
pub(crate) mod reaching;
mod record;
mod records;
mod serve;
mod to_serve;

pub use awaiting::{Awaited, Waited, Word};
pub use error::ServeError;
pub use image::ServedImage;
pub use origin::PulledOrigin;
pub use pulling::{Pulled, ToPull, begin, complete};
pub use record::{Progress, ServedWhen, ServingRecord};
pub use records::{Held, Listed, Records, given};
pub use serve::{open, serve};
pub use to_serve::ToServe;
