//! Saved state as bytes: KVM's structures with exact lengths, components with versions of their own, and
//! the codec of all of them.

pub mod agreement;
pub mod bytes;
pub mod codec;
pub mod component;
pub mod saved;
