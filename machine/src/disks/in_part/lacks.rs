//! What each of the sources of a disk lacks, where there are several: a map beside that of the image for each but the last one, in
//! which a bit is set where the source is not to be asked, but the next one; and one more, behind them, when it has said all.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::on_demand::{About, Allocation, BLOCK, PresenceMap};
use block::{Access, BlockDevice, Content, RawImage};
use migration::MigrationId;
use migration::observation::Observation;
use migration::vm::MOST_BEHIND;

use super::map_file::{self, MapFile, ServedBy, failed, map_path};

/// The map of source `number`, of those of the image at `path`.
fn lacks_path(path: &Path, number: usize) -> PathBuf {
    let mut name = map_path(path).into_os_string();
    name.push(format!("-{}", number + 1));
    name.into()
}

/// Bytes of a disk that has a block more.
fn with_end(size: u64) -> u64 {
    size.next_multiple_of(BLOCK) + BLOCK
}

fn storage(path: &Path, map: &Path) -> Result<Arc<dyn BlockDevice>, Observation> {
    let storage = RawImage::open(map, Access::ReadWrite, Content::Container);
    Ok(Arc::new(storage.map_err(|e| failed(path, &e))?))
}

/// Makes those of the image at `path`, whose disk has `size` bytes and is served as `by` tells: nobody has said yet what it has.
///
/// # Errors
/// `disk.map`.
pub(super) fn create(
    path: &Path,
    by: &ServedBy,
    id: MigrationId,
    size: u64,
) -> Result<(), Observation> {
    let size = with_end(size);
    for number in 0..by.behind.len() {
        let file = MapFile::create_at(lacks_path(path, number), size)?;
        let about = About {
            disk: size,
            id: id.0,
            note: Vec::new(),
        };
        let all = Allocation::none(size);
        all.add(&(0..size));
        let map = PresenceMap::create(storage(path, file.path())?, about, &all);
        map.map_err(|e| failed(path, &e))?;
    }
    Ok(())
}

/// Opens them.
///
/// # Errors
/// `disk.in-part` when one is missing, or damaged.
pub(super) fn open(path: &Path, by: &ServedBy, size: u64) -> Result<Vec<PresenceMap>, Observation> {
    let maps = (0..by.behind.len()).map(|number| {
        let storage = storage(path, &lacks_path(path, number))?;
        let map = PresenceMap::open(storage, with_end(size));
        map.map_err(|e| failed(path, &e))
    });
    maps.collect()
}

/// Removes them.
pub(super) fn remove(path: &Path) {
    (0..MOST_BEHIND).for_each(|number| map_file::remove(&lacks_path(path, number)));
}
