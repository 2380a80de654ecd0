//! Where migrations come in: one session after the other, while connections are listened for.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;

use super::options::Options;
use super::reception::{Incoming, Reception};
use super::take::take;
use super::taken::{Fate, Taken, stopped};
use crate::error::Error;
use crate::journal::Journal;
use crate::session::SLICE;
use crate::steering::Steering;
use crate::threads::{self, ThreadKind};
use crate::transport::Listen;
use crate::vm::DestinationVm;

/// Lets `take_in` take in who comes to `from`.
pub(super) fn open<T>(
    from: &dyn Listen,
    options: &Options,
    journal: &dyn Journal,
    take_in: impl FnOnce(&mut Door<'_>) -> T,
) -> T {
    let (sender, incoming) = channel();
    let reception = Reception::new(from, journal, options, Some(sender));
    thread::scope(|scope| {
        let accepts = threads::start(scope, ThreadKind::Reception, "connections", || {
            reception.run_guarded(scope);
        });
        let _closing = reception.stop_on_drop();
        take_in(&mut Door {
            reception: &reception,
            incoming,
            accepts: accepts.map(drop),
            options,
            journal,
        })
    })
}

/// Where migrations come in while somebody listens.
pub(super) struct Door<'a> {
    pub reception: &'a Reception<'a>,
    incoming: Receiver<Incoming>,
    accepts: Result<(), Error>,
    options: &'a Options,
    journal: &'a dyn Journal,
}

impl Door<'_> {
    /// Takes in the next migration that wants more than to ask; `None` when `is_over` while nobody has
    /// come.
    pub fn take_next(
        &mut self,
        vm: &mut dyn DestinationVm,
        steering: &Steering,
        is_over: &dyn Fn() -> bool,
    ) -> Option<Taken> {
        loop {
            if let Err(stop) = steering.check() {
                return Some(stopped(stop, Fate::AtSourceByRequest));
            }
            if let Err(error) = std::mem::replace(&mut self.accepts, Ok(())) {
                return Some(stopped(error, Fate::AtSource));
            }
            if is_over() {
                return None;
            }
            let peer = match self.incoming.recv_timeout(SLICE) {
                Ok(Incoming::Control(peer)) => peer,
                Err(RecvTimeoutError::Timeout) => continue,
                Ok(Incoming::Closed(error)) => return Some(stopped(error, Fate::AtSource)),
                Err(RecvTimeoutError::Disconnected) => {
                    return Some(stopped(Error::Worker, Fate::AtSource));
                }
            };
            let taken = take(
                peer,
                self.reception,
                vm,
                self.options,
                steering,
                self.journal,
            );
            self.reception.end_session();
            if !matches!(taken, Taken::Planned) {
                return Some(taken);
            }
        }
    }
}
