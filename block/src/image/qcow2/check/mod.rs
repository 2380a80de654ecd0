//! Whether all that an image consists of agrees: what leads where, and how often each cluster is said to be
//! referenced.

mod findings;
mod references;
mod side;
mod width;

pub(super) use findings::Findings;
pub(super) use references::References;
pub(super) use width::Width;

use std::path::Path;

use super::chain::{read_header, refused};
use super::header::Header;
use super::tables::read_at;
use crate::{Access, Content, RawImage, Result};

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What may damage the disk, or has.
    pub errors: u64,
    /// Clusters that nothing leads to, and that are kept all the same: only space is lost.
    pub leaks: u64,
    /// Clusters of the disk that are in the image.
    pub allocated: u64,
    /// Those of them that are compressed.
    pub compressed: u64,
    /// Clusters of the disk.
    pub clusters: u64,
    /// The first of what was found, in words.
    pub findings: Vec<String>,
}

/// Opens an image for reading, claims it as readers do, and checks it: what it found, and the header.
///
/// # Errors
/// When it is in use, cannot be read, or is none that can be checked.
pub fn check_file(path: &Path) -> Result<(Report, Header)> {
    let file = RawImage::open(path, Access::ReadOnly, Content::Container)?;
    let header = read_header(&file)?;
    header.check_checkable().map_err(refused(&file))?;
    let _claim = file.claim()?;
    Ok((check(&file, &header)?, header))
}

/// Checks an image, of which `header` is the header; changes nothing. Internal snapshots and bitmaps are
/// looked at too.
///
/// # Errors
/// When it cannot be read, or is too large to be looked at: see [`References::of`].
pub fn check(file: &RawImage, header: &Header) -> Result<Report> {
    let mut references = References::of(file, header)?;
    references.add_refcounts(file, header)?;
    side::add(&mut references, file, header)?;
    let mut errors = std::mem::take(&mut references.errors);
    let mut leaks = Findings::default();
    let width = Width::of(header);
    let cluster = header.cluster();
    let mut block = vec![0; cluster as usize];
    for (index, offset) in references.refcount_blocks.iter().enumerate() {
        if *offset == 0 {
            block.fill(0);
        } else {
            read_at(file, *offset, &mut block)?;
        }
        let first = index as u64 * width.per_block();
        let end = match offset {
            // There is nothing to be found in none, but for what is referenced all the same.
            0 => references.len().clamp(first, first + width.per_block()),
            _ => first + width.per_block(),
        };
        for at in first..end {
            let within = at - first;
            let told = width.get(&block, within as usize);
            let found = references.count(at);
            if told < found {
                errors.add(|| format!("cluster {at}: refcount {told}, referenced {found} times"));
            } else if told > found {
                leaks.add(|| {
                    format!("cluster {at}: refcount {told}, referenced {found} times (leaked)")
                });
            }
            if (told == 1) != references.is_copied(at) && references.is_active(at) && told == found
            {
                errors.add(|| {
                    format!("cluster {at}: refcount {told}, and what leads to it says otherwise")
                });
            }
        }
    }
    let covered = references.refcount_blocks.len() as u64 * width.per_block();
    for at in covered..references.len() {
        let found = references.count(at);
        if found > 0 {
            errors.add(|| format!("cluster {at}: no refcount, referenced {found} times"));
        }
    }
    let told = errors.told.into_iter().chain(leaks.told);
    Ok(Report {
        errors: errors.count,
        leaks: leaks.count,
        allocated: references.allocated,
        compressed: references.compressed,
        clusters: header.size.div_ceil(cluster),
        findings: told.collect(),
    })
}
