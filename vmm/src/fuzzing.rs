//! What the fuzz targets need of the command line beyond the public interface, each behind a function that does
//! nothing more.

use crate::cli::{self, Keys};

/// What was typed: the bytes for the guest up to the first escape, and whether there was one.
pub fn typed(bytes: &[u8], terminal: bool) -> (Vec<u8>, bool) {
    let mut kept = Vec::new();
    let mut escaped = false;
    cli::hand_on(bytes, terminal, &mut |keys| match keys {
        Keys::Bytes(keys) => {
            kept.extend_from_slice(keys);
            true
        }
        Keys::Escape => {
            escaped = true;
            false
        }
    });
    (kept, escaped)
}
