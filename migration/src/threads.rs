//! The threads of this crate: what they do, told to whoever confines them, and what becomes of a migration
//! whose host has no room for one.
//!
//! A thread says its kind first of all. The engine knows nothing of confinement; the process that it
//! runs in may give each kind no more rights than it needs.

use std::sync::OnceLock;
use std::thread::{Builder, Scope, ScopedJoinHandle};

use crate::error::Error;
use crate::os;

/// What a thread of the engine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// Carries the control connection.
    Link,
    /// Carries a data connection, or makes memory present for one.
    Stream,
    /// Reads what a destination says on a data connection.
    Reader,
    /// Hashes guest memory.
    Hash,
    /// Has the guest's disks flushed while the guest runs.
    Flush,
    /// Takes connections in and hears what they want.
    Reception,
    /// Serves one connection of a pull.
    Serve,
    /// Asks for what has not come, and connects again when a link is lost.
    Pull,
}

/// Where the threads of a crate say their kinds, and whoever confines them hears it.
#[derive(Debug)]
pub struct Hook<K>(OnceLock<fn(K)>);

impl<K> Hook<K> {
    /// Nobody listens.
    #[must_use]
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// Has `listener` run in each thread that says its kind from now on. Only the first call in a process counts.
    pub fn set(&self, listener: fn(K)) {
        let _ = self.0.set(listener);
    }

    /// Says what the calling thread does for the rest of its life.
    pub fn begin(&self, kind: K) {
        if let Some(listener) = self.0.get() {
            listener(kind);
        }
    }
}

impl<K> Default for Hook<K> {
    fn default() -> Self {
        Self::new()
    }
}

/// The threads of this crate.
pub static STARTED: Hook<ThreadKind> = Hook::new();

/// Says what the calling thread does for the rest of its life.
pub(crate) fn begin(kind: ThreadKind) {
    STARTED.begin(kind);
}

/// Runs `work` on a thread of `scope` of this `kind`; `what` it is for, should there be none.
pub(crate) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    kind: ThreadKind,
    what: &'static str,
    work: impl FnOnce() + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, ()>, Error> {
    let started = Builder::new().spawn_scoped(scope, move || {
        begin(kind);
        work();
    });
    started.map_err(|source| Error::Thread {
        what,
        source: os::no_thread(source),
    })
}
