//! Which of the guest's two consoles a viewer's keys go to: the one that printed last.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A console of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    /// The 16550 serial port.
    Serial,
    /// Port 0 of the virtio console.
    Virtio,
}

/// The port that printed last; the serial port at first.
#[derive(Debug, Clone, Default)]
pub(crate) struct ActivePort(Arc<AtomicBool>);

impl ActivePort {
    /// The port that keys go to.
    pub(crate) fn get(&self) -> Port {
        if self.0.load(Ordering::Relaxed) {
            Port::Virtio
        } else {
            Port::Serial
        }
    }

    /// A writer to `out` that makes `port` the active one when it prints.
    pub(crate) fn track(&self, port: Port, out: Box<dyn Write + Send>) -> Box<dyn Write + Send> {
        Box::new(Tracked {
            out,
            port,
            active: self.clone(),
        })
    }
}

struct Tracked {
    out: Box<dyn Write + Send>,
    port: Port,
    active: ActivePort,
}

impl Write for Tracked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.active
            .0
            .store(self.port == Port::Virtio, Ordering::Relaxed);
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_follow_the_port_that_printed_last() {
        let active = ActivePort::default();
        assert_eq!(active.get(), Port::Serial);
        active
            .track(Port::Virtio, Box::new(io::sink()))
            .write_all(b"login: ")
            .unwrap();
        assert_eq!(active.get(), Port::Virtio);
        active
            .track(Port::Serial, Box::new(io::sink()))
            .write_all(b"#")
            .unwrap();
        assert_eq!(active.get(), Port::Serial);
    }
}
