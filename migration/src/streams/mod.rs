//! The data streams of both sides: each carries its share of every volume, memory and disks, pass after pass.

pub(crate) mod marks;
pub(crate) mod receiver;
pub(crate) mod sender;
