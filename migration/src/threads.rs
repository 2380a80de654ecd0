//! The threads of this crate: what they do, told to whoever confines them, and what becomes of a migration
//! whose host has no room for one.
//!
//! A thread says its role first of all. The engine knows nothing of confinement; the process that it
//! runs in may give each role no more rights than it needs.

use std::sync::OnceLock;
use std::thread::{Builder, Scope};

use crate::error::Error;
use crate::os;

/// What a thread of the engine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Carries the control connection.
    Link,
    /// Carries a data connection, or makes memory present for one.
    Stream,
    /// Hashes guest memory.
    Hash,
    /// Takes connections in and hears what they want.
    Reception,
    /// Looks the address of a host up.
    LookUp,
}

static HOOK: OnceLock<fn(Role)> = OnceLock::new();

/// Has `hook` run first in every thread that this crate starts from now on, in that thread. Only the
/// first call in a process counts.
pub fn on_start(hook: fn(Role)) {
    let _ = HOOK.set(hook);
}

/// Says what the calling thread does for the rest of its life.
pub(crate) fn begin(role: Role) {
    if let Some(hook) = HOOK.get() {
        hook(role);
    }
}

/// Runs `work` on a thread of `scope` that does `role`; `what` it is for, should there be none.
pub(crate) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    role: Role,
    what: &'static str,
    work: impl FnOnce() + Send + 'scope,
) -> Result<(), Error> {
    let started = Builder::new().spawn_scoped(scope, move || {
        begin(role);
        work();
    });
    started.map(drop).map_err(|source| Error::Thread {
        what,
        source: os::no_thread(source),
    })
}
