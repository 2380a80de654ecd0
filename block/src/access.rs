//! What an image is opened for, which decides over its locks and over the file below it as well.

/// What an image is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading only; shared with other readers.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}
