//! Identifiers: the migration's name, the host's, and the secret that binds its connections together.

use std::fmt;
use std::io::Read;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Identifier of a migration: 16 bytes, written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MigrationId(pub [u8; 16]);

/// Text that is no identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no identifier: expected 32 hexadecimal digits")]
pub struct IdError(String);

impl MigrationId {
    /// A fresh identifier.
    ///
    /// # Errors
    /// When the system has no random numbers to give.
    pub fn random() -> std::io::Result<Self> {
        random_bytes().map(Self)
    }
}

/// Whether both are the same secret; how long that takes tells nothing of where they differ.
pub(crate) fn is_same_secret(ours: &[u8; 16], shown: &[u8; 16]) -> bool {
    let differing = ours.iter().zip(shown).fold(0, |differing, (a, b)| {
        // Each byte is looked at, whatever a compiler makes of the ones before.
        std::hint::black_box(differing | (a ^ b))
    });
    differing == 0
}

/// 16 bytes that nobody can guess.
pub(crate) fn random_bytes() -> std::io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// What only the two ends of a pull know: 16 bytes, written as 32 hexadecimal digits, and not shown by accident.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PullSecret(pub [u8; 16]);

impl PullSecret {
    /// A fresh secret.
    ///
    /// # Errors
    /// When the system has no random numbers to give.
    pub fn random() -> std::io::Result<Self> {
        random_bytes().map(Self)
    }
}

impl PartialEq for PullSecret {
    fn eq(&self, other: &Self) -> bool {
        // Hashes are compared in a time that says nothing of where they differ.
        blake3::hash(&self.0) == blake3::hash(&other.0)
    }
}

impl Eq for PullSecret {}

impl From<PullSecret> for String {
    fn from(secret: PullSecret) -> Self {
        MigrationId(secret.0).to_string()
    }
}

impl TryFrom<String> for PullSecret {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        // What is no secret is not told either.
        read_hexadecimal(&text)
            .map(Self)
            .map_err(|_| IdError("...".into()))
    }
}

impl fmt::Debug for PullSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PullSecret")
    }
}

/// Identity of a host: that of the journal which answers for it. 16 bytes, written as 32 hexadecimal
/// digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct HostId(pub [u8; 16]);

impl HostId {
    /// A fresh identity.
    ///
    /// # Errors
    /// When the system has no random numbers to give.
    pub fn random() -> std::io::Result<Self> {
        random_bytes().map(Self)
    }
}

impl From<HostId> for String {
    fn from(id: HostId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for HostId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hexadecimal(&self.0, f)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for HostId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        read_hexadecimal(text).map(Self)
    }
}

fn write_hexadecimal(bytes: &[u8; 16], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn read_hexadecimal(text: &str) -> Result<[u8; 16], IdError> {
    let wrong = || IdError(text.chars().take(64).collect());
    if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let mut bytes = [0; 16];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
    }
    Ok(bytes)
}

impl fmt::Display for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hexadecimal(&self.0, f)
    }
}

impl fmt::Debug for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MigrationId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        read_hexadecimal(text).map(Self)
    }
}
