//! Files that a VM is passed after its start: open descriptors, by whoever asks for something to be done with them.
//!
//! The process of a VM opens nothing by name once its guest runs. A client opens the file with its own rights and passes
//! the descriptor at `files.sock`, beside the control socket; it is answered with an identifier, by which a request at
//! the control socket names the file. That request takes it ([`PassedFiles::claim`]). What nobody has taken is closed
//! when the client's connection ends, and a connection ends that says nothing for too long. So a client keeps its
//! connection until its request was answered, and then closes its own descriptor, too: both are of one open file, and
//! share its flags and locks.
//!
//! Packets (`SOCK_SEQPACKET`) keep a message and its descriptors together, and whole. See
//! `docs/adr/0011-files-from-whoever-asks.md`.

mod client;
mod fit;
mod kept;
mod message;
mod server;
mod socket;

pub use client::Passer;
pub use kept::{PassedFile, PassedFiles};
pub use message::{
    Answer, FILES_LIMIT, FileAccess, FileId, FileKind, FileNote, KeptFile, KeptFiles,
    MESSAGE_LIMIT, Passing, VERSION,
};
pub use socket::FilesSocket;

pub(crate) use server::{CONNECTIONS, Patience, serve};

#[cfg(test)]
mod tests;
