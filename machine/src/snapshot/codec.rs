//! The binary codec of saved state; the only module that knows which crate does it.
//!
//! Little-endian, integers of fixed width, lengths as 64 bits: what bincode 1 wrote by default and
//! what wincode reads, which is the way out (docs/adr/0001-state-codec.md). A header of its own
//! carries magic and version, so that a blob of another version is refused by name.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Longest state that is read: registers and devices take some 10 KiB a vCPU.
pub const MAX_STATE: usize = 16 << 20;

const MAGIC: [u8; 4] = *b"VMMS";

/// Saved state that cannot be written or read.
#[derive(Debug, Error)]
pub enum CodecError {
    /// It does not begin as our states do.
    #[error("this is not a saved machine state")]
    Magic,
    /// It was saved by a version that this one cannot read.
    #[error("saved state has version {found}, this version reads {expected}")]
    Version {
        /// Version in the blob.
        found: u32,
        /// Version that is read here.
        expected: u32,
    },
    /// It is longer than any machine's state.
    #[error("saved state of {0} bytes is longer than {MAX_STATE}")]
    TooLong(usize),
    /// It ends early, has bytes left, or a field is out of range.
    #[error("saved state is damaged")]
    Decode(#[source] bincode::error::DecodeError),
    /// Bytes follow the state.
    #[error("saved state has {0} bytes too many")]
    Trailing(usize),
    /// It says what the version in which it is to be written cannot say.
    #[error("{0}")]
    Unsayable(String),
    /// It could not be written.
    #[error("state cannot be written")]
    Encode(#[source] bincode::error::EncodeError),
}

fn config<const LIMIT: usize>() -> impl bincode::config::Config {
    bincode::config::legacy().with_limit::<LIMIT>()
}

/// Reads the start of `body`, and how much of it that took.
///
/// bincode makes room for as many bytes as a length in the state claims, up to a limit that is a
/// constant. So the limit is chosen by the length of the state: a short one that claims to hold much
/// is refused before room is made for it.
fn read_start<T: DeserializeOwned>(body: &[u8]) -> Result<(T, usize), bincode::error::DecodeError> {
    use bincode::serde::decode_from_slice as read;

    const SHORT: usize = 16 << 10;
    const MEDIUM: usize = 128 << 10;
    const LONG: usize = 2 << 20;
    match body.len() * 2 {
        length if length <= SHORT => read(body, config::<SHORT>()),
        length if length <= MEDIUM => read(body, config::<MEDIUM>()),
        length if length <= LONG => read(body, config::<LONG>()),
        _ => read(body, config::<MAX_STATE>()),
    }
}

fn write_to<T: Serialize>(state: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    bincode::serde::encode_into_std_write(state, out, config::<MAX_STATE>())
        .map_err(CodecError::Encode)?;
    check_length(out)
}

fn check_length(bytes: &[u8]) -> Result<(), CodecError> {
    match bytes.len() {
        length if length > MAX_STATE => Err(CodecError::TooLong(length)),
        _ => Ok(()),
    }
}

/// Writes the body of a component, whose version is told elsewhere.
///
/// # Errors
/// When it would be longer than [`MAX_STATE`].
pub fn write<T: Serialize>(state: &T) -> Result<Vec<u8>, CodecError> {
    let mut body = Vec::new();
    write_to(state, &mut body)?;
    Ok(body)
}

/// Reads what [`write`] wrote.
///
/// # Errors
/// When it is damaged or too long; what is allocated is bounded by its length.
pub fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, CodecError> {
    check_length(body)?;
    let (state, taken) = read_start(body).map_err(CodecError::Decode)?;
    match body.len() - taken {
        0 => Ok(state),
        left => Err(CodecError::Trailing(left)),
    }
}

/// Writes `state` as version `version`.
///
/// # Errors
/// When it would be longer than [`MAX_STATE`].
pub fn encode<T: Serialize>(version: u32, state: &T) -> Result<Vec<u8>, CodecError> {
    let mut blob = Vec::with_capacity(64 << 10);
    blob.extend_from_slice(&MAGIC);
    blob.extend_from_slice(&version.to_le_bytes());
    write_to(state, &mut blob)?;
    Ok(blob)
}

/// The version in the header of `blob`, and what follows it.
fn split(blob: &[u8]) -> Result<(u32, &[u8]), CodecError> {
    let (magic, rest) = blob.split_first_chunk::<4>().ok_or(CodecError::Magic)?;
    let (version, body) = rest.split_first_chunk::<4>().ok_or(CodecError::Magic)?;
    match *magic {
        MAGIC => Ok((u32::from_le_bytes(*version), body)),
        _ => Err(CodecError::Magic),
    }
}

/// The version that `blob` was written as.
///
/// # Errors
/// When it is no state of ours.
pub fn version(blob: &[u8]) -> Result<u32, CodecError> {
    split(blob).map(|(version, _)| version)
}

/// Reads a state of exactly version `version`.
///
/// # Errors
/// When it is damaged, too long, or of another version; what is allocated is bounded by its length.
pub fn decode<T: DeserializeOwned>(version: u32, blob: &[u8]) -> Result<T, CodecError> {
    check_length(blob)?;
    let (found, body) = split(blob)?;
    if found != version {
        return Err(CodecError::Version {
            found,
            expected: version,
        });
    }
    read(body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn another_version_is_refused_by_name() {
        let blob = encode(7, &vec![1_u8, 2]).unwrap();
        assert!(matches!(
            decode::<Vec<u8>>(8, &blob).unwrap_err(),
            CodecError::Version {
                found: 7,
                expected: 8
            }
        ));
        assert_eq!(decode::<Vec<u8>>(7, &blob).unwrap(), [1, 2]);
    }

    #[test]
    fn bytes_too_many_or_too_few_are_refused() {
        let mut blob = encode(1, &(5_u32, vec![9_u64])).unwrap();
        assert!(decode::<(u32, Vec<u64>)>(1, &blob[..blob.len() - 1]).is_err());
        blob.push(0);
        assert!(matches!(
            decode::<(u32, Vec<u64>)>(1, &blob).unwrap_err(),
            CodecError::Trailing(1)
        ));
    }

    proptest! {
        #[test]
        fn garbage_never_panics_nor_allocates_what_it_asks_for(
            body in proptest::collection::vec(any::<u8>(), 0..256)
        ) {
            let mut blob = MAGIC.to_vec();
            blob.extend_from_slice(&1_u32.to_le_bytes());
            blob.extend_from_slice(&body);
            let _ = decode::<Vec<crate::vcpu::state::VcpuStateV1>>(1, &blob);
        }
    }
}
