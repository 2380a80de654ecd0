//! Announcing a guest that has come to this host to the networks that it is on.
//!
//! Bridges and switches send what is for the guest to where they last heard it. They hear of the move by
//! a frame in its name (RARP) on each of its interfaces, at once and again a few times, since such
//! frames may be lost and ports may need a moment to forward; and by the guest itself, which knows its
//! IP addresses, where its driver can be asked. Nothing is said before the guest runs here, and nothing
//! after it has stopped to.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use devices::virtio::NetPort;

use crate::threads::{self, ThreadKind};

/// Pauses between one round of announcements and the next.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(250),
    Duration::from_millis(350),
];

/// What is to be announced of a machine when it runs.
#[derive(Debug, Default)]
pub(crate) struct Announcements {
    due: AtomicBool,
    failures: Mutex<Vec<String>>,
}

impl Announcements {
    /// The guest has come from elsewhere: it is announced when it runs.
    pub(crate) fn make_due(&self) {
        self.due.store(true, Ordering::SeqCst);
    }

    /// Announces the guest, which has begun to run, if that is due: once now, and again on a thread.
    pub(crate) fn make(&self, ports: &[(String, NetPort)]) {
        if !self.due.swap(false, Ordering::SeqCst) || ports.is_empty() {
            return;
        }
        for (id, port) in ports {
            port.ask_guest_to_announce();
            if let Err(error) = port.announce() {
                self.fail(format!(
                    "interface {id} was not announced to its network: {error}"
                ));
            }
        }
        let ports = ports.to_vec();
        let again = thread::Builder::new()
            .name("announce".into())
            .spawn(move || {
                threads::begin(ThreadKind::Helper);
                repeat(&ports);
            });
        if let Err(error) = again {
            self.fail(format!(
                "the guest was announced to its networks only once: {error}"
            ));
        }
    }

    fn fail(&self, what: String) {
        tracing::warn!("{what}");
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(what);
    }

    /// What went wrong, told once.
    pub(crate) fn take_failures(&self) -> Vec<String> {
        std::mem::take(&mut *self.failures.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn repeat(ports: &[(String, NetPort)]) {
    for pause in PAUSES {
        thread::sleep(pause);
        for (id, port) in ports {
            if port.is_guest_announcing() {
                port.ask_guest_to_announce();
            }
            match port.announce() {
                Ok(true) => {}
                // It has stopped, or moved on: others speak for it now.
                Ok(false) => return,
                Err(error) => tracing::warn!(net = %id, %error, "announcement was not sent"),
            }
        }
    }
}
