//! Two hosts on this machine.

use super::Vms;
use crate::Host;

/// A host that guests leave and one that they go to; tells what their logs say when a test fails.
pub struct Pair {
    /// Where guests are started.
    pub source: Host,
    /// Where they go.
    pub destination: Host,
}

impl Pair {
    /// Two hosts on which nothing runs.
    ///
    /// # Panics
    /// When the binary does not build or there is no room for temporary files.
    pub fn new() -> Self {
        let host = || Host::new().unwrap_or_else(|e| panic!("{e:#}"));
        Self::of(host(), host())
    }

    /// These two.
    pub fn of(source: Host, destination: Host) -> Self {
        Self {
            source,
            destination,
        }
    }

    /// Checks that nothing runs on either host and nothing is left.
    #[track_caller]
    pub fn is_clean(&self) {
        self.source.is_clean();
        self.destination.is_clean();
    }
}

impl Default for Pair {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- source");
            self.source.tell();
            eprintln!("--- destination");
            self.destination.tell();
        }
    }
}
