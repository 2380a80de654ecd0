//! What is opened before the guest is there, outside of the limits on files.
//!
//! The images, the kernel and the listening socket are named by the user, in part (where the source of
//! a migration may say where disks lie) only after the process is confined. One thread stays outside
//! of the limits on files and opens them; it ends before the guest's first instruction, and nobody can
//! open what was not given from then on.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};

type Job = Box<dyn FnOnce() + Send>;

static OPENER: Mutex<Option<Sender<Job>>> = Mutex::new(None);

/// Starts the thread; it has the limits that its caller has now.
pub(super) fn start() -> io::Result<()> {
    let (sender, jobs) = channel::<Job>();
    std::thread::Builder::new()
        .name("opener".into())
        .spawn(move || {
            for job in jobs {
                job();
            }
        })?;
    *OPENER.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
    Ok(())
}

/// Runs `open` where files that were not known when the process was confined can still be opened; in
/// place where nothing is confined, or no longer.
pub(crate) fn outside<T: Send + 'static>(open: impl FnOnce() -> T + Send + 'static) -> T {
    let opener = OPENER
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let Some(opener) = opener else { return open() };
    let (sender, opened) = channel();
    let job = Box::new(move || {
        let _ = sender.send(catch_unwind(AssertUnwindSafe(open)));
    });
    // The thread ends only when its last sender is gone, and this is one.
    let _ = opener.send(job);
    match opened.recv() {
        Ok(Ok(opened)) => opened,
        Ok(Err(panic)) => resume_unwind(panic),
        Err(e) => resume_unwind(Box::new(e.to_string())),
    }
}

/// Ends the thread: nothing more can be opened than the limits name.
pub(crate) fn close() {
    OPENER.lock().unwrap_or_else(PoisonError::into_inner).take();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_sandbox_files_are_opened_in_place() {
        let here = std::thread::current().id();
        assert_eq!(outside(move || std::thread::current().id()), here);
    }
}
