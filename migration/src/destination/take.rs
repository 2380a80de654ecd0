//! Takes one guest in, step by step.

use std::thread::{self, Scope};

use super::course::{Course, End, Failure};
use super::negotiated::Negotiated;
use super::options::Options;
use super::reception::{Peer, Reception};
use super::taken::Taken;
use crate::journal::Journal;
use crate::steering::Steering;
use crate::vm::DestinationVm;

/// Takes the guest of `peer` into `vm`, and returns when it is known how that ended.
pub(super) fn take(
    peer: Peer,
    reception: &Reception<'_>,
    vm: &mut dyn DestinationVm,
    options: &Options,
    steering: &Steering,
    journal: &dyn Journal,
) -> Taken {
    let id = peer.id;
    let span = tracing::info_span!("migration", %id, role = "destination");
    let _entered = span.enter();
    steering.set_id(id);
    let mut course = Course::new(id, options, steering, journal, reception);
    let result = thread::scope(|scope| steps(scope, peer, vm, &mut course));
    course.conclude(result)
}

fn steps<'s, 'a>(
    scope: &'s Scope<'s, 'a>,
    peer: Peer,
    vm: &'a mut dyn DestinationVm,
    course: &mut Course<'a>,
) -> Result<End, Failure> {
    let negotiated = Negotiated::with(scope, peer, vm, course)?;
    if negotiated.is_plan() {
        return Ok(negotiated.end_plan());
    }
    let built = negotiated.build()?;
    let loaded = built.receive()?;
    let offered = loaded.offer()?;
    let running = offered.take_over()?;
    Ok(running.finish())
}
