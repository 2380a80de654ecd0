//! The destination has all of the guest and waits for the decision.

use std::thread;
use std::time::{Duration, Instant};

use super::committed::Committed;
use super::course::{Course, Failed, milliseconds};
use super::link::{Link, unexpected};
use super::moving::{Moving, Transfer, Withheld};
use super::policy::SwitchOverPolicy;
use super::resolve::resolve_within;
use crate::error::Error;
use crate::journal::Handover;
use crate::observation::{Observation, Side};
use crate::progress::Phase;
use crate::resolution::Resolution;
use crate::wire::control::{Answer, Message};

/// Between two attempts to ask a destination that did not answer.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// A guest that can go on at either side, and does at neither.
pub(super) struct Ready<'m, 's, 'a> {
    moving: Moving<'m, 's, 'a>,
    since: Instant,
}

impl<'m, 's, 'a> Ready<'m, 's, 'a> {
    /// As the destination has just said.
    pub fn new(moving: Moving<'m, 's, 'a>) -> Self {
        Self {
            moving,
            since: Instant::now(),
        }
    }

    /// Once `policy` allows it, records the decision, sends it, and waits until the guest runs at the destination.
    pub fn commit(self, policy: &dyn SwitchOverPolicy) -> Result<Committed<'m, 's, 'a>, Failed> {
        let Self { moving, since } = self;
        moving.course.enter(Phase::Commit);
        let decided = policy
            .may_commit()
            // While it was waited for the link may have ended: then nothing needs to be in doubt.
            .and_then(|()| moving.link.check())
            .and_then(|()| moving.course.record(Handover::CommitSent));
        if let Err(error) = decided {
            return Err(moving.fail(error));
        }
        // From here on the commit may have arrived, even if sending it fails, and only what it answers counts.
        let undecided = Undecided::of(moving);
        let decided = match undecided.send_commit() {
            Ok(decided) => decided,
            Err(lost) => return undecided.ask_after_loss(since, lost),
        };
        match decided {
            Decided::Runs { warnings } => {
                let Undecided { link, course, .. } = undecided;
                told_gone(course, since);
                Ok(Committed::with(link, course, warnings))
            }
            Decided::Stays => {
                let mut moving = undecided.stays();
                // Why comes next, and the guest does not wait for it.
                moving.go_on();
                let patience = moving.course.options.io_timeout;
                let why = moving.link.answer("committing", patience, || Ok(()));
                Err(moving.fail(why.map_or_else(|why| why, |other| unexpected(&other, "failure"))))
            }
        }
    }
}

/// What the destination answered to the commit.
enum Decided {
    Runs { warnings: Vec<Observation> },
    Stays,
}

/// A guest that may run at the destination: it stays stopped here, and all as it is, until that is known.
struct Undecided<'m, 's, 'a> {
    withheld: Withheld<'a>,
    link: Link<'s>,
    transfer: Transfer,
    course: &'m mut Course<'a>,
}

impl<'m, 's, 'a> Undecided<'m, 's, 'a> {
    fn of(moving: Moving<'m, 's, 'a>) -> Self {
        let Moving {
            guest,
            link,
            holds,
            transfer,
            course,
        } = moving;
        Self {
            withheld: Withheld::new(guest, holds),
            link,
            transfer,
            course,
        }
    }

    /// The guest stays here, as the destination says.
    fn stays(self) -> Moving<'m, 's, 'a> {
        let (guest, holds) = self.withheld.returned();
        Moving {
            guest,
            link: self.link,
            holds,
            transfer: self.transfer,
            course: self.course,
        }
    }

    fn send_commit(&self) -> Result<Decided, Error> {
        let Self { link, course, .. } = self;
        let patience = course.options.io_timeout;
        link.session.pages_complete();
        link.session.send(&Message::Commit)?;
        match link.answer("committing", patience, || Ok(()))? {
            Message::Committed(committed) => Ok(Decided::Runs {
                warnings: committed.warnings,
            }),
            // It cannot run the guest, and has recorded that it never will.
            Message::Resolution(Answer {
                resolution: Resolution::NeverRan,
                host,
            }) if host == course.host => Ok(Decided::Stays),
            other => Err(unexpected(&other, "committed")),
        }
    }

    /// The answer to the commit was lost: asks the destination whether it runs the guest, for a while.
    fn ask_after_loss(self, since: Instant, lost: Error) -> Result<Committed<'m, 's, 'a>, Failed> {
        let Self {
            withheld,
            link,
            course,
            ..
        } = self;
        let mut error = link.explain(lost);
        drop(link);
        course.control.warn(
            Observation::new(
                Side::Source,
                "migration.answer-lost",
                "the answer to the commit was lost, asking the destination",
            )
            .in_phase(course.phase().name())
            .caused_by(error.observe(Side::Source)),
        );
        let options = course.options;
        let until = Instant::now() + options.resolve_for;
        loop {
            match resolve_within(course.to, options.id, course.host, options.io_timeout) {
                Ok(Resolution::Ran) => {
                    told_gone(course, since);
                    return Ok(Committed::without_link(course));
                }
                Ok(Resolution::NeverRan) => {
                    drop(withheld.returned());
                    return Err(Failed::Kept(error));
                }
                Err(failed) => {
                    tracing::debug!("cannot resolve yet: {}", failed.observe(Side::Source));
                    // Says more than that the answer was lost.
                    if matches!(failed, Error::WrongHost { .. }) {
                        error = failed;
                    }
                }
            }
            if Instant::now() + ASK_AGAIN >= until {
                return Err(Failed::Unknown(error));
            }
            thread::sleep(ASK_AGAIN.min(options.resolve_for));
        }
    }
}

/// The guest runs at the destination, which was `ready`.
fn told_gone(course: &mut Course<'_>, ready: Instant) {
    let now = Instant::now();
    course.report.downtime.commit = milliseconds(now - ready);
    course.gone(now);
}
