//! The largest frames that pass network interfaces, as their driver sees them: beyond Ethernet's limit
//! only where segmentation is left to the other end.
#![allow(unsafe_code)] // packet sockets

use std::ffi::CString;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// Largest frames so far, in bytes; each is seen by its taker, after the kernel has cut it if it must.
#[derive(Debug, Default)]
pub struct Largest {
    /// Of those that the interface received: a tap's come from its guest.
    pub received: AtomicUsize,
    /// Of those that it was given to send.
    pub sent: AtomicUsize,
}

/// A socket that sees all frames of this network namespace (packet(7)).
#[derive(Debug)]
pub struct Frames {
    socket: OwnedFd,
    interfaces: Vec<i32>,
}

/// How long one look at the socket waits.
const WAIT: Duration = Duration::from_millis(200);

impl Frames {
    /// Watches these interfaces.
    ///
    /// # Errors
    /// When one does not exist, or the process may not watch.
    pub fn of(interfaces: &[&str]) -> io::Result<Self> {
        let interfaces: io::Result<Vec<i32>> = interfaces.iter().map(|name| index(name)).collect();
        let wait = libc::timeval {
            tv_sec: 0,
            tv_usec: libc::suseconds_t::from(WAIT.subsec_micros()),
        };
        // SAFETY: the descriptor that the first call gives is owned by nobody else; the second reads
        // `wait`, which has the size told.
        let socket = unsafe {
            let protocol = i32::from((libc::ETH_P_ALL as u16).to_be());
            let fd = libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                protocol,
            );
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let socket = OwnedFd::from_raw_fd(fd);
            let set = libc::setsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const wait).cast(),
                size_of::<libc::timeval>() as libc::socklen_t,
            );
            if set < 0 {
                return Err(io::Error::last_os_error());
            }
            socket
        };
        Ok(Self {
            socket,
            interfaces: interfaces?,
        })
    }

    /// Waits shortly for one frame and takes it in.
    pub fn look(&self, largest: &Largest) {
        let mut from = MaybeUninit::<libc::sockaddr_ll>::zeroed();
        let mut from_len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: no byte of the frame is asked for, only its length; the address is written into
        // `from`, which is as large as told and zero, a valid value, where nothing is written.
        let (length, from) = unsafe {
            let length = libc::recvfrom(
                self.socket.as_raw_fd(),
                std::ptr::null_mut(),
                0,
                libc::MSG_TRUNC,
                from.as_mut_ptr().cast(),
                &raw mut from_len,
            );
            (length, from.assume_init())
        };
        let Ok(length) = usize::try_from(length) else {
            return;
        };
        if !self.interfaces.contains(&from.sll_ifindex) {
            return;
        }
        let side = if from.sll_pkttype == libc::PACKET_OUTGOING {
            &largest.sent
        } else {
            &largest.received
        };
        side.fetch_max(length, Relaxed);
    }
}

fn index(name: &str) -> io::Result<i32> {
    let name = CString::new(name)?;
    // SAFETY: the name ends with NUL.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index as i32),
    }
}
