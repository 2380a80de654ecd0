//! The source of a migration: gives its guest away, or keeps it as if nothing had been tried.
//!
//! Each step of a migration is a value, with what it holds and what is to be undone if it is dropped; its
//! methods consume it and give the next one: [`Negotiated`](negotiated::Negotiated),
//! [`Copying`](copying::Copying), [`Stopped`](stopped::Stopped), [`Ready`](ready::Ready),
//! [`Committed`](committed::Committed).

mod committed;
mod connect;
mod copying;
mod costs;
mod course;
mod flushing;
mod good_bye;
mod leaving_rests;
mod link;
mod measurement;
mod mirroring;
mod moving;
mod negotiated;
mod options;
mod pace;
mod passes;
mod policy;
mod preparing;
mod reader;
mod ready;
mod reconnecting;
mod resolve;
mod retries;
mod stopped;
#[cfg(test)]
mod tests;
mod travelling;
mod undecided;
mod warnings;

pub use crate::resolution::Resolution;
pub use options::{Options, default_streams};
pub use resolve::{resolve, settle};

use std::thread::{self, Scope};

use crate::journal::Journal;
use crate::outcome::Outcome;
use crate::steering::Steering;
use crate::transport::Connect;
use crate::vm::SourceVm;

use course::{Course, End, Failed};
use negotiated::Negotiated;
use policy::Alone;

/// Moves the guest of `vm` to the destination at `to`, and returns when it is known how that ended.
/// Events go to `steering`, the last one holds the same report as the outcome.
pub fn migrate(
    vm: &dyn SourceVm,
    to: &dyn Connect,
    options: &Options,
    steering: &Steering,
    journal: &dyn Journal,
) -> Outcome {
    let span = tracing::info_span!("migration", id = %options.id, role = "source");
    let _entered = span.enter();
    steering.set_id(options.id);
    steering.begin(options.request.limits());
    let policy = Alone {
        steering,
        deadline: options.deadline(),
    };
    let course = Course::new(vm, to, options, steering, journal, &policy);
    run(course)
}

fn run(mut course: Course<'_>) -> Outcome {
    let result = thread::scope(|scope| steps(scope, &mut course));
    course.conclude(result)
}

fn steps<'s, 'a>(scope: &'s Scope<'s, 'a>, course: &mut Course<'a>) -> Result<End, Failed> {
    let is_plan = course.options.request.plan;
    let negotiated = Negotiated::with(scope, course)?;
    if is_plan {
        return negotiated.end_plan();
    }
    let copying = negotiated.prepare()?;
    let stopped = copying.converge()?;
    let ready = stopped.send_rest()?;
    let committed = ready.commit()?;
    Ok(committed.finish())
}
