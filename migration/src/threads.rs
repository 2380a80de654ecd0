//! Threads of the engine, which a host may lack the memory or the room for.

use std::thread::{Builder, Scope};

use crate::error::Error;
use crate::os;

/// Runs `work` on a thread of `scope`; `what` it is for, should there be none.
pub(crate) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    what: &'static str,
    work: impl FnOnce() + Send + 'scope,
) -> Result<(), Error> {
    let started = Builder::new().spawn_scoped(scope, work);
    started.map(drop).map_err(|source| Error::Thread {
        what,
        source: os::no_thread(source),
    })
}
