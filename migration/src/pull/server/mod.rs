//! Who has the units: answers any number of connections of one client, until that is whole and durable.

mod connection;
mod queue;
mod serving;
mod shared;
mod source;
mod terms;
mod volume;

pub use serving::PullServer;
pub use source::PullSource;
pub use terms::{Options, Served};
pub use volume::ServedVolume;
