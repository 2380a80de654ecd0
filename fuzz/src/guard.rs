//! Runs one input and says what went wrong.

use std::fmt;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use crate::{Target, allocation};

/// What an input may take at most on a busy machine; most take microseconds.
const DEADLINE: Duration = Duration::from_secs(10);
/// An input that takes so long hangs: its process is ended.
const HANG: Duration = Duration::from_secs(60);

/// What is wrong with a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A thread panicked, whether or not somebody caught it.
    Panic(String),
    /// It allocated too much.
    Memory {
        /// Bytes at once.
        peak: usize,
        /// Bytes that would be in order.
        most: usize,
    },
    /// It took too long.
    Time(Duration),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic(message) => write!(f, "a thread panicked: {message}"),
            Self::Memory { peak, most } => {
                write!(f, "{peak} bytes were allocated, more than {most}")
            }
            Self::Time(took) => write!(f, "it took {took:?}, more than {DEADLINE:?}"),
        }
    }
}

/// The input that runs now, since when, for the watchdog.
static RUNNING: Mutex<Option<(Instant, &'static str, Vec<u8>)>> = Mutex::new(None);
/// The first panic of the input that runs now.
static PANICKED: Mutex<Option<String>> = Mutex::new(None);
/// See [`Turn`].
static ONE: Mutex<()> = Mutex::new(());

/// The right to run inputs, and to make or read them. One has it at a time: memory is counted for the
/// whole process, so what another thread allocates beside an input would be held against it.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held, not read")] MutexGuard<'static, ()>);

impl Turn {
    /// Waits for it.
    pub fn take() -> Self {
        Self(lock(&ONE))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `target` with `input`, in a turn.
///
/// # Errors
/// What is wrong with the target.
pub fn check(_turn: &Turn, target: &Target, input: &[u8]) -> Result<(), Finding> {
    watch();
    lock(&PANICKED).take();
    let began = Instant::now();
    *lock(&RUNNING) = Some((began, target.name, input.to_vec()));
    let before = allocation::restart();
    let result = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let peak = allocation::peak().saturating_sub(before);
    let took = began.elapsed();
    lock(&RUNNING).take();
    if let Some(message) = lock(&PANICKED).take() {
        return Err(Finding::Panic(message));
    }
    if result.is_err() {
        return Err(Finding::Panic("without a message".into()));
    }
    let most = target.memory.most(input.len());
    if peak > most {
        return Err(Finding::Memory { peak, most });
    }
    if took > DEADLINE {
        return Err(Finding::Time(took));
    }
    Ok(())
}

/// Remembers panics of all threads, and ends the process when an input hangs.
fn watch() {
    static BEGUN: Once = Once::new();
    BEGUN.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if lock(&RUNNING).is_some() {
                lock(&PANICKED).get_or_insert_with(|| info.to_string());
            }
            before(info);
        }));
        let watchdog = std::thread::Builder::new().name("watchdog".into());
        let begun = watchdog.spawn(|| {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                if let Some((began, name, input)) = &*lock(&RUNNING)
                    && began.elapsed() > HANG
                {
                    eprintln!("target {name} hangs with the input {input:02x?}");
                    std::process::abort();
                }
            }
        });
        if let Err(error) = begun {
            eprintln!("no watchdog: {error}");
        }
    });
}
