//! The guest's serial console: its log, its viewers and their keys.
//!
//! The vCPU that prints only appends to a bounded buffer; one thread carries the bytes on. A viewer
//! that does not read is dropped once its own buffer is full, and output that nobody takes away fast
//! enough is counted and left out, so nothing outside can hold up the guest.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::rotating_file::RotatingFile;
use crate::sandbox::{self, Kind};

/// Bytes that wait for the console thread.
const PENDING_LIMIT: usize = 1 << 20;
/// Bytes that wait for one viewer before it is dropped.
const CLIENT_LIMIT: usize = 256 << 10;
/// Bytes that a new viewer is shown of what was printed before.
const REPLAY: usize = 16 << 10;
/// Viewers at once.
const MAX_CLIENTS: usize = 16;
/// Bytes of `serial.log` before it is rotated.
pub const SERIAL_LOG_LIMIT: u64 = 8 << 20;
/// Longest that bytes without a line end wait for more.
const GATHER: Duration = Duration::from_millis(2);
/// What a pipe that polls writable takes without blocking (PIPE_BUF).
const STDOUT_CHUNK: usize = 4096;

/// Takes keys to the guest.
pub type Input = Box<dyn Fn(&[u8]) + Send + Sync>;

#[derive(Default)]
struct State {
    pending: VecDeque<u8>,
    dropped: u64,
    woken: bool,
    /// The thread carries bytes that are no longer in `pending`.
    busy: bool,
    closed: bool,
}

struct Shared {
    state: Mutex<State>,
    drained: Condvar,
    wake: OwnedFd,
    input: Mutex<Option<Arc<Input>>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn input(&self, bytes: &[u8]) {
        let input = self
            .input
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(input) = input {
            input(bytes);
        }
    }

    fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// Carries the guest's output to its log and viewers, and their keys to the guest. Clones share one
/// console.
#[derive(Clone)]
pub struct ConsoleHub {
    shared: Arc<Shared>,
}

/// Where the guest's output goes.
#[derive(Default)]
pub struct ConsoleOutputs {
    /// Log of everything that the guest prints.
    pub log: Option<RotatingFile>,
    /// Socket on which viewers attach.
    pub listener: Option<UnixListener>,
    /// Also print to this, the process's standard output.
    pub stdout: Option<OwnedFd>,
}

impl ConsoleHub {
    /// Starts the console's thread.
    ///
    /// # Errors
    /// What the kernel says about the wake-up event, the socket or the thread.
    pub fn start(outputs: ConsoleOutputs) -> io::Result<Self> {
        if let Some(listener) = &outputs.listener {
            listener.set_nonblocking(true)?;
        }
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            drained: Condvar::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            input: Mutex::default(),
        });
        let mut carrier = Carrier {
            shared: Arc::clone(&shared),
            outputs,
            stdout_pending: VecDeque::new(),
            clients: Vec::new(),
            recent: VecDeque::new(),
        };
        std::thread::Builder::new()
            .name("console".into())
            .spawn(move || {
                sandbox::begin(Kind::Console);
                carrier.run();
            })?;
        Ok(Self { shared })
    }

    /// Sets what takes keys to the guest; keys that come before are lost.
    pub fn set_input(&self, input: Input) {
        *self
            .shared
            .input
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(input));
    }

    /// Gives keys to the guest.
    pub fn send_input(&self, bytes: &[u8]) {
        self.shared.input(bytes);
    }

    /// Takes what the guest prints; never blocks and never fails.
    pub fn write(&self, bytes: &[u8]) {
        let wake = {
            let mut state = self.shared.state();
            let room = PENDING_LIMIT - state.pending.len();
            let taken = bytes.len().min(room);
            state.pending.extend(&bytes[..taken]);
            state.dropped += (bytes.len() - taken) as u64;
            !std::mem::replace(&mut state.woken, true)
        };
        if wake {
            self.shared.wake();
        }
    }

    /// A writer for the serial device.
    pub fn writer(&self) -> Box<dyn Write + Send> {
        Box::new(ConsoleWriter(self.clone()))
    }

    /// Waits until all that was printed is in the log and on standard output, at most `timeout`.
    pub fn flush(&self, timeout: Duration) {
        self.shared.wake();
        let state = self.shared.state();
        let _ = self.shared.drained.wait_timeout_while(state, timeout, |s| {
            (!s.pending.is_empty() || s.busy) && !s.closed
        });
    }

    /// Ends the console's thread and drops its viewers.
    pub fn close(&self) {
        self.shared.state().closed = true;
        self.shared.wake();
    }
}

struct ConsoleWriter(ConsoleHub);

impl Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Client {
    stream: UnixStream,
    pending: VecDeque<u8>,
    alive: bool,
}

impl Client {
    fn push(&mut self, bytes: &[u8]) {
        if self.pending.len() + bytes.len() > CLIENT_LIMIT {
            self.alive = false;
            return;
        }
        self.pending.extend(bytes);
        self.send();
    }

    fn send(&mut self) {
        while !self.pending.is_empty() {
            match self.stream.write(self.pending.as_slices().0) {
                Ok(0) => self.alive = false,
                Ok(n) => drop(self.pending.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.alive = false,
            }
            if !self.alive {
                return;
            }
        }
    }

    fn receive(&mut self, shared: &Shared) {
        let mut keys = [0; 512];
        match self.stream.read(&mut keys) {
            Ok(0) => self.alive = false,
            Ok(n) => shared.input(&keys[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.alive = false,
        }
    }
}

/// The console's thread.
struct Carrier {
    shared: Arc<Shared>,
    outputs: ConsoleOutputs,
    stdout_pending: VecDeque<u8>,
    clients: Vec<Client>,
    recent: VecDeque<u8>,
}

impl Carrier {
    fn run(&mut self) {
        loop {
            let ready = self.wait();
            self.serve(&ready);
            if ready.woken && !self.take() {
                return;
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
        let (bytes, dropped, closed) = {
            let mut state = self.shared.state();
            state.woken = false;
            state.busy = true;
            let bytes: Vec<u8> = state.pending.drain(..).collect();
            (bytes, std::mem::take(&mut state.dropped), state.closed)
        };
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
        for client in &mut self.clients {
            client.push(bytes);
        }
        self.part();
        self.recent.extend(bytes);
        let old = self.recent.len().saturating_sub(REPLAY);
        self.recent.drain(..old);
    }

    fn serve(&mut self, ready: &Ready) {
        if ready.stdout {
            self.print();
        }
        for (client, events) in self.clients.iter_mut().zip(&ready.clients) {
            if events.contains(PollFlags::OUT) {
                client.send();
            }
            if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                client.receive(&self.shared);
            }
        }
        self.part();
        if ready.listener {
            self.accept();
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.outputs.listener else {
            return;
        };
        let Ok((stream, _)) = listener.accept() else {
            return;
        };
        if self.clients.len() >= MAX_CLIENTS || stream.set_nonblocking(true).is_err() {
            return;
        }
        let mut client = Client {
            stream,
            pending: VecDeque::new(),
            alive: true,
        };
        client.push(self.recent.make_contiguous());
        self.clients.push(client);
        self.part();
    }

    /// Parts with clients that are gone, after hearing what they typed before they went: one that
    /// types and leaves need not wait to be shown anything.
    fn part(&mut self) {
        let shared = &self.shared;
        self.clients.retain_mut(|client| {
            if !client.alive {
                client.receive(shared);
            }
            client.alive
        });
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

    fn wait(&self) -> Ready {
        let mut fds = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
        let listener = self.outputs.listener.as_ref().map(|listener| {
            fds.push(PollFd::new(listener, PollFlags::IN));
            fds.len() - 1
        });
        let stdout = match &self.outputs.stdout {
            Some(stdout) if !self.stdout_pending.is_empty() => {
                fds.push(PollFd::new(stdout, PollFlags::OUT));
                Some(fds.len() - 1)
            }
            _ => None,
        };
        let first_client = fds.len();
        for client in &self.clients {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, !client.pending.is_empty());
            fds.push(PollFd::new(&client.stream, flags));
        }
        let _ = poll(&mut fds, None);
        let any = |i: Option<usize>| i.is_some_and(|i| !fds[i].revents().is_empty());
        Ready {
            woken: any(Some(0)),
            listener: any(listener),
            stdout: any(stdout),
            clients: fds[first_client..].iter().map(PollFd::revents).collect(),
        }
    }
}

struct Ready {
    woken: bool,
    listener: bool,
    stdout: bool,
    clients: Vec<PollFlags>,
}

#[cfg(test)]
mod tests;
