//! What a saved machine consists of: components, each with versions of its own.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError};

/// Most components: 16 vCPUs, two for each of 17 virtio slots, and what there is one of are 60.
pub const MAX_COMPONENTS: usize = 256;
/// Longest identity of a component.
pub const MAX_ID: usize = 80;

/// Whether this can be the identity of a component: short, and nothing that a terminal would obey.
pub(super) fn is_id(id: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=MAX_ID).contains(&id.len()) && id.bytes().all(fits)
}

/// Versions of a component, all from the oldest to the newest; `[1, 2]` in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")]
pub struct Versions {
    /// The oldest.
    pub oldest: u32,
    /// The newest.
    pub newest: u32,
}

impl Versions {
    /// The first alone.
    pub const FIRST: Self = Self {
        oldest: 1,
        newest: 1,
    };

    /// Whether `version` is one of them.
    pub fn contains(self, version: u32) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }

    /// The newest that is also one of `others`.
    pub fn newest_of(self, others: Self) -> Option<u32> {
        let newest = self.newest.min(others.newest);
        (self.contains(newest) && others.contains(newest)).then_some(newest)
    }
}

impl From<(u32, u32)> for Versions {
    fn from((oldest, newest): (u32, u32)) -> Self {
        Self { oldest, newest }
    }
}

impl From<Versions> for (u32, u32) {
    fn from(Versions { oldest, newest }: Versions) -> Self {
        (oldest, newest)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { oldest, newest } = self;
        if newest == oldest {
            write!(f, "version {newest}")
        } else {
            write!(f, "versions {oldest} to {newest}")
        }
    }
}

/// The newest form of a component's state that this program knows, and how older ones are written and read.
///
/// A struct that has had no other version is a [`FirstVersion`]. A `V2` implements this itself: version 1
/// is written by converting to the `V1` and read by converting from it.
pub trait Component: Sized {
    /// What it is: letters, digits and `-`. Where there can be several, an identity is this, a dot and a name.
    const KIND: &'static str;
    /// Versions that are written and read here.
    const VERSIONS: Versions;

    /// The state in `version`, which is one of [`Component::VERSIONS`].
    ///
    /// # Errors
    /// When it would be too long.
    fn write(&self, version: u32) -> Result<Vec<u8>, CodecError>;

    /// Reads a state in `version`, which is one of [`Component::VERSIONS`].
    ///
    /// # Errors
    /// When it is damaged.
    fn read(version: u32, body: &[u8]) -> Result<Self, CodecError>;

    /// Identity of the one that has this name.
    fn named(name: &str) -> String {
        format!("{}.{name}", Self::KIND)
    }

    /// Identity of the one with this number, counted from 0.
    fn numbered(number: usize) -> String {
        Self::named(&number.to_string())
    }
}

/// A component that has had only one version.
pub trait FirstVersion: Serialize + DeserializeOwned {
    /// See [`Component::KIND`].
    const KIND: &'static str;
}

impl<T: FirstVersion> Component for T {
    const KIND: &'static str = T::KIND;
    const VERSIONS: Versions = Versions::FIRST;

    fn write(&self, _version: u32) -> Result<Vec<u8>, CodecError> {
        codec::write(self)
    }

    fn read(_version: u32, body: &[u8]) -> Result<Self, CodecError> {
        codec::read(body)
    }
}

/// The kind of the component with this identity.
pub(super) fn kind(id: &str) -> &str {
    id.split_once('.').map_or(id, |(kind, _)| kind)
}
