//! What there is of a migration until the guest is here for good.

use super::course::{Course, Failure};
use super::holds::Holds;
use super::link::Link;
use super::taken::{Aftermath, Fate};
use crate::error::Error;

/// A guest that is being taken in. Dropped, it is undone in the order of the fields: the link ends, and then all else.
/// Whoever has a reason to tell the source calls [`Taking::fail`].
pub(super) struct Taking<'m, 's, 'a> {
    pub link: Link<'s, 'a>,
    pub holds: Holds<'a>,
    pub course: &'m mut Course<'a>,
}

impl Taking<'_, '_, '_> {
    /// Ends it for this reason, before the commit is recorded: the guest stays at its source.
    pub fn fail(self, error: Error) -> Failure {
        let aftermath = self.holds.aftermath(self.course.id);
        self.fail_with(error, aftermath)
    }

    /// The same, where more is known of what is left to be done.
    pub fn fail_with(self, error: Error, aftermath: Aftermath) -> Failure {
        let fate = match error {
            Error::Cancelled => Fate::AtSourceByRequest,
            _ => Fate::AtSource,
        };
        self.undo(Failure {
            error,
            fate,
            aftermath,
        })
    }

    /// Ends it for this failure, which leaves the guest at its source.
    pub fn undo(self, failure: Failure) -> Failure {
        let Self {
            link,
            holds,
            course,
        } = self;
        let failure = failure.on(link);
        course.over();
        drop(holds);
        failure
    }
}

impl Failure {
    /// Ends `link` for it.
    pub fn on(self, link: Link<'_, '_>) -> Self {
        let error = link.end_for(self.error);
        let aftermath = match error {
            // By somebody who asked.
            Error::GivenUp { .. } => Aftermath::Nothing,
            _ => self.aftermath,
        };
        Self {
            error,
            aftermath,
            ..self
        }
    }
}
