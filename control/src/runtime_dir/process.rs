//! The process of a VM, as others wait for its end.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{self, Errno};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process of which nothing is left when it has ended: disks, taps, ports and memory are free.
///
/// A VM's end is told a little before: its name and port are free then, and its disks, but a large
/// memory takes its time.
#[derive(Debug)]
pub struct VmProcess {
    /// `None` where there is none any more, or it cannot be seen.
    pidfd: Option<OwnedFd>,
}

impl VmProcess {
    /// The process that has this number now.
    pub fn of(pid: u32) -> Self {
        Self::seen(pid).unwrap_or(Self { pidfd: None })
    }

    /// The process that has this number now, if it can be seen.
    ///
    /// # Errors
    /// `SRCH` when there is none.
    pub fn seen(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pidfd = pidfd_open(pid.ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
        Ok(Self { pidfd: Some(pidfd) })
    }

    /// Kills it, if there is one still; whatever becomes of its number, no other is hit.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&self) -> io::Result<()> {
        let Some(pidfd) = &self.pidfd else {
            return Ok(());
        };
        match pidfd_send_signal(pidfd, Signal::KILL) {
            Err(Errno::SRCH) => Ok(()),
            done => done,
        }
    }

    /// Waits until it has ended; false when `timeout` passed first.
    pub fn wait_end(&self, timeout: Duration) -> bool {
        let Some(pidfd) = &self.pidfd else {
            return true;
        };
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(left) = Timespec::try_from(left) else {
                return false;
            };
            match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&left)) {
                Ok(0) => return false,
                Err(Errno::INTR) => {}
                Ok(_) => return true,
                Err(_) => return false,
            }
        }
    }
}
