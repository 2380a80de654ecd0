//! Where a disk of an incoming guest is on this host, as it is said on the command line.

use std::path::PathBuf;
use std::str::FromStr;

use block::image::Format;

use super::cache::DiskCache;
use super::check::{absolute, set_once};

/// Where one disk is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingDisk {
    /// Identity of the disk at the source.
    pub id: String,
    /// Its image on this host.
    pub path: PathBuf,
    /// What is there now.
    pub target: DiskTarget,
    /// Format of an image that is made, or written over; raw where neither this nor the source says.
    pub format: Option<Format>,
    /// Whether the page cache is used once the guest runs here.
    pub cache: DiskCache,
}

/// What is at the place of an incoming disk before the guest comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskTarget {
    /// The guest's disk itself, which the source uses as well.
    Shared,
    /// Nothing: an image is made, and removed if the guest does not come.
    Create,
    /// An image or block device of the same size, whose content is of no more use.
    Existing,
}

impl FromStr for IncomingDisk {
    type Err = String;

    /// Reads `ID=PATH[,create|existing][,format=raw|qcow2][,cache=writeback|none]` of `receive --disk`. A comma in a path is part of it as
    /// long as no such word follows.
    fn from_str(text: &str) -> Result<Self, String> {
        let (mut text, mut target, mut format, mut cache) = (text, None, None, None);
        while let Some((rest, last)) = text.rsplit_once(',') {
            match last.split_once('=') {
                None if last == "create" => {
                    set_once(&mut target, "what is there", DiskTarget::Create)?;
                }
                None if last == "existing" => {
                    set_once(&mut target, "what is there", DiskTarget::Existing)?;
                }
                Some(("cache", name)) => set_once(&mut cache, "cache", name.parse()?)?,
                Some(("format", name)) => set_once(&mut format, "format", name.parse()?)?,
                _ => break,
            }
            text = rest;
        }
        let target = target.unwrap_or(DiskTarget::Shared);
        if target == DiskTarget::Shared && format.is_some() {
            return Err(
                "the format is chosen of a disk that travels: add create or existing".into(),
            );
        }
        match text.split_once('=') {
            Some((id, path)) if !id.is_empty() && !path.is_empty() => Ok(Self {
                id: id.into(),
                path: path.into(),
                target,
                format,
                cache: cache.unwrap_or_default(),
            }),
            _ => Err(
                "write ID=PATH[,create|existing][,format=raw|qcow2][,cache=writeback|none]: the id of a disk at the \
                 source and its path here"
                    .into(),
            ),
        }
    }
}

impl IncomingDisk {
    /// With a path that does not depend on the folder of this process.
    pub(super) fn absolute(self) -> Self {
        Self {
            path: absolute(self.path),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_is_there_now() {
        let read = |text: &str| {
            text.parse::<IncomingDisk>()
                .map(|d| (d.id, d.path, d.target))
        };
        let disk = |path: &str, target| Ok(("data".to_owned(), PathBuf::from(path), target));
        assert_eq!(read("data=/a"), disk("/a", DiskTarget::Shared));
        assert_eq!(read("data=/a,create"), disk("/a", DiskTarget::Create));
        assert_eq!(read("data=/a,existing"), disk("/a", DiskTarget::Existing));
        assert_eq!(read("data=/a=b,c"), disk("/a=b,c", DiskTarget::Shared));
        let format = |text: &str| text.parse::<IncomingDisk>().map(|d| d.format);
        assert_eq!(format("data=/a,create"), Ok(None));
        assert_eq!(
            format("data=/a,create,format=qcow2"),
            Ok(Some(Format::Qcow2))
        );
        assert_eq!(format("data=/a,format=raw,existing"), Ok(Some(Format::Raw)));
        let cache = |text: &str| text.parse::<IncomingDisk>().map(|d| d.cache);
        assert_eq!(cache("data=/a"), Ok(DiskCache::Writeback));
        assert_eq!(cache("data=/a,cache=none"), Ok(DiskCache::None));
        assert_eq!(
            cache("data=/a,cache=writeback,existing"),
            Ok(DiskCache::Writeback)
        );
        for text in [
            "",
            "data",
            "data=",
            "=/a",
            "data=,create",
            ",create",
            "data=/a,format=qcow2",
            "data=/a,create,existing",
            "data=/a,create,format=vmdk",
            "data=/a,cache=unsafe",
            "data=/a,cache=none,cache=none",
        ] {
            read(text).unwrap_err();
        }
    }
}
