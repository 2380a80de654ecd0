//! What a block device begins with as long as it holds a part of a disk alone: it can have no mark beside its bytes.
//!
//! A *seal* lies where the disk's own beginning goes, which is put there last ([`crate::layer::sealed`]). So whoever finds the
//! device, this program or another, finds no disk in it, and is told why.

use super::raw::{ImageKind, RawImage};
use crate::{BlockDevice, Buffer, Result};

/// Bytes of a seal.
pub const SEAL: usize = 4096;
/// What one begins with, for people as well.
const SAYS: &[u8; 64] = b"vmm: a disk was being moved to this device, which is not whole.\n";
/// Where the length of its value stands, and then that.
const LEN_AT: usize = SAYS.len();
const VALUE_AT: usize = LEN_AT + 4;

/// Memory as storage wants it that takes whole blocks.
#[repr(align(4096))]
struct Page([u8; SEAL]);

/// A seal with this value; `None` where that is too long.
pub(crate) fn encode(value: &[u8]) -> Option<Box<[u8; SEAL]>> {
    let mut seal = Box::new([0; SEAL]);
    seal[..LEN_AT].copy_from_slice(SAYS);
    let len = u32::try_from(value.len()).ok()?;
    seal[LEN_AT..VALUE_AT].copy_from_slice(&len.to_le_bytes());
    seal.get_mut(VALUE_AT..VALUE_AT + value.len())?
        .copy_from_slice(value);
    Some(seal)
}

/// The value of what may be a seal; nothing in it if its length is none.
fn value(bytes: &[u8; SEAL]) -> Option<&[u8]> {
    let rest = bytes.strip_prefix(SAYS)?;
    let (len, rest) = rest.split_first_chunk()?;
    let len = u32::from_le_bytes(*len) as usize;
    Some(rest.get(..len).unwrap_or_default())
}

impl RawImage {
    /// The value of the seal that a block device begins with; `None` where it begins otherwise, or this is a file. A guest can
    /// write one, too.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn seal(&self) -> Result<Option<Vec<u8>>> {
        if self.kind() != ImageKind::BlockDevice || self.size() < SEAL as u64 {
            return Ok(None);
        }
        let mut page = Page([0; SEAL]);
        self.read(&[Buffer::new(&mut page.0)], 0)?;
        Ok(value(&page.0).map(<[u8]>::to_vec))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_has_its_value_and_nothing_else_is_one() {
        let read = |seal: &[u8; SEAL]| value(seal).map(<[u8]>::to_vec);
        let seal = encode(b"of a move").unwrap();
        assert_eq!(read(&seal), Some(b"of a move".to_vec()));
        let longest = vec![7; SEAL - VALUE_AT];
        assert_eq!(read(&encode(&longest).unwrap()), Some(longest.clone()));
        assert!(encode(&[&longest[..], b"1"].concat()).is_none());
        assert_eq!(read(&[0; SEAL]), None);
        let mut other = seal.clone();
        other[10] ^= 1;
        assert_eq!(read(&other), None);
        // One that somebody else made up.
        let mut long = seal;
        long[LEN_AT..VALUE_AT].fill(0xff);
        assert_eq!(read(&long), Some(Vec::new()));
    }
}
