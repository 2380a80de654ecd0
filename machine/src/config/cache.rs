//! Whether a disk uses the page cache of its host, as it is said on the command line.

use std::str::FromStr;

/// Whether a disk's requests go through the page cache of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiskCache {
    /// They do: reads of what is there cost little, and a write has ended when it is there.
    #[default]
    Writeback,
    /// They do not: the storage has what was written, though not durably before a flush.
    None,
}

impl FromStr for DiskCache {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "writeback" => Ok(Self::Writeback),
            "none" => Ok(Self::None),
            _ => Err(format!("cache={text} is not known: writeback and none are")),
        }
    }
}
