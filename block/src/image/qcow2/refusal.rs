//! Why a qcow2 image is not used, by name, and what helps.

use std::path::PathBuf;

/// What an image has that keeps it from being used; told with the command that helps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It does not begin as a qcow2 image does.
    #[error("is no qcow2 image; if it is raw, say format=raw")]
    NotQcow2,
    /// Neither version 2 nor 3.
    #[error("is qcow2 of version {0}; 2 and 3 are known")]
    Version(u32),
    /// It breaks the format's rules, or a limit.
    #[error("is a damaged qcow2 image: {0}; see `qemu-img check -r all`")]
    Damaged(String),
    /// Somebody found it damaged, and said so in it.
    #[error(
        "is a qcow2 image that was found corrupt: repair it with `qemu-img check -r all`, and see what is lost"
    )]
    Corrupt,
    /// Its data is encrypted.
    #[error("is an encrypted qcow2 image: decrypt it with `qemu-img convert -O qcow2`")]
    Encrypted,
    /// Its data lies in another file.
    #[error(
        "is a qcow2 image with an external data file: bring both together with `qemu-img convert -O qcow2`"
    )]
    DataFile,
    /// It is compressed by another method than deflate.
    #[error(
        "is a qcow2 image that is compressed by zstd (type {0}): unpack it with `qemu-img convert -O qcow2`"
    )]
    Compression(u8),
    /// It has extended L2 entries.
    #[error(
        "is a qcow2 image with extended L2 entries: convert it with `qemu-img convert -O qcow2 -o extended_l2=off`"
    )]
    ExtendedL2,
    /// It has features that nobody knew when this was written.
    #[error("is a qcow2 image with unknown features {0:#x}: convert it with `qemu-img convert`")]
    Unknown(u64),
    /// It is of version 2, which cannot say that it is in use.
    #[error(
        "is a qcow2 image of version 2, which is only read: make it version 3 with `qemu-img amend -o compat=v3`"
    )]
    Version2,
    /// It has bitmaps that writing would make wrong.
    #[error(
        "is a qcow2 image with persistent bitmaps, which writing would make wrong: remove them with `qemu-img bitmap --remove`"
    )]
    Bitmaps,
    /// It has what writing would make wrong, and nobody knew when this was written.
    #[error(
        "is a qcow2 image with unknown autoclear features {0:#x}, which writing would make wrong: convert it with `qemu-img convert`"
    )]
    Autoclear(u64),
    /// It has internal snapshots.
    #[error(
        "is a qcow2 image with {0} internal snapshots, and only read: remove them with `qemu-img snapshot -d`"
    )]
    Snapshots(u32),
    /// Its backing file has no format.
    #[error(
        "does not say which format its backing file {0} has: say it with `qemu-img rebase -u -F FORMAT -b {0}`"
    )]
    BackingFormatMissing(String),
    /// Its backing file has a format that is not read.
    #[error("has a backing file of format {0:?}; raw and qcow2 are read")]
    BackingFormat(String),
    /// Its backing file is named by a protocol or an option, not by a path.
    #[error("has a backing file {0:?} that is no path: give a path with `qemu-img rebase -u`")]
    BackingName(String),
    /// Its backing file lies where none may be opened.
    #[error(
        "has a backing file {path} outside of the folder of the disk: permit it with --allow-backing {folder}"
    )]
    BackingOutside {
        /// The backing file.
        path: PathBuf,
        /// Its folder.
        folder: PathBuf,
    },
    /// It has a backing file where none can be opened.
    #[error(
        "has a backing file, which a VM that runs cannot open: a disk moves to an image without"
    )]
    HasBacking,
    /// A file is among its own backing files.
    #[error("is among its own backing files")]
    Loop,
    /// There are too many backing files below each other.
    #[error("has more than {0} backing files below each other: join some with `qemu-img commit`")]
    TooLong(usize),
    /// It says that it is in use.
    #[error("says that it is in use: its owner has not closed it")]
    InUse,
    /// It changed between two readings by what only its owner may do.
    #[error("became another disk since it was checked")]
    Changed,
}

/// A feature that a reader must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// Reference counts may be wrong.
    Dirty,
    /// It was found corrupt.
    Corrupt,
    /// Data lies in another file.
    DataFile,
    /// Another compression than deflate.
    Compression,
    /// Extended L2 entries.
    ExtendedL2,
    /// Nobody knew it when this was written; its bit.
    Unknown(u32),
}

impl Feature {
    pub(super) fn of(bits: u64) -> Vec<Self> {
        let set = (0..64).filter(|bit| bits >> bit & 1 == 1);
        set.map(|bit| match bit {
            0 => Self::Dirty,
            1 => Self::Corrupt,
            2 => Self::DataFile,
            3 => Self::Compression,
            4 => Self::ExtendedL2,
            bit => Self::Unknown(bit),
        })
        .collect()
    }

    /// As QEMU calls it.
    pub fn name(self) -> String {
        match self {
            Self::Dirty => "dirty bit".into(),
            Self::Corrupt => "corrupt bit".into(),
            Self::DataFile => "external data file".into(),
            Self::Compression => "compression type".into(),
            Self::ExtendedL2 => "extended L2 entries".into(),
            Self::Unknown(bit) => format!("unknown feature {bit}"),
        }
    }
}
