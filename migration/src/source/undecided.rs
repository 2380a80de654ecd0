//! The commit is sent, and it is not known yet what became of it.

use std::thread;
use std::time::{Duration, Instant};

use super::committed::Committed;
use super::course::{Course, Failed, milliseconds};
use super::link::Link;
use super::moving::{Holds, Moving, Transfer};
use super::resolve::resolve_within;
use crate::error::Error;
use crate::observation::{Observation, Side};
use crate::resolution::Resolution;
use crate::session::EXPLANATION;
use crate::undo::{Undo, Withheld};
use crate::wire::control::{Answer, Message};

/// Between two attempts to ask a destination that did not answer.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// What the destination answered to the commit.
enum Decided {
    Runs { warnings: Vec<Observation> },
    Stays,
}

/// A guest that may run at the destination: it stays stopped here, and all as it is, until that is known.
pub(super) struct Undecided<'m, 's, 'a> {
    /// When the destination was ready.
    ready: Instant,
    withheld: Withheld<(Option<Undo<'a>>, Holds<'a>)>,
    link: Link<'s>,
    transfer: Transfer,
    course: &'m mut Course<'a>,
}

impl<'m, 's, 'a> Undecided<'m, 's, 'a> {
    /// A guest whose destination has been ready since `ready`, and which is about to be told to run it.
    pub fn of(moving: Moving<'m, 's, 'a>, ready: Instant) -> Self {
        let Moving {
            guest,
            link,
            holds,
            transfer,
            course,
        } = moving;
        Self {
            ready,
            withheld: Withheld::new((guest, holds)),
            link,
            transfer,
            course,
        }
    }

    /// Sends the commit and waits until it is decided.
    pub fn commit(self) -> Result<Committed<'m, 's, 'a>, Failed> {
        let decided = match self.send_commit() {
            Ok(decided) => decided,
            Err(lost) => return self.ask_after_loss(lost),
        };
        match decided {
            Decided::Runs { warnings } => {
                told_gone(self.course, &self.transfer, self.ready);
                Ok(Committed::with(self.link, self.course, warnings))
            }
            Decided::Stays => {
                let mut moving = self.stays();
                // Why comes next, and the guest does not wait for it.
                moving.go_on();
                let patience = moving.course.options.io_timeout;
                let why = moving.link.answer("committing", patience, || Ok(()));
                Err(moving.fail(why.map_or_else(|why| why, |other| other.unexpected("failure"))))
            }
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
        let sent = link.session.send(&Message::Commit);
        // Also where it did not get out: a destination that gave up has said so before it ended.
        let patience = match sent {
            Ok(()) => course.options.io_timeout,
            Err(_) => EXPLANATION,
        };
        let answer = link.answer("committing", patience, || Ok(()));
        let answer = match (answer, sent) {
            (Err(Error::Peer(why)), _) => return Err(Error::Peer(why)),
            (Err(_), Err(lost)) => return Err(lost),
            (answer, _) => answer?,
        };
        match answer {
            Message::Committed(committed) => Ok(Decided::Runs {
                warnings: committed.warnings,
            }),
            // It cannot run the guest, and has recorded that it never will.
            Message::Resolution(Answer {
                resolution: Resolution::NeverRan,
                host,
            }) if host == course.host => Ok(Decided::Stays),
            other => Err(other.unexpected("committed")),
        }
    }

    /// The answer to the commit was lost: asks the destination whether it runs the guest, for a while.
    fn ask_after_loss(self, lost: Error) -> Result<Committed<'m, 's, 'a>, Failed> {
        let Self {
            ready,
            withheld,
            link,
            transfer,
            course,
        } = self;
        let mut error = link.explain(lost);
        drop(link);
        course.steering.warn(
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
                    told_gone(course, &transfer, ready);
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
fn told_gone(course: &mut Course<'_>, transfer: &Transfer, ready: Instant) {
    let now = Instant::now();
    if let Some(disks) = &mut course.report.disks {
        disks.left = transfer.disks.left();
        disks.on_demand = transfer.disks.on_demand(&transfer.sent_blocks);
        disks.snapshots = transfer.disks.snapshots();
    }
    course.report.downtime.commit = milliseconds(now - ready);
    course.gone(now);
}
