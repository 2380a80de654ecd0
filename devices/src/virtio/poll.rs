//! Waiting for a kick or a packet.

// An EventFd has no safe way to lend its descriptor.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use vmm_sys_util::eventfd::EventFd;

/// Waits for a kick, for packets, and no longer than `patience`: whether there was a kick, and how many
/// of the two there were.
pub(super) fn poll(
    kick: &EventFd,
    packets: Option<BorrowedFd<'_>>,
    patience: Option<Duration>,
) -> io::Result<(bool, usize)> {
    // SAFETY: the descriptor is open for as long as `kick`, which outlives this call.
    let fd = unsafe { BorrowedFd::borrow_raw(kick.as_raw_fd()) };
    let kick = PollFd::from_borrowed_fd(fd, PollFlags::IN);
    // Without packets the kick is waited for twice, which changes nothing but the count.
    let packets = packets.unwrap_or(fd);
    let mut fds = [kick, PollFd::from_borrowed_fd(packets, PollFlags::IN)];
    let patience = patience.map(|patience| Timespec {
        tv_sec: patience.as_secs().cast_signed(),
        tv_nsec: patience.subsec_nanos().into(),
    });
    let events = rustix::event::poll(&mut fds, patience.as_ref())?;
    Ok((!fds[0].revents().is_empty(), events))
}
