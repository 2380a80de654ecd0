//! All of the guest is here, and nothing of it was promised to its source yet.

use super::course::Failure;
use super::offered::Offered;
use super::taking::Taking;
use super::transfer::Transfer;
use crate::progress::Phase;
use crate::wire::control::{Message, Ready};

/// A machine with its guest, which belongs to its source.
pub(super) struct Loaded<'m, 's, 'a> {
    // Let go of before the machine that it lies in.
    transfer: Transfer,
    taking: Taking<'m, 's, 'a>,
    /// What the source is told.
    ready: Ready,
}

impl<'m, 's, 'a> Loaded<'m, 's, 'a> {
    pub fn new(taking: Taking<'m, 's, 'a>, transfer: Transfer, ready: Ready) -> Self {
        Self {
            transfer,
            taking,
            ready,
        }
    }

    /// Offers the hand-over: from here on the source may send its commit, and not know what became of it.
    pub fn offer(self) -> Result<Offered<'m, 's, 'a>, Failure> {
        let Self {
            transfer,
            mut taking,
            ready,
        } = self;
        let Taking {
            link,
            holds,
            course,
        } = &mut taking;
        course.enter(Phase::Ready);
        holds.offer(course);
        course.reception.expect_question(course.id);
        match link.session.send(&Message::Ready(ready)) {
            Ok(()) => Ok(Offered::new(taking, transfer)),
            Err(error) => {
                drop(transfer);
                Err(taking.fail(error))
            }
        }
    }
}
