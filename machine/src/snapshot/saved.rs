//! A saved machine as it travels: a list of components, each an identity, a version and a body.
//!
//! It is written by [`codec`] with [`SAVED_VERSION`] in its header. Whoever loads it takes the components
//! that it knows, one by one; what is missing or left over is an error that names it.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::agreement::Agreed;
use super::codec::{self, CodecError};
use super::component::{Component, MAX_COMPONENTS, MAX_ID, Versions, is_id};

/// Version in the header of such a list; version 1 was one struct of a whole machine.
pub const SAVED_VERSION: u32 = 2;

/// A saved machine whose components do not fit.
#[derive(Debug, Error)]
pub enum SavedError {
    /// The list cannot be written or read.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// There are more components than any machine has.
    #[error("saved state of {0} components is longer than {MAX_COMPONENTS}")]
    TooMany(usize),
    /// A component's identity is none.
    #[error("saved state holds {0:?}, which is no component")]
    Id(String),
    /// A component is there twice.
    #[error("saved state holds {0} twice")]
    Twice(String),
    /// A component that the machine needs is not there.
    #[error("saved state lacks {0}")]
    Missing(String),
    /// Nobody here knows what these are.
    #[error("saved state holds what is not known here: {}", .0.join(", "))]
    Unknown(Vec<String>),
    /// A component was saved in a version that is not known here.
    #[error("saved state holds {id} in version {found}, and {known} can be loaded here")]
    Version {
        /// Which component.
        id: String,
        /// Version that it was saved in.
        found: u32,
        /// Versions that can be loaded.
        known: Versions,
    },
    /// A component is to be saved of which no version was agreed on.
    #[error("no version of {0} was agreed on")]
    NotAgreed(String),
    /// A component's body cannot be written or read.
    #[error("{id}")]
    Body {
        /// Which component.
        id: String,
        /// What is the matter with it.
        source: CodecError,
    },
}

/// A component as it travels; frozen: another one makes another [`SAVED_VERSION`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    id: String,
    version: u32,
    body: Body,
}

/// Bytes that are copied as a whole, where a `Vec<u8>` is written byte by byte; they travel alike.
#[derive(Clone, PartialEq, Eq)]
struct Body(Vec<u8>);

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Body {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Body;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Body, E> {
                Ok(Body(bytes.to_vec()))
            }

            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Body, E> {
                Ok(Body(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

/// Components that are being saved.
#[derive(Debug)]
pub struct Saving<'a> {
    agreed: &'a Agreed,
    entries: Vec<Entry>,
}

impl<'a> Saving<'a> {
    /// None yet; each is written in the version that was agreed on.
    pub fn new(agreed: &'a Agreed) -> Self {
        Self {
            agreed,
            entries: Vec::new(),
        }
    }

    /// Adds the component of which there is one.
    ///
    /// # Errors
    /// When no version of it was agreed on, or it cannot be written.
    pub fn one<T: Component>(&mut self, state: &T) -> Result<(), SavedError> {
        self.put(T::KIND.to_owned(), state)
    }

    /// Adds the component with this name.
    ///
    /// # Errors
    /// As [`Saving::one`].
    pub fn named<T: Component>(&mut self, name: &str, state: &T) -> Result<(), SavedError> {
        self.put(T::named(name), state)
    }

    /// Adds the component with this number.
    ///
    /// # Errors
    /// As [`Saving::one`].
    pub fn numbered<T: Component>(&mut self, number: usize, state: &T) -> Result<(), SavedError> {
        self.put(T::numbered(number), state)
    }

    fn put<T: Component>(&mut self, id: String, state: &T) -> Result<(), SavedError> {
        let version = self.agreed.version(&id);
        let version = version.filter(|version| T::VERSIONS.contains(*version));
        let version = version.ok_or_else(|| SavedError::NotAgreed(id.clone()))?;
        match state.write(version) {
            Ok(body) => self.entries.push(Entry {
                id,
                version,
                body: Body(body),
            }),
            Err(source) => return Err(SavedError::Body { id, source }),
        }
        Ok(())
    }

    /// As it travels.
    ///
    /// # Errors
    /// When it would be too long.
    pub fn encode(&self) -> Result<Vec<u8>, SavedError> {
        Ok(codec::encode(SAVED_VERSION, &self.entries)?)
    }
}

/// Components that are being loaded.
#[derive(Debug)]
pub struct Saved {
    entries: BTreeMap<String, Entry>,
    /// Identities in the order in which they were saved.
    order: Vec<String>,
}

impl Saved {
    fn of(entries: Vec<Entry>) -> Self {
        Self {
            order: entries.iter().map(|entry| entry.id.clone()).collect(),
            entries: entries.into_iter().map(|e| (e.id.clone(), e)).collect(),
        }
    }

    /// Reads what [`Saving::encode`] wrote.
    ///
    /// # Errors
    /// When it is damaged, or holds too many components or one twice.
    pub fn decode(blob: &[u8]) -> Result<Self, SavedError> {
        let entries: Vec<Entry> = codec::decode(SAVED_VERSION, blob)?;
        if entries.len() > MAX_COMPONENTS {
            return Err(SavedError::TooMany(entries.len()));
        }
        if let Some(entry) = entries.iter().find(|entry| !is_id(&entry.id)) {
            let short = entry.id.chars().take(MAX_ID).collect();
            return Err(SavedError::Id(short));
        }
        let saved = Self::of(entries);
        if saved.entries.len() < saved.order.len() {
            let mut seen = std::collections::BTreeSet::new();
            let twice = saved.order.iter().find(|id| !seen.insert(*id));
            return Err(SavedError::Twice(twice.cloned().unwrap_or_default()));
        }
        Ok(saved)
    }

    /// Identities and versions of what was not taken yet, in the order in which it was saved.
    pub fn left(&self) -> impl Iterator<Item = (&str, u32)> {
        let entries = self.order.iter().filter_map(|id| self.entries.get(id));
        entries.map(|entry| (entry.id.as_str(), entry.version))
    }

    /// Takes the component of which there is one.
    ///
    /// # Errors
    /// When it is missing, damaged, or of a version that is not known here.
    pub fn one<T: Component>(&mut self) -> Result<T, SavedError> {
        self.take(T::KIND)
    }

    /// Takes the component with this name.
    ///
    /// # Errors
    /// As [`Saved::one`].
    pub fn named<T: Component>(&mut self, name: &str) -> Result<T, SavedError> {
        self.take(&T::named(name))
    }

    /// Takes the component with this number.
    ///
    /// # Errors
    /// As [`Saved::one`].
    pub fn numbered<T: Component>(&mut self, number: usize) -> Result<T, SavedError> {
        self.take(&T::numbered(number))
    }

    fn take<T: Component>(&mut self, id: &str) -> Result<T, SavedError> {
        let missing = || SavedError::Missing(id.to_owned());
        let Entry { id, version, body } = self.entries.remove(id).ok_or_else(missing)?;
        let known = T::VERSIONS;
        if !known.contains(version) {
            return Err(SavedError::Version {
                id,
                found: version,
                known,
            });
        }
        T::read(version, &body.0).map_err(|source| SavedError::Body { id, source })
    }

    /// Checks that all was taken.
    ///
    /// # Errors
    /// [`SavedError::Unknown`] with what was not.
    pub fn finish(self) -> Result<(), SavedError> {
        let left: Vec<_> = self.left().map(|(id, _)| id.to_owned()).collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(SavedError::Unknown(left))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::agreement::Known;
    use super::super::component::FirstVersion;
    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    struct SerialV1 {
        divisor: u16,
    }

    impl FirstVersion for SerialV1 {
        const KIND: &'static str = "serial";
    }

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    struct TimerV1 {
        ticks: u32,
    }

    impl FirstVersion for TimerV1 {
        const KIND: &'static str = "timer";
    }

    /// A second version of one component, as a later version of this program may have.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    struct TimerV2 {
        nanoseconds: u64,
    }

    impl From<TimerV1> for TimerV2 {
        fn from(TimerV1 { ticks }: TimerV1) -> Self {
            Self {
                nanoseconds: u64::from(ticks) * 1000,
            }
        }
    }

    impl Component for TimerV2 {
        const KIND: &'static str = "timer";
        const VERSIONS: Versions = Versions {
            oldest: 1,
            newest: 2,
        };

        fn write(&self, version: u32) -> Result<Vec<u8>, CodecError> {
            match version {
                1 => codec::write(&TimerV1 {
                    ticks: (self.nanoseconds / 1000) as u32,
                }),
                _ => codec::write(self),
            }
        }

        fn read(version: u32, body: &[u8]) -> Result<Self, CodecError> {
            match version {
                1 => codec::read::<TimerV1>(body).map(Self::from),
                _ => codec::read(body),
            }
        }
    }

    const SERIAL: SerialV1 = SerialV1 { divisor: 12 };

    fn known<T: Component>() -> Known {
        let mut known = Known::default();
        known.one::<SerialV1>();
        known.named::<T>("0");
        known
    }

    fn saved<T: Component>(agreed: &Agreed, timer: &T) -> Vec<u8> {
        let mut saving = Saving::new(agreed);
        saving.one(&SERIAL).unwrap();
        saving.named("0", timer).unwrap();
        saving.encode().unwrap()
    }

    fn loaded<T: Component>(blob: &[u8]) -> Result<(SerialV1, T), SavedError> {
        let mut saved = Saved::decode(blob)?;
        let state = (saved.one()?, saved.named("0")?);
        saved.finish().map(|()| state)
    }

    #[test]
    fn one_component_gets_another_version_and_the_others_stay() {
        let new = TimerV2 {
            nanoseconds: 5_000_000,
        };
        let old = TimerV1 { ticks: 5000 };
        // New to new, new to old, old to new: each pair meets in the newest that both know.
        let agreed = known::<TimerV2>().choose(&known::<TimerV2>()).unwrap();
        assert_eq!(agreed.version("timer.0"), Some(2));
        assert_eq!(agreed.version("serial"), Some(1));
        let blob = saved(&agreed, &new);
        assert_eq!(loaded(&blob).unwrap(), (SERIAL, new.clone()));

        let agreed = known::<TimerV1>().choose(&known::<TimerV2>()).unwrap();
        let blob = saved(&agreed, &new);
        assert_eq!(loaded(&blob).unwrap(), (SERIAL, old.clone()));

        let agreed = known::<TimerV2>().choose(&known::<TimerV1>()).unwrap();
        let blob = saved(&agreed, &old);
        assert_eq!(loaded(&blob).unwrap(), (SERIAL, new));
    }

    #[test]
    fn a_version_that_is_not_known_is_refused_by_name() {
        let agreed = known::<TimerV2>().newest();
        let blob = saved(&agreed, &TimerV2 { nanoseconds: 1 });
        let refused = loaded::<TimerV1>(&blob).unwrap_err().to_string();
        assert!(refused.contains("timer.0 in version 2"), "{refused}");
        assert!(refused.contains("version 1 can"), "{refused}");
    }

    #[test]
    fn what_is_missing_or_left_over_is_named() {
        let agreed = known::<TimerV1>().newest();
        let blob = saved(&agreed, &TimerV1 { ticks: 1 });
        let mut some = Saved::decode(&blob).unwrap();
        let _: SerialV1 = some.one().unwrap();
        let refused = some.one::<SerialV1>().unwrap_err();
        assert!(matches!(&refused, SavedError::Missing(id) if id == "serial"));
        let refused = some.finish().unwrap_err();
        assert!(matches!(&refused, SavedError::Unknown(ids) if ids == &["timer.0"]));
    }

    #[test]
    fn nothing_is_saved_that_was_not_agreed_on() {
        let agreed = Known::default().newest();
        let refused = Saving::new(&agreed).one(&SERIAL).unwrap_err();
        assert!(matches!(&refused, SavedError::NotAgreed(id) if id == "serial"));
        let agreed = Agreed::from_json(r#"{"components":{"serial":2}}"#).unwrap();
        assert!(Saving::new(&agreed).one(&SERIAL).is_err());
    }

    fn entry(id: &str) -> Entry {
        Entry {
            id: id.into(),
            version: 1,
            body: Body(vec![1, 2]),
        }
    }

    fn refused(entries: &[Entry]) -> SavedError {
        Saved::decode(&codec::encode(SAVED_VERSION, &entries).unwrap()).unwrap_err()
    }

    #[test]
    fn lists_that_nobody_writes_are_refused() {
        let many: Vec<_> = (0..=MAX_COMPONENTS)
            .map(|n| entry(&format!("vcpu.{n}")))
            .collect();
        assert!(matches!(refused(&many), SavedError::TooMany(257)));
        let twice = [entry("rtc"), entry("pit"), entry("rtc")];
        assert!(matches!(refused(&twice), SavedError::Twice(id) if id == "rtc"));
        for id in ["", "a b", "\u{1b}[2J", &"x".repeat(MAX_ID + 1)] {
            assert!(matches!(refused(&[entry(id)]), SavedError::Id(_)), "{id}");
        }
    }

    #[test]
    fn a_body_travels_as_a_vector_of_bytes_does() {
        let bytes = vec![7_u8; 300];
        let body = codec::write(&Body(bytes.clone())).unwrap();
        assert_eq!(body, codec::write(&bytes).unwrap());
        assert_eq!(codec::read::<Body>(&body).unwrap().0, bytes);
    }
}
