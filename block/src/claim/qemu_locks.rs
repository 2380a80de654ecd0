//! The lock bytes by which QEMU and its tools know that an image is in use.
//!
//! Who uses an image holds a shared lock on byte 100 + *n* for each permission *n* that it has, and on
//! byte 200 + *n* for each that it does not share; then it looks whether anybody holds a byte of the
//! other kind that contradicts (`RAW_LOCK_PERM_BASE` in QEMU's `block/file-posix.c`). As all locks are
//! shared ones, owner and successor of an image hold them beside each other.

use std::fs::File;
use std::io;
use std::ops::Range;

use super::ofd::{self, Kind};
use crate::Access;

/// All bytes that QEMU may lock.
const BYTES: Range<i64> = 100..300;

const READS: i64 = 100;
const WRITES: i64 = 101;
const RESIZES: i64 = 103;
const KEEPS_READERS_OUT: i64 = 200;
const KEEPS_WRITERS_OUT: i64 = 201;
const KEEPS_RESIZERS_OUT: i64 = 203;

/// Bytes that are held while the image is used so.
const fn held(access: Access) -> &'static [i64] {
    match access {
        Access::ReadOnly => &[READS, KEEPS_WRITERS_OUT, KEEPS_RESIZERS_OUT],
        // It never resizes; but some readers, such as an NBD export of QEMU's, mind nobody who only writes.
        Access::ReadWrite => &[
            READS,
            WRITES,
            RESIZES,
            KEEPS_WRITERS_OUT,
            KEEPS_RESIZERS_OUT,
        ],
    }
}

/// Bytes that nobody else may hold meanwhile.
const fn contradicting(access: Access) -> &'static [i64] {
    match access {
        Access::ReadOnly => &[WRITES, RESIZES, KEEPS_READERS_OUT],
        Access::ReadWrite => &[
            WRITES,
            RESIZES,
            KEEPS_READERS_OUT,
            KEEPS_WRITERS_OUT,
            KEEPS_RESIZERS_OUT,
        ],
    }
}

/// Says that the image is in use.
pub(crate) fn lock(file: &File, access: Access) -> io::Result<()> {
    for &byte in held(access) {
        if !ofd::try_lock(file, byte, Kind::Shared)? {
            // Nobody has a reason to lock these exclusively.
            return Err(io::ErrorKind::WouldBlock.into());
        }
    }
    Ok(())
}

/// Whether somebody else uses the image in a way that does not go with this one.
pub(crate) fn is_contradicted(file: &File, access: Access) -> io::Result<bool> {
    for &byte in contradicting(access) {
        if ofd::is_locked(file, byte)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Says no longer that the image is in use.
pub(crate) fn unlock(file: &File) -> io::Result<()> {
    ofd::unlock(file, BYTES)
}
