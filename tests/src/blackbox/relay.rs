//! A link between two hosts that breaks when a test says so.
//!
//! It forwards what it does not understand and reads only the headers of control frames, so that it
//! can cut right before or after a given one.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{sleep, spawn};
use std::time::Duration;

use super::wire::{HEADER_LEN, HELLO_LEN, kind_and_length, role_of};

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toward {
    /// From the source.
    Destination,
    /// From the destination.
    Source,
}

/// What is done about a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It passes, then the link is cut.
    PassAndCut,
    /// The link is cut and it is lost.
    Cut,
    /// It and all that follows waits until [`Relay::go_on`].
    Stall,
}

/// What happens at one kind of control frame, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trap {
    /// Which way.
    pub toward: Toward,
    /// Kind of frame.
    pub kind: u16,
    /// What then.
    pub fate: Fate,
}

#[derive(Default)]
struct State {
    down: bool,
    stalled: bool,
    sprung: bool,
    /// What is stalled holds back no connection but the control connection.
    pages_pass: bool,
    /// Data connections that the source has not ended.
    pages: usize,
    /// Bytes of pages that pass in a second; as many as can where it is `None`.
    pace: Option<u64>,
    ends: Vec<TcpStream>,
}

struct Shared {
    to: SocketAddr,
    trap: Option<Trap>,
    state: Mutex<State>,
    changed: Condvar,
    closing: AtomicBool,
}

/// A link; dropping it cuts it.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Relay {
    /// A link to `to`, with a trap or none.
    ///
    /// # Panics
    /// When `to` is no socket address, or nothing can listen on loopback.
    pub fn new(to: &str, trap: Option<Trap>) -> Self {
        let shared = Arc::new(Shared {
            to: to.parse().expect("address of the destination"),
            trap,
            state: Mutex::default(),
            changed: Condvar::new(),
            closing: AtomicBool::new(false),
        });
        let listener = TcpListener::bind("127.0.0.1:0").expect("relay listens");
        let address = listener.local_addr().expect("address of the relay");
        let accepting = shared.clone();
        spawn(move || {
            for source in listener.incoming() {
                if accepting.closing.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(source) = source {
                    // A connection that cannot be made is one that is lost.
                    let _ = accepting.join(source);
                }
            }
        });
        Self { address, shared }
    }

    /// Where the source connects to.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Breaks all connections and lets no other through.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Lets no more than so many bytes of pages pass in a second, on each connection.
    pub fn pace(&self, bytes_per_second: u64) {
        self.shared.state().pace = Some(bytes_per_second);
    }

    /// Holds everything back.
    pub fn stall(&self) {
        self.shared.state().stalled = true;
    }

    /// Lets new connections through again, and what was stalled.
    pub fn go_on(&self) {
        let mut state = self.shared.state();
        state.down = false;
        state.stalled = false;
        self.shared.changed.notify_all();
    }

    /// As [`Relay::go_on`] for ends that were closed, but those of the data connections arrive before
    /// what the control connection still holds: nothing orders them.
    ///
    /// # Panics
    /// When the data connections do not end.
    pub fn go_on_pages_first(&self) {
        self.shared.state().pages_pass = true;
        self.shared.changed.notify_all();
        super::wait::holds("the data connections end", || {
            self.shared.state().pages == 0
        });
        self.go_on();
    }

    /// Whether it is cut.
    pub fn is_down(&self) -> bool {
        self.shared.state().down
    }

    /// Whether the trap was sprung.
    pub fn is_sprung(&self) -> bool {
        self.shared.state().sprung
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.cut();
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self) {
        let mut state = self.state();
        state.down = true;
        for end in state.ends.drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
        self.changed.notify_all();
    }

    fn join(self: &Arc<Self>, source: TcpStream) -> io::Result<()> {
        let destination = TcpStream::connect(self.to)?;
        for end in [&source, &destination] {
            end.set_nodelay(true)?;
        }
        {
            let mut state = self.state();
            if state.down {
                return Ok(());
            }
            state.ends.push(source.try_clone()?);
            state.ends.push(destination.try_clone()?);
        }
        let shared = self.clone();
        spawn(move || {
            let _ = shared.serve(source, destination);
        });
        Ok(())
    }

    /// Forwards the hello, then both ways.
    fn serve(
        self: &Arc<Self>,
        mut source: TcpStream,
        mut destination: TcpStream,
    ) -> io::Result<()> {
        let mut hello = [0; HELLO_LEN];
        source.read_exact(&mut hello)?;
        self.wait_while_stalled()?;
        destination.write_all(&hello)?;
        let control = role_of(&hello) == Some(1);
        if !control {
            self.state().pages += 1;
        }
        let (back_from, back_to) = (destination.try_clone()?, source.try_clone()?);
        let shared = self.clone();
        spawn(move || shared.pump(control, Toward::Source, back_from, back_to));
        self.pump(control, Toward::Destination, source, destination);
        Ok(())
    }

    fn pump(&self, control: bool, toward: Toward, mut from: TcpStream, mut to: TcpStream) {
        let _ = if control {
            self.frames(toward, &mut from, &mut to)
        } else {
            self.bytes(&mut from, &mut to)
        };
        // One end closed: so does the other, after what it was sent; an end is held back too.
        let _ = self.wait_while_held(control);
        let _ = to.shutdown(Shutdown::Write);
        if !control && toward == Toward::Destination {
            self.state().pages -= 1;
        }
    }

    fn bytes(&self, from: &mut TcpStream, to: &mut TcpStream) -> io::Result<()> {
        let mut piece = vec![0; 256 << 10];
        loop {
            let n = from.read(&mut piece)?;
            if n == 0 {
                return Ok(());
            }
            self.wait_while_held(false)?;
            to.write_all(&piece[..n])?;
            if let Some(pace) = self.state().pace {
                sleep(Duration::from_secs_f64(n as f64 / pace as f64));
            }
        }
    }

    fn frames(&self, toward: Toward, from: &mut TcpStream, to: &mut TcpStream) -> io::Result<()> {
        loop {
            let mut header = [0; HEADER_LEN];
            from.read_exact(&mut header)?;
            let (kind, length) = kind_and_length(&header);
            let fate = self.spring(toward, kind);
            match fate {
                Some(Fate::Cut) => {
                    self.cut();
                    return Ok(());
                }
                Some(Fate::Stall) => self.state().stalled = true,
                _ => {}
            }
            self.wait_while_stalled()?;
            to.write_all(&header)?;
            io::copy(&mut from.take(length as u64), to)?;
            if fate == Some(Fate::PassAndCut) {
                self.hang_up_after(from, to);
                return Ok(());
            }
        }
    }

    /// Cuts, but lets the last frame arrive first: a reset could overtake it.
    fn hang_up_after(&self, from: &TcpStream, to: &TcpStream) {
        let mut state = self.state();
        state.down = true;
        let _ = to.shutdown(Shutdown::Write);
        let _ = from.shutdown(Shutdown::Both);
        self.changed.notify_all();
    }

    fn spring(&self, toward: Toward, kind: u16) -> Option<Fate> {
        let trap = self
            .trap
            .filter(|trap| trap.toward == toward && trap.kind == kind)?;
        let mut state = self.state();
        (!std::mem::replace(&mut state.sprung, true)).then_some(trap.fate)
    }

    fn wait_while_stalled(&self) -> io::Result<()> {
        self.wait_while_held(true)
    }

    fn wait_while_held(&self, control: bool) -> io::Result<()> {
        let mut state = self.state();
        while state.stalled && !state.down && (control || !state.pages_pass) {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.down && state.ends.is_empty() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}
