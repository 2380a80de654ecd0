//! A disk that only the first host has, and that moves with the guest.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use control::exit::local;
use migration::observation::Observation;

/// Identity of the disk.
pub(super) const ID: &str = "data";
/// Its size.
pub(super) const SIZE: u64 = 256 << 20;
/// What the guest writes and checks, from the beginning on.
pub(super) const WRITTEN: u64 = 32 << 20;
/// What was there before, behind that; the rest holds nothing.
pub(super) const CONTENT: u64 = 64 << 20;

/// The disk's image on either host.
pub(super) struct LocalDisk {
    pub(super) at_source: PathBuf,
    pub(super) at_destination: PathBuf,
}

impl LocalDisk {
    /// Makes the image of the first host in `folder`; where the second one's goes nothing is yet.
    pub(super) fn make(folder: &Path) -> Result<Self, Observation> {
        let disk = Self {
            at_source: folder.join("source.raw"),
            at_destination: folder.join("destination.raw"),
        };
        fill(&disk.at_source).map_err(|e| {
            let message = format!("make {}: {e}", disk.at_source.display());
            local("demo.disk", message)
        })?;
        Ok(disk)
    }

    /// Whether both images hold the same of what the guest does not write.
    pub(super) fn is_alike(&self) -> io::Result<bool> {
        let content = |path: &Path| {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(WRITTEN))?;
            let mut bytes = vec![0; CONTENT as usize];
            io::Read::read_exact(&mut file, &mut bytes)?;
            Ok::<_, io::Error>(bytes)
        };
        Ok(content(&self.at_source)? == content(&self.at_destination)?)
    }
}

/// Content that no two blocks share, behind what the guest writes.
fn fill(path: &Path) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.set_len(SIZE)?;
    file.seek(SeekFrom::Start(WRITTEN))?;
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = Vec::with_capacity(1 << 20);
    for _ in 0..CONTENT >> 20 {
        block.clear();
        while block.len() < 1 << 20 {
            // xorshift64 (Marsaglia, 2003).
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            block.extend_from_slice(&word.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    Ok(())
}
