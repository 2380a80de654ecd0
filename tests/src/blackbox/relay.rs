//! A link between two hosts that is as long as a test wants, and breaks when it says so.
//!
//! It forwards what it does not understand and reads only the headers of control frames, so that it
//! can cut right before or after a given one.

mod outlet;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{sleep, spawn};
use std::time::Duration;

use self::outlet::Outlet;
use super::wire::{HEADER_LEN, HELLO_LEN, kind_and_length, role_of};
use crate::network::Namespace;

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toward {
    /// From the source.
    Destination,
    /// From the destination.
    Source,
}

impl Toward {
    fn back(self) -> Self {
        match self {
            Self::Destination => Self::Source,
            Self::Source => Self::Destination,
        }
    }
}

/// What is done about a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It passes, then the link is cut; nothing comes back from before it passes on.
    PassAndCut,
    /// The link is cut and it is lost.
    Cut,
    /// The link is cut in the middle of its header.
    CutWithin,
    /// It and all that follows waits until [`Relay::go_on`].
    Stall,
    /// It and all that follows it on its connection is lost, and whom it was for is told that the
    /// stream ended; the way back stays open.
    HalfClose,
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

/// What a link is like; by default it is short and does not break.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Link {
    /// What happens at a frame.
    pub trap: Option<Trap>,
    /// Cut once so many bytes have passed that way, on all connections together.
    pub cut_after: Option<(Toward, u64)>,
    /// How long everything takes to the destination. The hand-shake of TCP, with the relay, is not
    /// delayed.
    pub delay_toward_destination: Duration,
    /// How long everything takes to the source.
    pub delay_toward_source: Duration,
}

impl Link {
    /// A link that takes `delay` each way.
    pub fn with_delay(delay: Duration) -> Self {
        Self {
            delay_toward_destination: delay,
            delay_toward_source: delay,
            ..Self::default()
        }
    }

    /// The same link with a trap.
    #[must_use]
    pub fn and_trap(self, trap: Trap) -> Self {
        Self {
            trap: Some(trap),
            ..self
        }
    }

    fn delay(&self, toward: Toward) -> Duration {
        match toward {
            Toward::Destination => self.delay_toward_destination,
            Toward::Source => self.delay_toward_source,
        }
    }
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carries {
    Control,
    Pages,
}

/// What is so for either direction.
#[derive(Debug, Clone, Copy, Default)]
struct Way {
    stalled: bool,
    /// What comes is held until the link is cut, and lost then.
    lost: bool,
    passed: u64,
}

#[derive(Default)]
struct State {
    down: bool,
    sprung: bool,
    cut_at_bytes: bool,
    /// What is stalled holds back no connection but the control connection.
    pages_pass: bool,
    /// Data connections that the source has not ended.
    pages: usize,
    /// Bytes of pages that pass in a second; as many as can where it is `None`.
    pace: Option<u64>,
    to_destination: Way,
    to_source: Way,
    ends: Vec<TcpStream>,
}

impl State {
    fn holds_back(&mut self, carries: Carries, toward: Toward) -> bool {
        self.way(toward).stalled && (carries == Carries::Control || !self.pages_pass)
    }

    fn way(&mut self, toward: Toward) -> &mut Way {
        match toward {
            Toward::Destination => &mut self.to_destination,
            Toward::Source => &mut self.to_source,
        }
    }
}

struct Shared {
    /// Where the relay stands; on the machine's own network if nowhere else.
    place: Option<Arc<Namespace>>,
    to: SocketAddr,
    link: Link,
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
    /// A link on loopback to `to`, with a trap or none.
    ///
    /// # Panics
    /// When `to` is no socket address, or nothing can listen on loopback.
    pub fn new(to: &str, trap: Option<Trap>) -> Self {
        let link = Link {
            trap,
            ..Link::default()
        };
        Self::over(to, link)
    }

    /// A link on loopback to `to`.
    ///
    /// # Panics
    /// When `to` is no socket address, or nothing can listen on loopback.
    pub fn over(to: &str, link: Link) -> Self {
        let to = to.parse().expect("address of the destination");
        Self::start(None, Ipv4Addr::LOCALHOST, to, link)
    }

    /// A link that begins at the address `at` of a namespace, and goes on from there to `to`.
    ///
    /// # Panics
    /// When nothing can listen there.
    pub fn within(place: Arc<Namespace>, at: Ipv4Addr, to: SocketAddr, link: Link) -> Self {
        Self::start(Some(place), at, to, link)
    }

    fn start(place: Option<Arc<Namespace>>, at: Ipv4Addr, to: SocketAddr, link: Link) -> Self {
        let shared = Arc::new(Shared {
            place,
            to,
            link,
            state: Mutex::default(),
            changed: Condvar::new(),
            closing: AtomicBool::new(false),
        });
        let listener = shared
            .there(|| TcpListener::bind((IpAddr::V4(at), 0)))
            .expect("relay listens");
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
        self.stall_toward(Toward::Destination);
        self.stall_toward(Toward::Source);
    }

    /// Holds back what goes one way.
    pub fn stall_toward(&self, toward: Toward) {
        self.shared.state().way(toward).stalled = true;
    }

    /// Lets new connections through again, and what was stalled.
    pub fn go_on(&self) {
        let mut state = self.shared.state();
        state.down = false;
        for toward in [Toward::Destination, Toward::Source] {
            let way = state.way(toward);
            way.stalled = false;
            way.lost = false;
        }
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

    /// Whether the link was cut because enough bytes had passed.
    pub fn is_cut_at_bytes(&self) -> bool {
        self.shared.state().cut_at_bytes
    }

    /// How many bytes have passed that way.
    pub fn passed(&self, toward: Toward) -> u64 {
        self.shared.state().way(toward).passed
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.cut();
        // Who waits for connections looks up.
        let _ = self.shared.there(|| TcpStream::connect(self.address));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a socket where the relay stands.
    fn there<T: Send>(&self, make: impl FnOnce() -> T + Send) -> T {
        match &self.place {
            Some(namespace) => namespace.enter(make),
            None => make(),
        }
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
        if self.state().down {
            return Ok(());
        }
        let destination = self.there(|| TcpStream::connect(self.to))?;
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
    fn serve(self: &Arc<Self>, mut source: TcpStream, destination: TcpStream) -> io::Result<()> {
        let delay = |toward| self.link.delay(toward);
        let (back_from, back_to) = (destination.try_clone()?, source.try_clone()?);
        let mut there = Outlet::new(destination, delay(Toward::Destination));
        let back = Outlet::new(back_to, delay(Toward::Source));
        let mut hello = [0; HELLO_LEN];
        source.read_exact(&mut hello)?;
        // A control connection, or that of a new link.
        let carries = if matches!(role_of(&hello), Some(1 | 5)) {
            Carries::Control
        } else {
            Carries::Pages
        };
        self.pass(carries, Toward::Destination, &hello, &mut there)?;
        if carries == Carries::Pages {
            self.state().pages += 1;
        }
        let shared = self.clone();
        spawn(move || shared.pump(carries, Toward::Source, back_from, back));
        self.pump(carries, Toward::Destination, source, there);
        Ok(())
    }

    fn pump(&self, carries: Carries, toward: Toward, mut from: TcpStream, mut to: Outlet) {
        let _ = match carries {
            Carries::Control => self.frames(toward, &mut from, &mut to),
            Carries::Pages => self.bytes_up_to(u64::MAX, carries, toward, &mut from, &mut to),
        };
        // One end closed: so does the other, after what it was sent; an end is held back too.
        let _ = self.wait_while_stalled(carries, toward);
        to.end();
        if carries == Carries::Pages && toward == Toward::Destination {
            self.state().pages -= 1;
        }
    }

    /// Passes bytes on, when and as far as they may.
    fn pass(
        &self,
        carries: Carries,
        toward: Toward,
        bytes: &[u8],
        to: &mut Outlet,
    ) -> io::Result<()> {
        self.wait_while_stalled(carries, toward)?;
        let may = self.count(toward, bytes.len());
        to.write_all(&bytes[..may])?;
        if may < bytes.len() {
            self.cut();
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    /// How many of the next `wanted` bytes pass before the link is cut.
    fn count(&self, toward: Toward, wanted: usize) -> usize {
        let limit = self.link.cut_after.filter(|(way, _)| *way == toward);
        let mut state = self.state();
        let armed = !state.cut_at_bytes;
        let way = state.way(toward);
        let mut may = wanted;
        if let Some((_, limit)) = limit
            && armed
        {
            let left = limit.saturating_sub(way.passed);
            may = wanted.min(usize::try_from(left).unwrap_or(usize::MAX));
        }
        way.passed += may as u64;
        state.cut_at_bytes |= may < wanted;
        may
    }

    fn bytes_up_to(
        &self,
        limit: u64,
        carries: Carries,
        toward: Toward,
        from: &mut TcpStream,
        to: &mut Outlet,
    ) -> io::Result<()> {
        let mut from = from.take(limit);
        let mut piece = vec![0; usize::try_from(limit.min(256 << 10)).unwrap_or(256 << 10)];
        loop {
            let n = from.read(&mut piece)?;
            if n == 0 {
                return Ok(());
            }
            self.pass(carries, toward, &piece[..n], to)?;
            let pace = self.state().pace.filter(|_| carries == Carries::Pages);
            if let Some(pace) = pace {
                sleep(Duration::from_secs_f64(n as f64 / pace as f64));
            }
        }
    }

    fn frames(&self, toward: Toward, from: &mut TcpStream, to: &mut Outlet) -> io::Result<()> {
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
                Some(Fate::CutWithin) => {
                    self.pass(Carries::Control, toward, &header[..HEADER_LEN / 2], to)?;
                    self.cut();
                    return Ok(());
                }
                Some(Fate::HalfClose) => {
                    to.end();
                    // Who writes is not told, so it goes on.
                    io::copy(from, &mut io::sink())?;
                    return Ok(());
                }
                Some(Fate::Stall) => {
                    let mut state = self.state();
                    state.to_destination.stalled = true;
                    state.to_source.stalled = true;
                }
                // An answer to the frame could come through before the cut.
                Some(Fate::PassAndCut) => self.state().way(toward.back()).lost = true,
                None => {}
            }
            self.pass(Carries::Control, toward, &header, to)?;
            self.bytes_up_to(length as u64, Carries::Control, toward, from, to)?;
            if fate == Some(Fate::PassAndCut) {
                self.hang_up_after(from, to);
                return Ok(());
            }
        }
    }

    /// Cuts, but lets the last frame arrive first: a reset could overtake it.
    fn hang_up_after(&self, from: &TcpStream, to: &Outlet) {
        let mut state = self.state();
        state.down = true;
        to.end();
        let _ = from.shutdown(Shutdown::Both);
        self.changed.notify_all();
    }

    fn spring(&self, toward: Toward, kind: u16) -> Option<Fate> {
        let trap = self
            .link
            .trap
            .filter(|trap| trap.toward == toward && trap.kind == kind)?;
        let mut state = self.state();
        (!std::mem::replace(&mut state.sprung, true)).then_some(trap.fate)
    }

    fn wait_while_stalled(&self, carries: Carries, toward: Toward) -> io::Result<()> {
        let mut state = self.state();
        while (state.holds_back(carries, toward) || state.way(toward).lost) && !state.down {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.way(toward).lost || state.down && state.ends.is_empty() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}
