//! An image whose content tells where it belongs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use block::on_demand::BLOCK;

/// Whether `block` is a hole: every fifth is.
pub fn is_hole(block: u64) -> bool {
    block % 5 == 4
}

/// What `block` of an image of `size` bytes holds.
pub fn content(block: u64, size: u64) -> Vec<u8> {
    let len = (size - block * BLOCK).min(BLOCK);
    if is_hole(block) {
        return vec![0; len as usize];
    }
    (0..len).map(|at| (at * 7 + block * 13 + 1) as u8).collect()
}

/// Makes an image of `size` bytes, whose first `blocks` have their content; the others are holes.
pub fn make(path: &Path, size: u64, blocks: u64) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for block in (0..blocks).filter(|block| !is_hole(*block)) {
        file.write_all_at(&content(block, size), block * BLOCK)
            .unwrap();
    }
    file.sync_all().unwrap();
}
