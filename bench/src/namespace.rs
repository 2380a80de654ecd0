//! Network namespaces of this benchmark. They have no name and no file, so that they vanish with the
//! last process in them.
//!
//! `unsafe`: to unshare can break what threads of a process share; here it is the network alone.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

const OF_THIS_THREAD: &str = "/proc/thread-self/ns/net";

/// A network namespace that exists as long as this.
pub(super) struct Namespace(File);

impl Namespace {
    /// A new one, with nothing in it but loopback, which is down.
    pub fn new() -> io::Result<Self> {
        // A thread of its own leaves the network of this process, and its end leaves no trace.
        let thread = std::thread::Builder::new()
            .name("bench-network".to_owned())
            .spawn(|| {
                // SAFETY: the flag concerns the network only: descriptors, memory and everything
                // else stay shared with the threads of this process.
                unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
                File::open(OF_THIS_THREAD)
            })?;
        let file = thread
            .join()
            .map_err(|_| io::Error::other("the thread died"))??;
        Ok(Self(file))
    }

    /// A path by which other programs can name it while this process lives.
    pub fn path(&self) -> PathBuf {
        let fd = self.0.as_raw_fd();
        format!("/proc/{}/fd/{fd}", std::process::id()).into()
    }

    /// Does something inside: sockets and processes made there stay there.
    ///
    /// # Errors
    /// When it cannot be entered, or not be left again.
    pub fn inside<T>(&self, make: impl FnOnce() -> T) -> io::Result<T> {
        let outside = File::open(OF_THIS_THREAD)?;
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(self.0.as_fd(), network)?;
        let made = make();
        move_into_link_name_space(outside.as_fd(), network)?;
        Ok(made)
    }
}
