//! The target of a mirror: what is asked of it is done by threads of its own, and waited for only so long.
//!
//! Storage that does not answer keeps these threads and nobody else: what they write is theirs. When it is given up,
//! whoever waits hears so at once; it may only be taken up again when all that it was asked has ended, so that nothing
//! that is late writes over what came after it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::layer::pass_on::Layer;
use crate::{BlockDevice, Buffer, Discarded, Durability, Error, Result, ZeroMode};

/// Threads of a target: as many as those that carry a guest's requests out.
const THREADS: usize = 4;
/// How long the drop of a target waits for what it was asked.
const FAREWELL: Duration = Duration::from_secs(1);

/// What is asked of a target.
pub(super) enum Act {
    Write {
        bytes: Vec<u8>,
        offset: u64,
        durability: Durability,
    },
    Zeroes {
        offset: u64,
        len: u64,
        mode: ZeroMode,
    },
    Flush,
}

/// For whom it is asked, the first of whom comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Guest,
    Background,
}

impl Act {
    /// What it is called, and its range.
    fn told(&self, size: u64) -> (&'static str, u64, u64) {
        match self {
            Self::Write { bytes, offset, .. } => ("write", *offset, bytes.len() as u64),
            Self::Zeroes { offset, len, .. } => ("write zeroes to", *offset, *len),
            Self::Flush => ("flush", 0, size),
        }
    }

    fn carry_out(self, target: &dyn BlockDevice) -> Result<()> {
        match self {
            Self::Write {
                mut bytes,
                offset,
                durability,
            } => target.write(&[Buffer::new(&mut bytes)], offset, durability),
            Self::Zeroes { offset, len, mode } => target.write_zeroes(offset, len, mode),
            Self::Flush => target.flush(),
        }
    }
}

/// How far something is that was asked.
enum End {
    NotYet,
    Ended(Result<()>),
    /// The target was given up before, and it was never begun.
    Never,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Not begun, by class.
    waiting: [VecDeque<(u64, Act)>; 2],
    /// What somebody waits for.
    awaited: BTreeMap<u64, End>,
    /// Threads that carry something out.
    busy: usize,
    /// Threads that exist.
    alive: usize,
    given_up: bool,
    stop: bool,
}

impl State {
    /// Has whoever waits for it hear how it ended; nobody where nobody waits any more.
    fn end(&mut self, number: u64, end: End) {
        if let Some(awaited) = self.awaited.get_mut(&number) {
            *awaited = end;
        }
    }

    fn is_idle(&self) -> bool {
        self.busy == 0 && self.waiting.iter().all(VecDeque::is_empty)
    }
}

struct Shared {
    target: Arc<dyn BlockDevice>,
    patience: Duration,
    state: Mutex<State>,
    /// Something was asked, or nothing will be any more.
    asked: Condvar,
    /// Something has ended.
    ended: Condvar,
}

/// A target and its threads.
pub(super) struct Far {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Something that was asked, until its end or until this is dropped.
pub(super) struct Asked<'f> {
    shared: &'f Shared,
    number: u64,
    told: (&'static str, u64, u64),
    deadline: Instant,
}

impl Far {
    /// Starts the threads, each of which calls `begin` first of all. Whatever is asked may take `patience`.
    ///
    /// # Errors
    /// [`Error::Thread`] when they cannot be started.
    pub(super) fn new(
        target: Arc<dyn BlockDevice>,
        patience: Duration,
        begin: fn(),
    ) -> Result<Self> {
        let mut far = Self {
            shared: Arc::new(Shared {
                target,
                patience,
                state: Mutex::default(),
                asked: Condvar::new(),
                ended: Condvar::new(),
            }),
            threads: Vec::with_capacity(THREADS),
        };
        for index in 0..THREADS {
            let shared = Arc::clone(&far.shared);
            far.shared.state().alive += 1;
            let thread = std::thread::Builder::new()
                .name(format!("mirror-{index}"))
                .stack_size(256 << 10)
                .spawn(move || {
                    let _alive = Alive(&shared);
                    begin();
                    shared.run();
                });
            match thread {
                Ok(thread) => far.threads.push(thread),
                Err(source) => {
                    far.shared.state().alive -= 1;
                    let path = PathBuf::from(far.shared.target.identity().name);
                    return Err(Error::Thread { path, source });
                }
            }
        }
        Ok(far)
    }

    /// Asks for something to be done.
    pub(super) fn ask(&self, class: Class, act: Act) -> Asked<'_> {
        let shared = &*self.shared;
        let told = act.told(shared.target.size());
        let mut state = shared.state();
        let number = state.next;
        state.next += 1;
        if state.given_up {
            state.awaited.insert(number, End::Never);
        } else {
            state.awaited.insert(number, End::NotYet);
            state.waiting[class as usize].push_back((number, act));
            drop(state);
            shared.asked.notify_one();
        }
        Asked {
            shared,
            number,
            told,
            deadline: Instant::now() + shared.patience,
        }
    }

    /// Nobody waits for anything any more, and nothing is begun.
    pub(super) fn give_up(&self) {
        self.shared.give_up();
    }

    /// Takes it up again; whether all that it was asked has ended.
    pub(super) fn take_up(&self) -> bool {
        let mut state = self.shared.state();
        let is_idle = state.is_idle();
        state.given_up &= !is_idle;
        is_idle
    }

    /// Whether all that it was asked has ended.
    pub(super) fn is_idle(&self) -> bool {
        self.shared.state().is_idle()
    }
}

impl Asked<'_> {
    /// Waits for its end.
    ///
    /// # Errors
    /// How it failed, [`io::ErrorKind::TimedOut`] among it: the target has been given up then.
    pub(super) fn wait(self) -> Result<()> {
        let shared = self.shared;
        let mut state = shared.state();
        loop {
            match state.awaited.insert(self.number, End::Never) {
                Some(End::Ended(result)) => {
                    drop(state);
                    return result;
                }
                Some(End::NotYet) => {}
                Some(End::Never) | None => {
                    drop(state);
                    return Err(self.late());
                }
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if state.given_up || left.is_zero() {
                drop(state);
                shared.give_up();
                return Err(self.late());
            }
            state.awaited.insert(self.number, End::NotYet);
            let woken = shared.ended.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn late(&self) -> Error {
        let (operation, offset, len) = self.told;
        let patience = self.shared.patience;
        let why = format!("the storage has not answered within {patience:?}");
        Error::Io {
            operation,
            path: PathBuf::from(self.shared.target.identity().name),
            offset,
            len,
            source: io::Error::new(io::ErrorKind::TimedOut, why),
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.shared.state().awaited.remove(&self.number);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_up(&self) {
        let mut state = self.state();
        state.given_up = true;
        let never = state.waiting.iter_mut().flat_map(std::mem::take);
        let never: Vec<u64> = never.map(|(number, _)| number).collect();
        for number in never {
            state.end(number, End::Never);
        }
        drop(state);
        self.ended.notify_all();
    }

    /// The life of a thread.
    fn run(&self) {
        let mut state = self.state();
        loop {
            let [guest, background] = &mut state.waiting;
            if let Some((number, act)) = guest.pop_front().or_else(|| background.pop_front()) {
                state.busy += 1;
                drop(state);
                let mut busy = Busy {
                    shared: self,
                    number,
                    end: End::Never,
                };
                busy.end = End::Ended(act.carry_out(&*self.target));
                drop(busy);
                state = self.state();
            } else if state.stop {
                return;
            } else {
                let woken = self.asked.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// What a thread carries out, until this is dropped, also by a panic.
struct Busy<'s> {
    shared: &'s Shared,
    number: u64,
    end: End,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        // At once, so that who finds nothing under way finds nobody either who has yet to hear of something.
        state.busy -= 1;
        state.end(self.number, std::mem::replace(&mut self.end, End::Never));
        drop(state);
        self.shared.ended.notify_all();
    }
}

/// A thread, counted until it ends, also by a panic.
struct Alive<'s>(&'s Shared);

impl Drop for Alive<'_> {
    fn drop(&mut self) {
        self.0.state().alive -= 1;
        self.0.ended.notify_all();
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let me = std::thread::current().id();
        let mut state = self.shared.state();
        state.stop = true;
        self.shared.asked.notify_all();
        let remain = usize::from(self.threads.iter().any(|thread| thread.thread().id() == me));
        let wait = self
            .shared
            .ended
            .wait_timeout_while(state, FAREWELL, |state| state.alive > remain);
        state = wait.unwrap_or_else(PoisonError::into_inner).0;
        let is_over = state.alive <= remain;
        drop(state);
        // A thread that is left behind keeps what it was asked for, and ends with it.
        for thread in self.threads.drain(..).filter(|_| is_over) {
            if thread.thread().id() != me {
                let _panicked = thread.join();
            }
        }
    }
}

/// The target as the background copy sees it: behind all that the guest asks.
pub(super) struct Back(pub(super) Arc<Far>);

impl Layer for Back {
    const NAME: &'static str = "mirror target";

    fn inner(&self) -> &dyn BlockDevice {
        &*self.0.shared.target
    }

    fn write(&self, buffers: &[Buffer<'_>], offset: u64, durability: Durability) -> Result<()> {
        let act = Act::Write {
            bytes: Buffer::copied(buffers),
            offset,
            durability,
        };
        self.0.ask(Class::Background, act).wait()
    }

    fn flush(&self) -> Result<()> {
        self.0.ask(Class::Background, Act::Flush).wait()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<Discarded> {
        Layer::write_zeroes(self, offset, len, ZeroMode::MayUnmap)?;
        Ok(Discarded::Zero)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        let act = Act::Zeroes { offset, len, mode };
        self.0.ask(Class::Background, act).wait()
    }
}
