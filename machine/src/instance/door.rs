//! Where a VM listens for its peers, as others close it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use migration::transport::socket::SocketListen;

/// A listener of one thread that another can have closed.
#[derive(Debug, Default)]
pub(crate) struct Door {
    /// Set when it is to be closed.
    pub(crate) closing: AtomicBool,
    closed: Mutex<bool>,
    changed: Condvar,
}

impl Door {
    /// Has it closed, and waits until it is; false when that takes longer than `patience`.
    pub(crate) fn close(&self, patience: Duration) -> bool {
        self.closing.store(true, Ordering::Release);
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        *self
            .changed
            .wait_timeout_while(closed, patience, |closed| !*closed)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

/// The listener as its thread has it: the door is closed when this is dropped.
pub(crate) struct Doorway {
    // Dropped first.
    pub(crate) listener: SocketListen,
    _closes: Closes,
}

impl Doorway {
    pub(crate) fn new(listener: SocketListen, door: Arc<Door>) -> Self {
        Self {
            listener,
            _closes: Closes(door),
        }
    }
}

struct Closes(Arc<Door>);

impl Drop for Closes {
    fn drop(&mut self) {
        *self.0.closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use migration::endpoint::Endpoint;
    use migration::transport::Listen;

    use super::*;

    #[test]
    fn the_port_is_free_when_the_door_is_closed() {
        let endpoint = |text: &str| Endpoint::numeric(text.parse().unwrap()).unwrap();
        let mut at = endpoint("127.0.0.1:0");
        for _ in 0..20 {
            let listener = SocketListen::bind(&at).unwrap();
            at = endpoint(&listener.address());
            let door = Arc::new(Door::default());
            let doorway = Doorway::new(listener, door.clone());
            let thread = std::thread::spawn(move || {
                while !door_is_closing(&doorway) {
                    let _ = doorway.listener.accept(Duration::from_millis(1));
                }
            });
            assert!(door.close(Duration::from_secs(60)));
            drop(SocketListen::bind(&at).unwrap());
            thread.join().unwrap();
        }
    }

    fn door_is_closing(doorway: &Doorway) -> bool {
        doorway._closes.0.closing.load(Ordering::Acquire)
    }
}
