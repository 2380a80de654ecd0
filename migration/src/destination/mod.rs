//! The destination of a migration: takes a guest in, or leaves nothing behind.
//!
//! Each step of a migration is a value, as at the source ([`take`] has them in order): [`Negotiated`](negotiated::Negotiated),
//! [`Built`](built::Built), [`Loaded`](loaded::Loaded), [`Offered`](offered::Offered), [`Running`](running::Running).

mod apart;
mod bounds;
mod built;
mod committing;
mod course;
mod door;
mod expected;
mod holds;
mod link;
mod loaded;
mod negotiated;
mod offered;
mod options;
mod placings;
mod reception;
mod running;
mod take;
mod taken;
mod taking;
mod transfer;
mod waiting;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

pub use options::Options;
pub use waiting::{Waiting, wait_for_guest};

use crate::error::Error;
use crate::journal::Journal;
use crate::outcome::Outcome;
use crate::steering::Steering;
use crate::transport::Listen;
use crate::vm::DestinationVm;

use reception::Reception;
use taken::{Taken, conclude};

/// Waits for a migration at `from` and takes its guest into `vm`.
///
/// Connections that are no migration are refused and waiting goes on; questions about earlier
/// migrations are answered from `journal` meanwhile. After a failure nothing is left in `vm`, and it
/// may be called again; [`wait_for_guest`] does so.
pub fn receive(
    from: &dyn Listen,
    vm: &mut dyn DestinationVm,
    options: &Options,
    steering: &Steering,
    journal: &dyn Journal,
) -> Outcome {
    let taken = door::open(from, options, journal, |door| {
        door.take_next(vm, steering, &|| false)
    });
    // Nothing but a session ends that.
    conclude(taken.unwrap_or(Taken::Planned), steering)
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
