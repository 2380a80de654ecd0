//! The console's thread.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::shared::{ConsoleOutputs, PENDING_LIMIT, Shared};
use super::viewer::Viewer;

/// Bytes that a new viewer is shown of what was printed before.
const REPLAY: usize = 16 << 10;
/// Viewers at once.
const MAX_VIEWERS: usize = 16;
/// What one more is told.
const FULL: &[u8] = b"vmm: too many look at this console already\r\n";
/// Longest that bytes without a line end wait for more.
const GATHER: Duration = Duration::from_millis(2);
/// What a pipe that polls writable takes without blocking (PIPE_BUF).
const STDOUT_CHUNK: usize = 4096;
/// Keys that are offered to the guest at once.
const KEYS: usize = 4096;
/// How long nobody is taken in after that failed, as for want of descriptors: the next try would fail at
/// once, again and again.
const RESPITE: Duration = Duration::from_millis(250);

/// What the console's thread has.
pub(super) struct Carrier {
    shared: Arc<Shared>,
    outputs: ConsoleOutputs,
    stdout_pending: VecDeque<u8>,
    viewers: Vec<Viewer>,
    recent: VecDeque<u8>,
    /// Nobody is taken in until then.
    deaf_until: Option<Instant>,
}

impl Carrier {
    pub(super) fn new(shared: Arc<Shared>, outputs: ConsoleOutputs) -> Self {
        Self {
            shared,
            outputs,
            stdout_pending: VecDeque::new(),
            viewers: Vec::new(),
            recent: VecDeque::new(),
            deaf_until: None,
        }
    }

    pub(super) fn run(&mut self) {
        loop {
            let ready = self.wait();
            self.serve(&ready);
            if ready.woken {
                let open = self.take();
                self.offer_keys();
                if !open {
                    return;
                }
            }
        }
    }

    /// Takes what the guest printed and hands it on; false when the console was closed.
    fn take(&mut self) -> bool {
        let _ = rustix::io::read(&self.shared.wake, &mut [0_u8; 8]);
        // The guest prints byte by byte: a line, or what comes within a moment, goes as one.
        let gathered = Instant::now() + GATHER;
        loop {
            let state = self.shared.state();
            let whole = state.pending.back().is_none_or(|b| *b == b'\n');
            if whole || state.closed || state.pending.len() >= STDOUT_CHUNK {
                break;
            }
            drop(state);
            let now = Instant::now();
            if now >= gathered {
                break;
            }
            std::thread::sleep((gathered - now).min(Duration::from_micros(500)));
        }
        let (bytes, dropped, log, closed) = {
            let mut state = self.shared.state();
            state.woken = false;
            state.busy = true;
            let bytes: Vec<u8> = state.pending.drain(..).collect();
            let dropped = std::mem::take(&mut state.dropped);
            (bytes, dropped, state.log.take(), state.closed)
        };
        if log.is_some() {
            self.outputs.log = log;
        }
        self.hand_on(&bytes);
        if dropped > 0 {
            self.hand_on(format!("\r\n[{dropped} bytes of output left out]\r\n").as_bytes());
        }
        if self.stdout_pending.is_empty() || closed {
            self.shared.state().busy = false;
            self.shared.drained.notify_all();
        }
        !closed
    }

    fn hand_on(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if let Some(log) = &mut self.outputs.log {
            // A full disk must not end the guest; what follows may find room again.
            let _ = log.write_all(bytes);
        }
        if self.outputs.stdout.is_some() {
            let room = PENDING_LIMIT.saturating_sub(self.stdout_pending.len());
            self.stdout_pending.extend(&bytes[..bytes.len().min(room)]);
        }
        for viewer in &mut self.viewers {
            viewer.push(bytes);
        }
        self.offer_viewers();
        self.recent.extend(bytes);
        let old = self.recent.len().saturating_sub(REPLAY);
        self.recent.drain(..old);
    }

    /// Offers the guest the keys that it did not take: it may have room again.
    fn offer_keys(&mut self) {
        loop {
            let keys: Vec<u8> = {
                let state = self.shared.state();
                state.typed.iter().take(KEYS).copied().collect()
            };
            if keys.is_empty() {
                break;
            }
            let taken = self.shared.offer(&keys);
            self.shared.state().typed.drain(..taken);
            self.shared.typed_room.notify_all();
            if taken < keys.len() {
                break;
            }
        }
        self.offer_viewers();
    }

    fn offer_viewers(&mut self) {
        for viewer in &mut self.viewers {
            viewer.offer(&self.shared);
        }
        self.viewers.retain(|viewer| !viewer.has_parted());
    }

    fn serve(&mut self, ready: &Ready) {
        if ready.stdout {
            self.print();
        }
        for (viewer, events) in self.viewers.iter_mut().zip(&ready.viewers) {
            viewer.serve(*events, &self.shared);
        }
        self.viewers.retain(|viewer| !viewer.has_parted());
        if ready.listener {
            self.accept();
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.outputs.listener else {
            return;
        };
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(e) => {
                tracing::warn!(error = %e, "no viewer of the console can be taken in");
                self.deaf_until = Some(Instant::now() + RESPITE);
                return;
            }
        };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.viewers.len() >= MAX_VIEWERS {
            // Keys of one who is gone, and which the guest does not take, do not keep out one who is there.
            let Some(gone) = self.viewers.iter().position(Viewer::has_left) else {
                let _ = stream.write(FULL);
                return;
            };
            self.viewers.remove(gone);
        }
        let mut viewer = Viewer::new(stream);
        viewer.push(self.recent.make_contiguous());
        self.viewers.push(viewer);
    }

    fn print(&mut self) {
        let Some(stdout) = &self.outputs.stdout else {
            return;
        };
        let chunk = self.stdout_pending.as_slices().0;
        match rustix::io::write(stdout, &chunk[..chunk.len().min(STDOUT_CHUNK)]) {
            Ok(n) => drop(self.stdout_pending.drain(..n)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => {
                // Whoever read it is gone; the log has it all.
                self.outputs.stdout = None;
                self.stdout_pending.clear();
            }
        }
        if self.stdout_pending.is_empty() {
            self.shared.state().busy = false;
            self.shared.drained.notify_all();
        }
    }

    fn wait(&mut self) -> Ready {
        let mut fds = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
        let respite = self
            .deaf_until
            .and_then(|until| until.checked_duration_since(Instant::now()));
        let listener = match (&self.outputs.listener, respite) {
            (Some(listener), None) => {
                fds.push(PollFd::new(listener, PollFlags::IN));
                Some(fds.len() - 1)
            }
            _ => None,
        };
        let stdout = match &self.outputs.stdout {
            Some(stdout) if !self.stdout_pending.is_empty() => {
                fds.push(PollFd::new(stdout, PollFlags::OUT));
                Some(fds.len() - 1)
            }
            _ => None,
        };
        let mut viewers = Vec::with_capacity(self.viewers.len());
        for viewer in &self.viewers {
            viewers.push(viewer.interest().map(|flags| {
                fds.push(PollFd::new(viewer.stream(), flags));
                fds.len() - 1
            }));
        }
        let timeout = respite.map(|left| Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        });
        let _ = poll(&mut fds, timeout.as_ref());
        let events = |i: Option<usize>| i.map_or(PollFlags::empty(), |i| fds[i].revents());
        let any = |i| !events(i).is_empty();
        Ready {
            woken: any(Some(0)),
            listener: any(listener),
            stdout: any(stdout),
            viewers: viewers.into_iter().map(events).collect(),
        }
    }
}

/// What a wait ended for.
struct Ready {
    woken: bool,
    listener: bool,
    stdout: bool,
    viewers: Vec<PollFlags>,
}
