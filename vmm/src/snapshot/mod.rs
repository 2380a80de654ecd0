//! Saved state as bytes: KVM's structures with exact lengths, and the codec of whole machines.

pub mod bytes;
pub mod codec;
