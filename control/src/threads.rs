//! What the threads of this crate do, told to whoever confines them ([`Hook`]).

use migration::threads::Hook;

/// What a thread of the control socket does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// Serves the control socket and hears signals.
    Server,
    /// Carries out one request after the other; the server starts it.
    Request,
}

/// The threads of this crate.
pub static STARTED: Hook<ThreadKind> = Hook::new();
