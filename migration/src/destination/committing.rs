//! The source has decided: the commit is recorded, and the guest run.

use std::time::Instant;

use super::course::{Course, Failure};
use super::holds::Holds;
use super::link::Link;
use super::running::Running;
use super::taken::Fate;
use super::taking::Taking;
use crate::error::Error;
use crate::journal::Decision;
use crate::resolution::Resolution;
use crate::undo::Withheld;
use crate::vm::RunState;
use crate::wire::control::{Committed, MAX_WARNINGS};

/// A guest that may run here: what is built stays until it is known that it does not, also if this is dropped.
pub(super) struct Committing<'m, 's, 'a> {
    withheld: Withheld<Holds<'a>>,
    link: Link<'s, 'a>,
    course: &'m mut Course<'a>,
}

impl<'m, 's, 'a> Committing<'m, 's, 'a> {
    /// A guest whose source has sent its commit.
    pub fn of(taking: Taking<'m, 's, 'a>) -> Self {
        let Taking {
            link,
            holds,
            course,
        } = taking;
        Self {
            withheld: Withheld::new(holds),
            link,
            course,
        }
    }

    /// Records the commit, then runs the guest.
    pub fn run(mut self) -> Result<Running<'m, 's, 'a>, Failure> {
        let ran = {
            let _nobody_asks = self.course.reception.hand_over();
            self.record().and_then(|journal_ms| self.start(journal_ms))
        };
        let Self {
            mut withheld,
            link,
            course,
        } = self;
        let (error, fate) = match ran {
            Ok(committed) => {
                let machine = withheld.returned().keep();
                return Ok(Running::new(link, machine, course, committed));
            }
            Err(failed) => failed,
        };
        let failure = Failure {
            error,
            fate,
            aftermath: withheld.get_mut().aftermath(course.id),
        };
        if fate == Fate::Unknown {
            return Err(failure.on(link));
        }
        link.tell_never_ran(course.journal);
        let taking = Taking {
            link,
            holds: withheld.returned(),
            course,
        };
        Err(taking.undo(failure))
    }

    /// Records the commit; how many milliseconds that took.
    fn record(&self) -> Result<f64, (Error, Fate)> {
        let Course { journal, id, .. } = *self.course;
        let began = Instant::now();
        match journal.decide(id, Decision::Commit) {
            Ok(Decision::Commit) => Ok(began.elapsed().as_secs_f64() * 1e3),
            Ok(Decision::GiveUp) => {
                let id = id.to_string();
                Err((Error::GivenUp { id }, Fate::AtSource))
            }
            // It may or may not be durable: trying to give up tells.
            Err(error) => {
                let fate = match journal.decide(id, Decision::GiveUp) {
                    Ok(Decision::GiveUp) => Fate::AtSource,
                    Ok(Decision::Commit) => self.take_back(),
                    Err(_) => Fate::Unknown,
                };
                Err((error.into(), fate))
            }
        }
    }

    /// Runs the guest, whose commit is recorded; what the source is told.
    fn start(&mut self, journal_ms: f64) -> Result<Committed, (Error, Fate)> {
        let vm = &mut *self.withheld.get_mut().machine.vm;
        let started = Instant::now();
        let run = match self.course.report.run_state {
            RunState::Running => vm.start(),
            RunState::Paused => vm.take_over_paused(),
        };
        match run.map_err(Error::vm("start the guest")) {
            Ok(()) => {
                let start_ms = started.elapsed().as_secs_f64() * 1e3;
                let mut warnings = vm.warnings();
                warnings.truncate(MAX_WARNINGS);
                Ok(Committed {
                    journal_ms,
                    start_ms,
                    warnings,
                })
            }
            Err(error) => Err((error, self.take_back())),
        }
    }

    /// Takes a recorded commit back, for a guest that has not executed anything here; possible
    /// unless someone was told already that it ran.
    fn take_back(&self) -> Fate {
        let Course { journal, id, .. } = *self.course;
        match journal.answer(id, Resolution::NeverRan) {
            Ok(Resolution::NeverRan) => Fate::AtSource,
            Ok(Resolution::Ran) | Err(_) => Fate::Unknown,
        }
    }
}
