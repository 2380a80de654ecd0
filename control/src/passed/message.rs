//! What is said with descriptors, and the answer: one JSON object a packet.

use std::fmt;
use std::str::FromStr;

use migration::observation::{Observation, Side};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

/// Version of what is said.
pub const VERSION: u32 = 1;
/// Bytes of a packet, in either direction.
pub const MESSAGE_LIMIT: usize = 64 << 10;
/// Descriptors of a packet.
pub const FILES_LIMIT: usize = 8;
/// Bytes of a file's name: no path has more (`PATH_MAX`).
const NAME_LIMIT: usize = 4096;
/// Characters of what a decoder says, which may hold what it was given.
const COMPLAINT_LIMIT: usize = 500;

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FileKind {
    /// The image of a disk: a regular file or a block device.
    Disk,
    /// Something that the VM writes: a regular file.
    Output,
}

/// What a file was opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FileAccess {
    /// To be read (`O_RDONLY`).
    Read,
    /// To be written (`O_WRONLY`).
    Write,
    /// To be read and written (`O_RDWR`).
    ReadWrite,
}

impl FileAccess {
    /// Whether what was opened so can be used for `wanted`.
    pub(super) fn allows(self, wanted: Self) -> bool {
        self == Self::ReadWrite || self == wanted
    }
}

/// What a client says of one descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileNote {
    /// What the file is for.
    pub kind: FileKind,
    /// What it was opened for, no more and no less.
    pub access: FileAccess,
    /// What it is called in messages, such as its path; nothing is looked up by it. At most 4,096 bytes.
    pub name: String,
}

/// What a client sends with descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passing {
    version: u32,
    /// One for each descriptor, in their order.
    pub files: Vec<FileNote>,
}

/// The part of a message that every version has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl Passing {
    /// A message of this version.
    pub fn new(files: Vec<FileNote>) -> Self {
        Self {
            version: VERSION,
            files,
        }
    }

    /// Reads a packet that came with `descriptors` descriptors.
    ///
    /// # Errors
    /// `file.version` for another version, `file.too-many`, and `file.message` for what is no such message, or has
    /// notes for another number of descriptors.
    pub fn read(packet: &[u8], descriptors: usize) -> Result<Self, Observation> {
        let Versioned { version } =
            serde_json::from_slice(packet).map_err(|e| not_understood(&e))?;
        if version != VERSION {
            let message =
                format!("files are passed in version {version}, this VM knows {VERSION} only");
            return Err(refuse("file.version", message));
        }
        let passing: Self = serde_json::from_slice(packet).map_err(|e| not_understood(&e))?;
        let notes = passing.files.len();
        if notes > FILES_LIMIT {
            return Err(too_many(Side::Source, notes));
        }
        if notes == 0 || notes != descriptors {
            let message = format!("{notes} files are told of, {descriptors} descriptors came");
            return Err(refuse("file.message", message));
        }
        if passing
            .files
            .iter()
            .any(|file| file.name.len() > NAME_LIMIT)
        {
            let message = format!("the name of a file is longer than {NAME_LIMIT} bytes");
            return Err(refuse("file.message", message));
        }
        Ok(passing)
    }
}

fn not_understood(error: &serde_json::Error) -> Observation {
    let told: String = error.to_string().chars().take(COMPLAINT_LIMIT).collect();
    refuse(
        "file.message",
        format!("the message is not understood: {told}"),
    )
}

/// That `side` saw more files than a packet can have.
pub(super) fn too_many(side: Side, files: usize) -> Observation {
    let message = format!("{files} files at once: at most {FILES_LIMIT} can be passed");
    Observation::new(side, "file.too-many", message)
}

/// What the VM says to one who passes files.
pub(super) fn refuse(id: &str, message: impl Into<String>) -> Observation {
    Observation::new(Side::Source, id, message)
}

/// What the VM answers to each packet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It has all the files: an identifier for each, in their order.
    Kept(Vec<FileId>),
    /// It has closed all of them, for this reason.
    Refused(Observation),
}

/// Identifier of a file that a VM was passed: 16 random bytes, written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct FileId(u128);

impl FileId {
    /// A fresh identifier.
    ///
    /// # Errors
    /// When the system has no random numbers to give.
    pub(super) fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 16];
        getrandom(&mut bytes, GetRandomFlags::empty())?;
        Ok(Self(u128::from_le_bytes(bytes)))
    }
}

/// Text that is no identifier of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no identifier of a file: expected 32 hexadecimal digits")]
pub struct FileIdError;

impl FromStr for FileId {
    type Err = FileIdError;

    fn from_str(text: &str) -> Result<Self, FileIdError> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(FileIdError);
        }
        u128::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| FileIdError)
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<FileId> for String {
    fn from(id: FileId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for FileId {
    type Error = FileIdError;

    fn try_from(text: String) -> Result<Self, FileIdError> {
        text.parse()
    }
}

/// A file that a VM was passed and nobody has taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeptFile {
    /// Its identifier, 32 hexadecimal digits.
    #[schema(value_type = String)]
    pub id: FileId,
    /// What it is for.
    pub kind: FileKind,
    /// What it was opened for.
    pub access: FileAccess,
    /// What who passed it calls it.
    pub name: String,
}

/// Answer to `GET /vm/files`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeptFiles {
    /// Those that nobody has taken, in no order.
    pub files: Vec<KeptFile>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn note(name: &str) -> FileNote {
        FileNote {
            kind: FileKind::Disk,
            access: FileAccess::ReadWrite,
            name: name.into(),
        }
    }

    fn written(passing: &Passing) -> Vec<u8> {
        serde_json::to_vec(passing).unwrap()
    }

    #[test]
    fn a_message_is_written_as_the_page_says() {
        let text = r#"{"version":1,"files":[{"kind":"disk","access":"read-write","name":"/a"}]}"#;
        let passing = Passing::new(vec![note("/a")]);
        assert_eq!(written(&passing), text.as_bytes());
        assert_eq!(Passing::read(text.as_bytes(), 1).unwrap(), passing);
        let refused = Answer::Refused(refuse("file.type", "x"));
        let text = serde_json::to_string(&refused).unwrap();
        assert!(
            text.starts_with(r#"{"refused":{"id":"file.type""#),
            "{text}"
        );
        let text = serde_json::to_string(&Answer::Kept(vec![FileId(0xab)])).unwrap();
        assert_eq!(text, format!(r#"{{"kept":["{}ab"]}}"#, "0".repeat(30)));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let long = "n".repeat(NAME_LIMIT + 1);
        let eight = vec![note("d"); FILES_LIMIT];
        let nine = vec![note("d"); FILES_LIMIT + 1];
        let read = |notes: &[FileNote], count| {
            Passing::read(&written(&Passing::new(notes.to_vec())), count).map(|p| p.files.len())
        };
        assert_eq!(read(&eight, FILES_LIMIT).unwrap(), FILES_LIMIT);
        assert_eq!(read(&[note(&long[1..])], 1).unwrap(), 1);
        for (notes, count, id) in [
            (&nine[..], FILES_LIMIT + 1, "file.too-many"),
            (&nine[..], FILES_LIMIT, "file.too-many"),
            (&eight[..2], 1, "file.message"),
            (&eight[..1], 2, "file.message"),
            (&eight[..1], 0, "file.message"),
            (&[], 0, "file.message"),
            (&[note(&long)], 1, "file.message"),
        ] {
            assert_eq!(read(notes, count).unwrap_err().id, id, "{count}");
        }
        for (text, id) in [
            ("", "file.message"),
            ("{}", "file.message"),
            ("[1]", "file.message"),
            (r#"{"version":-1}"#, "file.message"),
            (r#"{"version":1}"#, "file.message"),
            (r#"{"version":1,"files":[{}]}"#, "file.message"),
            (r#"{"version":1,"files":[],"x":1}"#, "file.message"),
            (r#"{"version":0,"files":[]}"#, "file.version"),
            (r#"{"version":2,"of":"another kind"}"#, "file.version"),
        ] {
            let refused = Passing::read(text.as_bytes(), 1).unwrap_err();
            assert_eq!(refused.id, id, "{text}");
        }
    }

    #[test]
    fn a_complaint_is_no_longer_than_the_packet_that_carries_it() {
        let text = format!(r#"{{"version":1,"{}":1}}"#, "k".repeat(60_000));
        let refused = Passing::read(text.as_bytes(), 1).unwrap_err();
        assert!(refused.message.len() < 2 * COMPLAINT_LIMIT);
    }

    #[test]
    fn an_identifier_reads_back_and_nothing_else_is_one() {
        let id = FileId::random().unwrap();
        assert_ne!(id, FileId::random().unwrap());
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in [
            "",
            "0",
            &"g".repeat(32),
            &"0".repeat(33),
            "+0000000000000000000000000000000",
        ] {
            assert_eq!(text.parse::<FileId>(), Err(FileIdError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), count in 0_usize..10) {
            let _ = Passing::read(&bytes, count);
        }

        #[test]
        fn what_was_written_is_read_as_the_same(names in proptest::collection::vec(".{0,40}", 1..=FILES_LIMIT)) {
            let passing = Passing::new(names.iter().map(|name| note(name)).collect());
            prop_assert_eq!(Passing::read(&written(&passing), names.len()).unwrap(), passing);
        }
    }
}
