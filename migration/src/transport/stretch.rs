//! Which pieces of a frame go into a socket by reference, and which are copied (docs/adr/0008).

use crate::PAGE_SIZE;
use crate::raw::Piece;

/// Guest memory in a row that is sent by reference at least, in bytes; less is copied.
const BY_REFERENCE: usize = 64 << 10;

/// Pieces in a row that are copied, and the run of guest memory after them that goes by reference. Either
/// may be empty.
pub(super) struct Stretch<'p, 'a> {
    pub copied: &'p [Piece<'a>],
    pub referenced: &'p [Piece<'a>],
}

/// The first stretch of a frame, and what comes after it; `None` at the end.
pub(super) fn next<'p, 'a>(pieces: &'p [Piece<'a>]) -> Option<(Stretch<'p, 'a>, &'p [Piece<'a>])> {
    if pieces.is_empty() {
        return None;
    }
    let mut at = 0;
    while at < pieces.len() {
        let run = run_of_ram(&pieces[at..]);
        if is_worth_referring(run) {
            let (copied, rest) = pieces.split_at(at);
            let (referenced, rest) = rest.split_at(run.len());
            return Some((Stretch { copied, referenced }, rest));
        }
        at += run.len().max(1);
    }
    let stretch = Stretch {
        copied: pieces,
        referenced: &[],
    };
    Some((stretch, &[]))
}

fn run_of_ram<'p, 'a>(pieces: &'p [Piece<'a>]) -> &'p [Piece<'a>] {
    let is_plain = |piece: &Piece<'_>| matches!(piece, Piece::Bytes { .. });
    let end = pieces.iter().position(is_plain);
    &pieces[..end.unwrap_or(pieces.len())]
}

/// To refer to single pages costs as much as the copy that it saves.
fn is_worth_referring(run: &[Piece<'_>]) -> bool {
    let bytes: usize = run.iter().map(Piece::len).sum();
    bytes >= BY_REFERENCE && bytes >= run.len() * 2 * PAGE_SIZE as usize
}
