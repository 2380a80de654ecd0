//! Telling whoever types that there is room for the rest.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Called when a device that took only a part of the input that it was offered has room again; by a
/// thread of the guest, so it must not block.
pub type OnRoom = Box<dyn Fn() + Send + Sync>;

/// Who is to be told, and whether they wait for it.
#[derive(Default)]
pub(crate) struct Room {
    wanted: AtomicBool,
    tell: OnceLock<OnRoom>,
}

impl Room {
    /// Sets who is told; once, a second time changes nothing.
    pub(crate) fn on_room(&self, tell: OnRoom) {
        let _first = self.tell.set(tell);
    }

    /// Notes that something was not taken. Under the lock of the buffer, so that the room which is made
    /// after it is told.
    pub(crate) fn lacks(&self) {
        self.wanted.store(true, Ordering::SeqCst);
    }

    /// Tells that `free` of `limit` bytes are free, if somebody waits and it is worth while.
    pub(crate) fn has(&self, free: usize, limit: usize) {
        if free >= limit / 2
            && self.wanted.swap(false, Ordering::SeqCst)
            && let Some(tell) = self.tell.get()
        {
            tell();
        }
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room")
            .field("wanted", &self.wanted)
            .finish_non_exhaustive()
    }
}
