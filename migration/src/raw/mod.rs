//! The only module with `unsafe` code: guest memory by address, and vectored socket I/O from and to it.
//!
//! Guest memory is shared with running vCPUs, so no Rust reference into it may exist; everything here
//! goes through raw pointers whose bounds were checked once, when the slice was made. A value that is
//! read while the guest writes it may be torn, and one that is sent by reference may be newer than the
//! one that was hashed: the page is then marked dirty (its mark was cleared before the read) and is sent
//! again, so such values are never relied on.
#![allow(unsafe_code)]

mod hash;
mod iovec;
mod piece;
mod slice;
mod splice;

pub use hash::{HashKey, PageHash};
pub(crate) use iovec::{Then, receive_all, send_all};
pub use piece::{Piece, gather, scatter};
pub use slice::{Ram, RamSlice, Region, STRIPE_PAGES, Span};
pub(crate) use splice::PagePipe;
