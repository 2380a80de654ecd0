//! Why a copy stops.

use crate::Error;

/// Why a copy has stopped.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// It was told to.
    #[error("it was cancelled")]
    Cancelled,
    /// The disk cannot be read.
    #[error("the disk cannot be read")]
    Source(#[source] Error),
    /// The target cannot be written.
    #[error("the target cannot be written")]
    Target(#[source] Error),
    /// More was left than may be copied while no request is carried out.
    #[error("{left} bytes were left, of which {most} may be copied while requests wait")]
    TooMuch {
        /// Bytes that were left.
        left: u64,
        /// Bytes that would have been few enough.
        most: u64,
    },
}
