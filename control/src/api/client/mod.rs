//! Client of a VM's control socket.

mod connection;
mod jobs;
mod lines;
mod migration;
mod vm;

pub use connection::Client;
pub(crate) use connection::unreachable_vm;
pub use lines::Lines;
