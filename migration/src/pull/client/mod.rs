//! Who lacks units: asks for them over connections that are made again when they are lost.

mod desk;
mod error;
mod lane;
mod puller;
mod terms;

pub use error::PullError;
pub use puller::PullClient;
pub use terms::{Lost, Options, Presence, Wanted};
