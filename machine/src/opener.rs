//! What is opened before the guest is there, outside of the limits on files.
//!
//! The images, the kernel and the listening socket are named by the user, in part (where the source of
//! a migration may say where disks lie) only after the process is confined. One thread stays outside
//! of the limits on files and opens them; it ends before the guest's first instruction, and nobody can
//! open what was not given from then on. What comes later is passed open by whoever asks for something to
//! be done with it ([`control::passed`]).

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use migration::observation::{Observation, Side};

type Job = Box<dyn FnOnce() + Send>;

/// Who opens what is named late.
enum Opener {
    /// Whoever asks: the process is not confined.
    Anybody,
    /// The thread that takes such jobs.
    Thread(Sender<Job>),
    /// Nobody: the guest has begun.
    Nobody,
}

impl Opener {
    fn close(&mut self) {
        if let Self::Thread(_) = self {
            *self = Self::Nobody;
        }
    }
}

static OPENER: Mutex<Opener> = Mutex::new(Opener::Anybody);

fn opener() -> MutexGuard<'static, Opener> {
    OPENER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The guest has begun, and nothing more is opened for it by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest has begun: nothing more can be opened by its name")]
pub struct Closed;

impl From<Closed> for io::Error {
    fn from(closed: Closed) -> Self {
        Self::new(io::ErrorKind::PermissionDenied, closed)
    }
}

impl From<Closed> for Observation {
    fn from(closed: Closed) -> Self {
        Self::new(Side::Source, "vmm.closed", closed.to_string())
    }
}

/// Starts the thread; it has the limits that its caller has now.
///
/// # Errors
/// When there is no thread.
pub fn start() -> io::Result<()> {
    let (sender, jobs) = channel::<Job>();
    std::thread::Builder::new()
        .name("opener".into())
        .spawn(move || {
            for job in jobs {
                job();
            }
        })?;
    *opener() = Opener::Thread(sender);
    Ok(())
}

/// Runs `open` where files that were not known when the process was confined can still be opened; in
/// place where nothing is confined.
///
/// # Errors
/// Those of `open`, and [`Closed`] once the guest has begun.
pub fn outside<T, E>(open: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<Closed> + Send + 'static,
{
    let thread = match &*opener() {
        Opener::Anybody => None,
        Opener::Thread(thread) => Some(thread.clone()),
        Opener::Nobody => return Err(Closed.into()),
    };
    match thread {
        None => open(),
        Some(thread) => by_thread(&thread, open),
    }
}

fn by_thread<T: Send + 'static>(
    thread: &Sender<Job>,
    open: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (sender, opened) = channel();
    let job = Box::new(move || {
        let _ = sender.send(catch_unwind(AssertUnwindSafe(open)));
    });
    // The thread ends only when its last sender is gone, and this is one.
    let _ = thread.send(job);
    match opened.recv() {
        Ok(Ok(opened)) => opened,
        Ok(Err(panic)) => resume_unwind(panic),
        Err(e) => resume_unwind(Box::new(e.to_string())),
    }
}

/// Ends the thread: nothing more can be opened than the limits name.
pub fn close() {
    opener().close();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_sandbox_files_are_opened_in_place() {
        let here = std::thread::current().id();
        let asked = outside(move || Ok::<_, Closed>(std::thread::current().id()));
        assert_eq!(asked, Ok(here));
        // Nobody was confined, so nobody is let down.
        close();
        assert!(outside(|| Ok::<_, Closed>(())).is_ok());
    }

    #[test]
    fn a_closed_opener_opens_nothing_again() {
        let (sender, _jobs) = channel();
        let mut opener = Opener::Thread(sender);
        opener.close();
        assert!(matches!(opener, Opener::Nobody));
        opener.close();
        assert!(matches!(opener, Opener::Nobody));
    }
}
