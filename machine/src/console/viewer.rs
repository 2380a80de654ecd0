//! One who looks at the console, and types.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use rustix::event::PollFlags;

use super::shared::Shared;

/// Bytes that wait for one viewer before it is dropped.
const LIMIT: usize = 256 << 10;
/// Keys that are read at once: what the guest does not take of them stays here.
const KEYS: usize = 512;

/// A viewer, up to the last of the keys that it typed.
pub(super) struct Viewer {
    stream: UnixStream,
    pending: VecDeque<u8>,
    /// Keys that the guest has not taken. While there are any, no more are read: who types them waits.
    keys: Vec<u8>,
    /// It is shown what the guest prints.
    sees: bool,
    /// Nothing more comes from it.
    silent: bool,
    /// It has hung up; what it typed before is still to be read.
    hung_up: bool,
}

impl Viewer {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            pending: VecDeque::new(),
            keys: Vec::new(),
            sees: true,
            silent: false,
            hung_up: false,
        }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether it is done with: it has left, and the guest has all that it typed.
    pub(super) fn has_parted(&self) -> bool {
        self.silent && self.keys.is_empty()
    }

    /// Whether nobody is there any more, perhaps but for keys that the guest does not take.
    pub(super) fn has_left(&self) -> bool {
        self.silent || self.hung_up
    }

    /// What is to be waited for; `None` for one that only the guest can help on.
    pub(super) fn interest(&self) -> Option<PollFlags> {
        if self.has_left() {
            return None;
        }
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.keys.is_empty());
        flags.set(PollFlags::OUT, self.sees && !self.pending.is_empty());
        Some(flags)
    }

    /// Does what can be done after a wait that ended in `events`.
    pub(super) fn serve(&mut self, events: PollFlags, shared: &Shared) {
        if events.contains(PollFlags::OUT) {
            self.send();
        }
        if self.keys.is_empty() {
            if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                self.receive(shared);
            }
        } else if events.intersects(PollFlags::HUP | PollFlags::ERR) {
            // It would be told again and again.
            self.hung_up = true;
        }
    }

    /// Shows it what the guest printed. One that does not look is dropped.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if !self.sees || self.has_left() {
            return;
        }
        if self.pending.len() + bytes.len() > LIMIT {
            self.sees = false;
            self.hung_up = true;
            // What it typed can still be read.
            let _ = self.stream.shutdown(std::net::Shutdown::Both);
            return;
        }
        self.pending.extend(bytes);
        self.send();
    }

    fn send(&mut self) {
        while self.sees && !self.pending.is_empty() {
            match self.stream.write(self.pending.as_slices().0) {
                Ok(0) => self.sees = false,
                Ok(n) => drop(self.pending.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // It may have typed something before it went.
                Err(_) => self.sees = false,
            }
        }
    }

    fn receive(&mut self, shared: &Shared) {
        let mut keys = [0; KEYS];
        match self.stream.read(&mut keys) {
            Ok(0) => self.silent = true,
            Ok(n) => {
                self.keys.extend_from_slice(&keys[..n]);
                self.offer(shared);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && !self.hung_up => {}
            Err(_) => self.silent = true,
        }
    }

    /// Offers the guest what it typed; of one that has hung up, all that is still to be read.
    pub(super) fn offer(&mut self, shared: &Shared) {
        if !self.keys.is_empty() {
            let taken = shared.offer(&self.keys);
            self.keys.drain(..taken);
        }
        while self.hung_up && !self.silent && self.keys.is_empty() {
            self.receive(shared);
        }
    }
}
