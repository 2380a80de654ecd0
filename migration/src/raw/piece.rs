//! What a frame is made of.

use std::io;

use super::slice::RamSlice;

/// A part of a frame, which is its pieces in their order.
///
/// A frame is sent from, or received into, one buffer of plain bytes and guest memory. Pieces name places in
/// the buffer instead of borrowing from it, so a list of them outlives the frame and is used for the next.
#[derive(Clone, Copy)]
pub enum Piece<'a> {
    /// Plain bytes of the frame's buffer.
    Bytes {
        /// Where they begin in the buffer.
        at: usize,
        /// How many.
        len: usize,
    },
    /// Guest memory.
    Ram(RamSlice<'a>),
}

impl Piece<'_> {
    /// All of a buffer.
    pub fn all(bytes: &[u8]) -> Self {
        Self::Bytes {
            at: 0,
            len: bytes.len(),
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes { len, .. } => *len,
            Self::Ram(slice) => slice.len(),
        }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether all `pieces` of bytes lie in a buffer of `len`.
///
/// # Errors
/// `InvalidInput` when one does not.
pub(super) fn check(pieces: &[Piece<'_>], len: usize) -> io::Result<()> {
    let is_inside = |piece: &Piece<'_>| match *piece {
        Piece::Bytes { at, len: of } => at.checked_add(of).is_some_and(|end| end <= len),
        Piece::Ram(_) => true,
    };
    match pieces.iter().all(is_inside) {
        true => Ok(()),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// The bytes of a frame in a row, for a transport that carries no guest memory.
///
/// # Errors
/// `InvalidInput` when a piece lies outside of `bytes`.
pub fn gather(bytes: &[u8], pieces: &[Piece<'_>]) -> io::Result<Vec<u8>> {
    check(pieces, bytes.len())?;
    let mut frame = Vec::with_capacity(pieces.iter().map(Piece::len).sum());
    for piece in pieces {
        match *piece {
            Piece::Bytes { at, len } => frame.extend_from_slice(&bytes[at..at + len]),
            Piece::Ram(slice) => {
                let at = frame.len();
                frame.resize(at + slice.len(), 0);
                slice.copy_to(&mut frame[at..]);
            }
        }
    }
    Ok(frame)
}

/// Has `read` give each piece its bytes, one after the other, as [`gather`]'s counterpart.
///
/// # Errors
/// `InvalidInput` when a piece lies outside of `bytes`, before anything is read; else as of `read`.
pub fn scatter(
    bytes: &mut [u8],
    pieces: &[Piece<'_>],
    mut read: impl FnMut(&mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    check(pieces, bytes.len())?;
    let mut buffer = Vec::new();
    for piece in pieces {
        match *piece {
            Piece::Bytes { at, len } => read(&mut bytes[at..at + len])?,
            Piece::Ram(slice) => {
                buffer.resize(slice.len(), 0);
                read(&mut buffer)?;
                slice.copy_from(&buffer);
            }
        }
    }
    Ok(())
}
