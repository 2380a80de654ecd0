//! Frames that pass network interfaces, as their driver sees them: the largest, which are beyond Ethernet's
//! limit only where segmentation is left to the other end; and those by which a guest announces itself.
#![allow(unsafe_code)] // packet sockets

use std::ffi::CString;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// Largest frames so far, in bytes; each is seen by its taker, after the kernel has cut it if it must.
#[derive(Debug, Default)]
pub struct Largest {
    /// Of those that the interface received: a tap's come from its guest.
    pub received: AtomicUsize,
    /// Of those that it was given to send.
    pub sent: AtomicUsize,
}

/// As much of a frame as is looked at.
const BEGIN: usize = 64;

/// A socket that sees frames of this network namespace (packet(7)).
#[derive(Debug)]
struct Socket(OwnedFd);

/// A frame that a socket saw.
struct Frame {
    /// Index of the interface.
    interface: i32,
    /// Whether the kernel sent it by the interface; else it came in by it.
    outgoing: bool,
    length: usize,
    /// Its first bytes; zeroes where it is shorter.
    begin: [u8; BEGIN],
}

/// How long one look at a socket waits.
const WAIT: Duration = Duration::from_millis(200);

impl Socket {
    /// Sees frames of this type.
    fn of(kind: libc::c_int) -> io::Result<Self> {
        let wait = libc::timeval {
            tv_sec: 0,
            tv_usec: libc::suseconds_t::from(WAIT.subsec_micros()),
        };
        // SAFETY: the descriptor that the first call gives is owned by nobody else; the second reads
        // `wait`, which has the size told.
        let socket = unsafe {
            let protocol = i32::from((kind as u16).to_be());
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
        Ok(Self(socket))
    }

    /// Waits shortly for one frame.
    fn look(&self) -> Option<Frame> {
        let mut begin = [0; BEGIN];
        let mut from = MaybeUninit::<libc::sockaddr_ll>::zeroed();
        let mut from_len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: no more of the frame is asked for than fits `begin`; the address is written into
        // `from`, which is as large as told and zero, a valid value, where nothing is written.
        let (length, from) = unsafe {
            let length = libc::recvfrom(
                self.0.as_raw_fd(),
                begin.as_mut_ptr().cast(),
                begin.len(),
                libc::MSG_TRUNC,
                from.as_mut_ptr().cast(),
                &raw mut from_len,
            );
            (length, from.assume_init())
        };
        Some(Frame {
            interface: from.sll_ifindex,
            outgoing: from.sll_pkttype == libc::PACKET_OUTGOING,
            length: usize::try_from(length).ok()?,
            begin,
        })
    }
}

/// Watches how large frames are.
#[derive(Debug)]
pub struct Frames {
    socket: Socket,
    interfaces: Vec<i32>,
}

impl Frames {
    /// Watches these interfaces.
    ///
    /// # Errors
    /// When one does not exist, or the process may not watch.
    pub fn of(interfaces: &[&str]) -> io::Result<Self> {
        let interfaces: io::Result<Vec<i32>> = interfaces.iter().map(|name| index(name)).collect();
        Ok(Self {
            socket: Socket::of(libc::ETH_P_ALL)?,
            interfaces: interfaces?,
        })
    }

    /// Waits shortly for one frame and takes it in.
    pub fn look(&self, largest: &Largest) {
        let Some(frame) = self.socket.look() else {
            return;
        };
        if !self.interfaces.contains(&frame.interface) {
            return;
        }
        let side = if frame.outgoing {
            &largest.sent
        } else {
            &largest.received
        };
        side.fetch_max(frame.length, Relaxed);
    }
}

/// Watches for announcements, on a socket of their own: among bulk traffic one might be lost. The kernel
/// shows a frame of one type at the bridge, not at its port.
#[derive(Debug)]
pub struct Announcements(Socket);

impl Announcements {
    /// Watches all interfaces.
    ///
    /// # Errors
    /// When the process may not watch.
    pub fn begin() -> io::Result<Self> {
        Socket::of(libc::ETH_P_ARP).map(Self)
    }

    /// Waits shortly for one frame; counts it if somebody outside announces itself by it.
    pub fn look(&self, announced: &AtomicU64) {
        let Some(frame) = self.0.look() else { return };
        if !frame.outgoing && is_announcement(&frame.begin) {
            announced.fetch_add(1, Relaxed);
        }
    }
}

/// Whether an ARP packet in an Ethernet frame says where its own address is (RFC 5227, 3): the addresses of
/// sender and target are the same. A reverse one has another type.
fn is_announcement(frame: &[u8; BEGIN]) -> bool {
    const SENDER: usize = 28;
    const TARGET: usize = 38;
    let (sender, target) = (&frame[SENDER..][..4], &frame[TARGET..][..4]);
    frame[12..14] == [8, 6] && sender == target && sender != [0; 4]
}

fn index(name: &str) -> io::Result<i32> {
    let name = CString::new(name)?;
    // SAFETY: the name ends with NUL.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index as i32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcement_is_told_from_other_arp_packets() {
        let mut frame = [0; BEGIN];
        frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame[28..32].copy_from_slice(&[10, 9, 0, 2]);
        frame[38..42].copy_from_slice(&[10, 9, 0, 2]);
        assert!(is_announcement(&frame));
        let mut question = frame;
        question[41] = 1;
        assert!(!is_announcement(&question));
        let mut reverse = frame;
        reverse[12..14].copy_from_slice(&[0x80, 0x35]);
        assert!(!is_announcement(&reverse));
    }
}
