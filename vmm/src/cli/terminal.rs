//! The terminal as the guest's console: raw input, and the key that leaves it.

use std::io::{self, Read};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};

use control::signals;

/// Ctrl-], which never reaches the guest.
pub(super) const ESCAPE: u8 = 0x1d;

/// Standard input in raw mode; as it was before once this is dropped.
pub(super) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Makes the terminal raw; `None` when standard input is none, or belongs to somebody else now.
    pub fn enter() -> Option<Self> {
        let stdin = io::stdin();
        if !owns_terminal() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        // Lines of a guest that sends bare newlines still begin at the left.
        raw.output_modes = before.output_modes;
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }
}

impl RawTerminal {
    /// As [`RawTerminal::enter`], for a process that leaves its end to signals: the terminal is as it was
    /// before when one of them comes.
    ///
    /// # Errors
    /// When signals cannot be heard; the terminal is left as it is.
    pub fn enter_until_signal() -> io::Result<Option<Self>> {
        if !owns_terminal() {
            return Ok(None);
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut ends = runtime.block_on(async { Ends::hear() })?;
        let terminal = Self::enter();
        let before = terminal.as_ref().map(|terminal| terminal.before.clone());
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                let signal = runtime.block_on(ends.first());
                if let Some(before) = &before {
                    restore(before);
                }
                signals::end_by(signal);
            })?;
        Ok(terminal)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore(&self.before);
    }
}

fn restore(before: &Termios) {
    let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
}

/// Signals that end a process that hears none of them.
struct Ends([(i32, Signal); 4]);

impl Ends {
    /// Hears them from now on.
    fn hear() -> io::Result<Self> {
        let hear = |number| Ok::<_, io::Error>((number, signal(SignalKind::from_raw(number))?));
        Ok(Self([
            hear(libc::SIGTERM)?,
            hear(libc::SIGINT)?,
            hear(libc::SIGHUP)?,
            hear(libc::SIGQUIT)?,
        ]))
    }

    /// The first that comes.
    async fn first(&mut self) -> i32 {
        let [a, b, c, d] = &mut self.0;
        tokio::select! {
            _ = a.1.recv() => a.0,
            _ = b.1.recv() => b.0,
            _ = c.1.recv() => c.0,
            _ = d.1.recv() => d.0,
        }
    }
}

/// Whether standard input may be read without being stopped for it.
pub(super) fn may_read() -> bool {
    !isatty(io::stdin()) || owns_terminal()
}

fn owns_terminal() -> bool {
    isatty(io::stdin()) && tcgetpgrp(io::stdin()).is_ok_and(|g| g == rustix::process::getpgrp())
}

/// What was typed.
pub(crate) enum Keys<'a> {
    /// Bytes for the guest.
    Bytes(&'a [u8]),
    /// The key that leaves the console.
    Escape,
}

/// Hands on standard input until it ends or `take` says so by `false`.
pub(super) fn read_keys(terminal: bool, mut take: impl FnMut(Keys<'_>) -> bool) {
    let mut buffer = [0; 1024];
    loop {
        let n = match io::stdin().lock().read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        if !hand_on(&buffer[..n], terminal, &mut take) {
            return;
        }
    }
}

/// Tells keys from escapes; `false` when `take` has had enough.
pub(crate) fn hand_on(
    mut typed: &[u8],
    terminal: bool,
    take: &mut impl FnMut(Keys<'_>) -> bool,
) -> bool {
    while !typed.is_empty() {
        let escape = typed.iter().position(|b| terminal && *b == ESCAPE);
        let (keys, after) = typed.split_at(escape.unwrap_or(typed.len()));
        if !keys.is_empty() && !take(Keys::Bytes(keys)) {
            return false;
        }
        typed = after;
        if escape.is_some() {
            typed = &typed[1..];
            if !take(Keys::Escape) {
                return false;
            }
        }
    }
    true
}
