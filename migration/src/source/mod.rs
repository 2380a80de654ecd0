//! The source of a migration: gives its guest away, or keeps it as if nothing had been tried.
//!
//! [`migrate`] goes through the phases in order; each is a function in the file of its concern.

mod converge;
mod copy;
mod costs;
mod flushing;
mod handover;
mod options;
mod pace;
mod run;
mod setup;

pub use crate::resolution::Resolution;
pub use handover::{resolve, settle};
pub use options::Options;
pub use setup::default_streams;

use crate::control::Control;
use crate::journal::Journal;
use crate::outcome::Outcome;
use crate::transport::Connect;
use crate::vm::SourceVm;

use run::Run;

/// Moves the guest of `vm` to the destination at `to`, and returns when it is known how that ended.
/// Events go to `control`, the last one holds the same report as the outcome.
pub fn migrate(
    vm: &dyn SourceVm,
    to: &dyn Connect,
    options: &Options,
    control: &Control,
    journal: &dyn Journal,
) -> Outcome {
    let span = tracing::info_span!("migration", id = %options.id, role = "source");
    let _entered = span.enter();
    control.set_id(options.id);
    control.begin(options.request.limits());
    let mut run = Run::new(vm, to, options, control, journal);
    let result = run.drive();
    run.conclude(result)
}
