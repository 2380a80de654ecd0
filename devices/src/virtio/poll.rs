//! Waiting for kicks and packets.

// An EventFd has no safe way to borrow its descriptor.
#![allow(unsafe_code)]

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::ReadWriteFlags;
use vmm_sys_util::eventfd::EventFd;

fn fd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as `event`, which outlives the result.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

fn wait(fds: &mut [PollFd<'_>], patience: Option<Duration>) -> io::Result<usize> {
    let patience = patience.map(|patience| Timespec {
        tv_sec: patience.as_secs().cast_signed(),
        tv_nsec: patience.subsec_nanos().into(),
    });
    Ok(rustix::event::poll(fds, patience.as_ref())?)
}

/// Waits for a kick, for packets, and no longer than `patience`: whether there was a kick, and how many
/// of the two there were.
pub(super) fn poll(
    kick: &EventFd,
    packets: Option<BorrowedFd<'_>>,
    patience: Option<Duration>,
) -> io::Result<(bool, usize)> {
    let kick = fd(kick);
    // Without packets the kick is waited for twice, which changes nothing but the count.
    let packets = packets.unwrap_or(kick);
    let mut fds = [kick, packets].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    let events = wait(&mut fds, patience)?;
    Ok((!fds[0].revents().is_empty(), events))
}

/// Waits for `event` or one of the kicks, and no longer than `patience`; `fds` is room for them, which is
/// kept from one time to the next.
pub(super) fn poll_kicks<'e>(
    fds: &mut Vec<PollFd<'e>>,
    event: &'e EventFd,
    kicks: impl Iterator<Item = &'e EventFd>,
    patience: Option<Duration>,
) -> io::Result<()> {
    let events = std::iter::once(event).chain(kicks);
    fds.clear();
    fds.extend(events.map(|event| PollFd::from_borrowed_fd(fd(event), PollFlags::IN)));
    wait(fds, patience).map(drop)
}

/// Takes what was written to an event, if anything was, though reading it would wait.
pub(super) fn try_take(event: &EventFd) {
    // As one reads what has no place to read from.
    const HERE: u64 = u64::MAX;
    let mut count = [0; 8];
    let into = &mut [IoSliceMut::new(&mut count)];
    // Nothing is there, or another thread was faster.
    let _empty = rustix::io::preadv2(fd(event), into, HERE, ReadWriteFlags::NOWAIT);
}
