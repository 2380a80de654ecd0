//! KVM's structures as bytes of exactly their length.
//!
//! The serde implementations of kvm-bindings pad and truncate silently; these do neither.

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A saved structure is not as long as the kernel's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the saved state of {what} has {found} bytes, not {expected}")]
pub struct BytesError {
    /// Which structure.
    pub what: &'static str,
    /// Bytes that it has here.
    pub expected: usize,
    /// Bytes that were saved.
    pub found: usize,
}

/// The structure's bytes.
pub fn of<T: IntoBytes + Immutable>(value: &T) -> Vec<u8> {
    value.as_bytes().to_vec()
}

/// The structure that has these bytes.
///
/// # Errors
/// When there are more or fewer than the structure has.
pub fn to<T: FromBytes>(what: &'static str, saved: &[u8]) -> Result<T, BytesError> {
    T::read_from_bytes(saved).map_err(|_| BytesError {
        what,
        expected: size_of::<T>(),
        found: saved.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_structure_of_another_length_is_refused() {
        let regs = kvm_bindings::kvm_regs {
            rip: 0x1234,
            ..Default::default()
        };
        let saved = of(&regs);
        assert_eq!(to::<kvm_bindings::kvm_regs>("regs", &saved).unwrap(), regs);
        assert!(to::<kvm_bindings::kvm_regs>("regs", &saved[1..]).is_err());
        let mut long = saved;
        long.push(0);
        assert!(to::<kvm_bindings::kvm_regs>("regs", &long).is_err());
    }
}
