//! A disk that travels with its guest.

use std::path::PathBuf;

use control::units::ByteSize;

use super::super::error::BenchError;
use super::image::cool;

/// Milliseconds of an interval in which requests are counted.
const INTERVAL_MS: u64 = 500;

/// Random writes that a guest makes of the beginning of its disk, all the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WriteLoad {
    /// Bytes of a write.
    pub size: u64,
    /// Writes a second.
    pub rate: u64,
    /// Writes in flight at once, at most.
    pub depth: u8,
    /// Bytes of the disk, from its beginning, that are written to.
    pub length: u64,
}

/// One disk, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MovingDisk {
    /// Its identity.
    pub id: String,
    /// Its image, which is there.
    pub source: PathBuf,
    /// The image that it gets, which is not there before and after a turn.
    pub destination: PathBuf,
    /// Bytes of the disk.
    pub bytes: u64,
    /// What the guest does with it.
    pub load: WriteLoad,
}

impl MovingDisk {
    /// The word by which the guest is told what to do with it.
    pub fn word(&self) -> String {
        let WriteLoad {
            size,
            rate,
            depth,
            length,
        } = self.load;
        format!(
            "disk={},pattern=random,read=0,size={},rate={rate},depth={depth},length={},\
             interval_ms={INTERVAL_MS}",
            self.id,
            ByteSize(size),
            ByteSize(length)
        )
    }

    /// Has the host read its image from the storage next, not from memory.
    pub fn cool(&self) -> Result<(), BenchError> {
        cool(&self.source)
    }

    /// The same disk on its way back.
    pub fn back(&self) -> Self {
        Self {
            source: self.destination.clone(),
            destination: self.source.clone(),
            ..self.clone()
        }
    }

    /// Removes what a turn has left at the destination.
    pub fn remove_destination(&self) {
        // There is none after a turn that failed early.
        let _ = std::fs::remove_file(&self.destination);
        // What says which of its blocks have come, of one that came after its guest.
        let mut map = self.destination.clone().into_os_string();
        map.push(".vmm-map");
        let _ = std::fs::remove_file(map);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_told_what_to_write_where() {
        let disk = MovingDisk {
            id: "data".to_owned(),
            source: "/a".into(),
            destination: "/b".into(),
            bytes: 64 << 20,
            load: WriteLoad {
                size: 4096,
                rate: 500,
                depth: 4,
                length: 16 << 20,
            },
        };
        assert_eq!(
            disk.word(),
            "disk=data,pattern=random,read=0,size=4KiB,rate=500,depth=4,length=16MiB,interval_ms=500"
        );
    }
}
