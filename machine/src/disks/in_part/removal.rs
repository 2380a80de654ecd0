//! Removes what tells of a disk that is here in part.

use std::path::Path;

use super::{lacks, map_file};

/// Removes the map of the image at `path`, which is whole or gone, and those of what its sources lack.
pub fn remove_map(path: &Path) {
    lacks::remove(path);
    map_file::remove(&map_file::map_path(path));
}
