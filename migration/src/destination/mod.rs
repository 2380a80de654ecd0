//! The destination of a migration: takes a guest in, or leaves nothing behind.

mod placings;
mod reception;
mod take;
mod wanted;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use reception::{Incoming, Reception};

use crate::control::Control;
use crate::error::Error;
use crate::journal::Journal;
use crate::observation::{Observation, Side};
use crate::outcome::Outcome;
use crate::progress::{Phase, Report};
use crate::session::SLICE;
use crate::threads::{self, Role};
use crate::transport::Listen;
use crate::vm::DestinationVm;

/// Bounds of waiting at the destination.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a transfer may stand still or an answer may take.
    pub io_timeout: Duration,
    /// How long the source may be silent.
    pub peer_timeout: Duration,
    /// How long a new connection may take to say what it wants.
    pub hello_timeout: Duration,
    /// How long a source that lives may send neither pages nor anything else for the migration. A
    /// limit on its bandwidth must let a batch through in that time: at 64 KiB, 220 bytes a second.
    pub progress_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            io_timeout: Duration::from_secs(10),
            peer_timeout: Duration::from_secs(10),
            hello_timeout: Duration::from_secs(5),
            progress_timeout: Duration::from_secs(300),
        }
    }
}

/// How a session ended.
enum Taken {
    /// The guest is here.
    Completed(Report),
    /// The source only asked.
    Planned,
    /// It failed before the commit was recorded, and nothing is left of it; or, when `unknown`,
    /// after.
    Failed(Report, Box<Observation>, Fate),
}

/// Where the guest is after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    AtSource,
    AtSourceByRequest,
    Unknown,
}

/// Waits for a migration at `from` and takes its guest into `vm`.
///
/// Connections that are no migration are refused and waiting goes on; questions about earlier
/// migrations are answered from `journal` meanwhile. After a failure nothing is left in `vm`, and it
/// may be called again.
pub fn receive(
    from: &dyn Listen,
    vm: &mut dyn DestinationVm,
    options: &Options,
    control: &Control,
    journal: &dyn Journal,
) -> Outcome {
    let (sender, incoming) = channel();
    let reception = Reception::new(from, journal, options, Some(sender));
    let taken = thread::scope(|scope| {
        let mut accepts = threads::start(scope, Role::Reception, "connections", || {
            reception.run_guarded(scope);
        });
        let _closing = reception.stop_on_drop();
        loop {
            if let Err(stop) = control.check() {
                break stopped(stop, Fate::AtSourceByRequest);
            }
            if let Err(error) = std::mem::replace(&mut accepts, Ok(())) {
                break stopped(error, Fate::AtSource);
            }
            let taken = match incoming.recv_timeout(SLICE) {
                Ok(Incoming::Control {
                    connection,
                    id,
                    version,
                }) => {
                    let peer = take::Peer {
                        connection,
                        id,
                        version,
                    };
                    take::take(peer, &reception, vm, options, control, journal)
                }
                Err(RecvTimeoutError::Timeout) => continue,
                Ok(Incoming::Closed(error)) => break stopped(error, Fate::AtSource),
                Err(RecvTimeoutError::Disconnected) => {
                    break stopped(Error::Worker, Fate::AtSource);
                }
            };
            reception.end_session();
            if !matches!(taken, Taken::Planned) {
                break taken;
            }
        }
    });
    conclude(taken, control)
}

fn stopped(error: Error, fate: Fate) -> Taken {
    let observation = error.observe(Side::Destination);
    Taken::Failed(Report::default(), Box::new(observation), fate)
}

fn conclude(taken: Taken, control: &Control) -> Outcome {
    let outcome = match taken {
        Taken::Completed(mut report) => {
            report.status = "completed".into();
            Outcome::Completed(report)
        }
        Taken::Planned => Outcome::Planned(Report {
            status: "planned".into(),
            ..Report::default()
        }),
        Taken::Failed(mut report, observation, fate) => {
            tracing::error!("{observation}");
            report.error = Some(*observation);
            let (status, outcome): (_, fn(Report) -> Outcome) = match fate {
                Fate::AtSource => ("failed", Outcome::Failed),
                Fate::AtSourceByRequest => ("cancelled", Outcome::Cancelled),
                Fate::Unknown => ("handover-unknown", Outcome::HandoverUnknown),
            };
            report.status = status.into();
            outcome(report)
        }
    };
    control.end(&outcome);
    outcome
}

/// Goes on answering questions about migrations at `from` until `stop` is set.
///
/// # Errors
/// When no connection can come any more.
pub fn answer_resolve(
    from: &dyn Listen,
    journal: &dyn Journal,
    stop: &AtomicBool,
) -> Result<(), Error> {
    let options = Options::default();
    let reception = Reception::new(from, journal, &options, None);
    thread::scope(|scope| {
        let _closing = reception.stop_on_drop();
        while !stop.load(Ordering::Acquire) {
            reception.accept_one(scope)?;
        }
        Ok(())
    })
}

fn failure_in(phase: Phase, error: &Error) -> Observation {
    Observation::new(
        Side::Destination,
        "migration.failed",
        format!("migration failed in phase {}", phase.name()),
    )
    .in_phase(phase.name())
    .caused_by(error.observe(Side::Destination))
}
