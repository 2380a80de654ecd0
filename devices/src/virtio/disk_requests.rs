//! Requests that a device has carried out by a disk, of which several are in flight at once.

use block::{Action, Durability};

use super::backing::Backing;
use super::chain::{BadRequest, Chain};

/// What a request asks for, as it was read from the guest's memory, once.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// Type of the request.
    pub(super) request: u32,
    /// Bytes that may be written for it, the status aside.
    pub(super) room: u64,
    /// Whether its driver takes it for durable when it has ended.
    pub(super) durability: Durability,
    /// How many of its actions have ended.
    pub(super) done: u64,
}

/// What is to be done for a request next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The disk is to do this, with the buffers that the chain has laid out.
    Submit(Action),
    /// It is done; the number of bytes written to the guest's memory.
    Complete(u32),
}

/// A device whose requests a disk carries out. Each is one or more actions, one after the other.
pub trait DiskRequests: Send + Sync {
    /// What carries them out.
    fn backing(&self) -> &Backing;

    /// Reads a request of a driver that accepted `features`.
    ///
    /// # Errors
    /// When it is not even well-formed enough to be refused in its status.
    fn begin(&self, chain: &mut Chain<'_>, features: u64) -> Result<(Asked, Next), BadRequest>;

    /// An action has ended.
    ///
    /// # Errors
    /// As [`DiskRequests::begin`].
    fn ended(
        &self,
        chain: &mut Chain<'_>,
        asked: &mut Asked,
        result: block::Result<()>,
    ) -> Result<Next, BadRequest>;
}
