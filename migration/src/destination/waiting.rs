//! Waits until a guest is here, whatever comes to nothing before.

use std::sync::Arc;
use std::time::Instant;

use super::door::open;
use super::options::Options;
use super::taken::{Aftermath, Fate, Taken, conclude};
use crate::id::MigrationId;
use crate::journal::Journal;
use crate::outcome::Outcome;
use crate::progress::Report;
use crate::steering::Steering;
use crate::transport::Listen;
use crate::vm::DestinationVm;

/// Who waits for a guest.
pub trait Waiting {
    /// The handle of the migration that is waited for from now on.
    fn next(&self) -> Arc<Steering>;
    /// A migration failed, as its report says, and the next is waited for.
    fn goes_on(&self, report: &Report);
}

/// As [`super::receive`], and goes on waiting where that costs nobody anything, or is owed to a source:
///
/// - after a failure before the machine was built, which any stranger could bring about;
/// - after a hand-over that was on offer and given up, of which the source may be in doubt: until it has
///   asked, or for [`Options::answer_for`], whichever comes first. Once it has asked nothing is owed any
///   more, and it waits as if nobody had come. In the other case the failure is the outcome.
///
/// Any other failure is the outcome at once.
pub fn wait_for_guest(
    from: &dyn Listen,
    vm: &mut dyn DestinationVm,
    options: &Options,
    waiting: &dyn Waiting,
    journal: &dyn Journal,
) -> Outcome {
    open(from, options, journal, |door| {
        let reception = door.reception;
        let mut owed: Option<Owed> = None;
        loop {
            let steering = waiting.next();
            owed = owed.filter(|owed| !reception.was_asked(owed.id));
            let is_over = || {
                owed.as_ref().is_some_and(|owed| {
                    Instant::now() >= owed.until && !reception.was_asked(owed.id)
                })
            };
            let Some(taken) = door.take_next(vm, &steering, &is_over) else {
                // Only what is owed can be over.
                let outcome =
                    owed.map_or_else(|| Outcome::Failed(Report::default()), |o| o.outcome);
                steering.end(&outcome);
                return outcome;
            };
            let aftermath = match &taken {
                Taken::Failed(failed) if failed.fate == Fate::AtSource => failed.aftermath,
                _ => Aftermath::Shut,
            };
            let outcome = conclude(taken, &steering);
            let report = outcome.report().clone();
            match aftermath {
                Aftermath::Nothing => {}
                Aftermath::InDoubt(id) => {
                    let until = Instant::now() + options.answer_for;
                    owed = Some(Owed { id, until, outcome });
                }
                // The one before may still ask.
                Aftermath::BuiltInVain
                    if owed
                        .as_ref()
                        .is_some_and(|owed| !reception.was_asked(owed.id)) => {}
                Aftermath::BuiltInVain | Aftermath::Shut => return outcome,
            }
            waiting.goes_on(&report);
        }
    })
}

/// A source is to be answered when it asks.
struct Owed {
    id: MigrationId,
    until: Instant,
    /// What becomes of the wait if it never does.
    outcome: Outcome,
}
