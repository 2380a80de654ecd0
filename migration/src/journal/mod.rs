//! Durable decisions, one record per migration and side.
//!
//! The destination's decision is made by whoever records it first: commit (the guest runs here) and
//! give-up (it never ran and never will) exclude each other, across threads, processes that share the
//! directory, and crashes. It is recorded only in room that was reserved for it before the source could
//! send its commit. What there is no room for was never on offer here, or was given up and forgotten: no
//! commit is accepted for it, and a stranger who asks about it leaves nothing.

mod contract;
mod error;
mod file;
mod identity;
mod memory;
mod prune;
mod record;
mod sector;

pub use contract::Journal;
pub use error::JournalError;
pub use file::FileJournal;
pub use memory::MemoryJournal;
pub use record::{Decision, Handover, Overlay, OverlayBase, SourceRecord};
