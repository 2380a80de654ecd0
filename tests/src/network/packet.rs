//! Frames as they pass an interface, and when packets arrived: by the kernel's clock, so that a reader
//! who gets no CPU in time reads the truth nevertheless.

// Packet sockets and the kernel's time stamps have no safe interface.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};

use super::namespace::Namespace;
use crate::eventually;

/// As much of a frame as is kept.
const KEPT: usize = 256;
/// How long a reader waits before it looks whether it is to stop.
const SLICE: Duration = Duration::from_millis(20);

/// Now, on the clock of time stamps: since 1970.
///
/// # Panics
/// When the machine's clock is before 1970.
pub fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("time since 1970")
}

/// When the packet that was read last from a socket arrived at this machine; `None` when the kernel has
/// not stamped it, as before the first call for a socket.
pub fn arrival(socket: impl AsFd) -> Option<Duration> {
    /// `SIOCGSTAMPNS` of the kernel's `asm-generic/sockios.h`, which fills a `timespec`.
    const GET_STAMP_NS: libc::c_ulong = 0x8907;
    // SAFETY: all zeroes is a value of this struct of integers.
    let mut stamp: libc::timespec = unsafe { zeroed() };
    // SAFETY: the argument is the address of a timespec, which the kernel fills.
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), GET_STAMP_NS, &raw mut stamp) };
    let seconds = u64::try_from(stamp.tv_sec).ok()?;
    let nanos = u32::try_from(stamp.tv_nsec).ok()?;
    (done == 0).then(|| Duration::new(seconds, nanos))
}

/// Makes the kernel stamp every packet when it arrives; otherwise it does when the packet is read.
///
/// # Errors
/// When it does not.
pub fn stamp_arrivals() -> Result<()> {
    /// The kernel stamps as long as somebody wants it.
    static WANTED: OnceLock<Result<UdpSocket, String>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| begin_to_stamp().map_err(|error| format!("{error:#}")));
    wanted.as_ref().map_err(|error| anyhow!(error.clone()))?;
    Ok(())
}

/// It begins a while after it was asked for the first time.
fn begin_to_stamp() -> Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let own = socket.local_addr()?;
    let _ = arrival(&socket);
    let stamped = eventually(Duration::from_secs(60), || {
        socket.send_to(&[0], own).ok()?;
        let sent = now();
        sleep(Duration::from_millis(2));
        socket.recv(&mut [0]).ok()?;
        arrival(&socket).filter(|at| *at <= sent)
    });
    stamped.context("the kernel does not stamp packets")?;
    Ok(socket)
}

/// A frame at an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// When, since 1970.
    pub at: Duration,
    /// Whether the kernel sent it out by the interface; else it came in by it.
    pub outgoing: bool,
    /// Its begin.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// Whose it is, as `bridge fdb` writes addresses.
    pub fn from(&self) -> String {
        let mac = self.bytes.get(6..12).unwrap_or_default();
        let parts: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        parts.join(":")
    }

    /// Type of what it carries.
    pub fn kind(&self) -> u16 {
        let field = self.bytes.get(12..14).unwrap_or(&[0, 0]);
        u16::from_be_bytes([field[0], field[1]])
    }

    /// The payload of a UDP packet from this port; `None` for anything else.
    pub fn udp(&self, from: u16) -> Option<&[u8]> {
        let (datagram, _) = self.ipv4(17)?;
        let (head, payload) = datagram.split_at_checked(8)?;
        (head[..2] == from.to_be_bytes()).then_some(payload)
    }

    /// What a TCP segment from this port brings; `None` for anything else, and for one that brings nothing.
    pub fn tcp(&self, from: u16) -> Option<Segment> {
        let (segment, length) = self.ipv4(6)?;
        let head = segment.get(..20)?;
        let number = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        // Of a large one, as offloads make them, not all was kept: the lengths in its headers count.
        let bytes = length.checked_sub(usize::from(head[12] >> 4) * 4)?;
        let end = number.wrapping_add(u32::try_from(bytes).ok()?);
        (head[..2] == from.to_be_bytes() && bytes > 0).then_some(Segment { at: self.at, end })
    }

    /// What an IPv4 packet of this protocol carries: what was kept of it, and how long it is.
    fn ipv4(&self, protocol: u8) -> Option<(&[u8], usize)> {
        const IPV4: u16 = 0x0800;
        let packet = self.bytes.get(14..).filter(|_| self.kind() == IPV4)?;
        let header = usize::from(packet.first()? & 15) * 4;
        let carried = packet.get(header..)?;
        let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
        (*packet.get(9)? == protocol).then_some((carried, total.checked_sub(header)?))
    }
}

/// A TCP segment with content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// When it passed, since 1970.
    pub at: Duration,
    /// Number of the byte after its last.
    end: u32,
}

impl Segment {
    /// Whether it brings bytes that `other`, of the same stream, has not.
    pub fn goes_beyond(&self, other: &Self) -> bool {
        // Numbers of bytes go round (RFC 9293, 3.4).
        self.end.wrapping_sub(other.end).cast_signed() > 0
    }
}

/// Type of reverse ARP.
pub const RARP: u16 = 0x8035;

/// Everything that passes an interface, until it is finished.
pub struct Capture {
    stop: Arc<AtomicBool>,
    frames: Arc<Mutex<Vec<Frame>>>,
    reader: JoinHandle<()>,
}

impl Capture {
    /// Begins to listen at an interface.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn start(namespace: &Namespace, interface: &str) -> Result<Self> {
        let socket = namespace
            .enter(|| open(interface))
            .with_context(|| format!("listen at {interface}"))?;
        stamp_arrivals()?;
        // The first question for a stamp makes the kernel keep them for this socket from then on.
        let _ = arrival(&socket);
        let stop = Arc::<AtomicBool>::default();
        let frames = Arc::<Mutex<Vec<Frame>>>::default();
        let (stopping, keeping) = (stop.clone(), frames.clone());
        let reader = spawn(move || {
            let mut end = Duration::MAX;
            loop {
                if end == Duration::MAX && stopping.load(Ordering::SeqCst) {
                    end = now();
                }
                match read(&socket) {
                    // What has passed until now is still in the queue.
                    Some(frame) if frame.at <= end => locked(&keeping).push(frame),
                    None if end == Duration::MAX => {}
                    _ => return,
                }
            }
        });
        Ok(Self {
            stop,
            frames,
            reader,
        })
    }

    /// What has passed until now.
    pub fn so_far(&self) -> Vec<Frame> {
        locked(&self.frames).clone()
    }

    /// What has passed.
    ///
    /// # Panics
    /// When the reader has.
    pub fn finish(self) -> Vec<Frame> {
        self.stop.store(true, Ordering::SeqCst);
        self.reader.join().expect("reader of frames");
        std::mem::take(&mut *locked(&self.frames))
    }
}

fn locked(frames: &Mutex<Vec<Frame>>) -> MutexGuard<'_, Vec<Frame>> {
    frames.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A socket that is given every frame of an interface; in the namespace of the calling thread.
fn open(interface: &str) -> Result<OwnedFd> {
    let every = (libc::ETH_P_ALL as u16).to_be();
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // With protocol 0 it hears nothing before it is bound.
    // SAFETY: a plain system call.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    ensure!(fd >= 0, io::Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let index = rustix::net::netdevice::name_to_index(&socket, interface)?;
    // SAFETY: all zeroes is a value of this struct of integers.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = every;
    address.sll_ifindex = i32::try_from(index)?;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel reads an address of this length.
    let bound = unsafe { libc::bind(fd, (&raw const address).cast(), length) };
    ensure!(bound == 0, io::Error::last_os_error());
    rustix::net::sockopt::set_socket_timeout(
        &socket,
        rustix::net::sockopt::Timeout::Recv,
        Some(SLICE),
    )?;
    Ok(socket)
}

/// The next frame; `None` when there is none for a while.
fn read(socket: &OwnedFd) -> Option<Frame> {
    let mut bytes = [0_u8; KEPT];
    // SAFETY: all zeroes is a value of this struct of integers.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel writes at most as many bytes, and as long an address, as there is room.
    let read = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            bytes.as_mut_ptr().cast(),
            bytes.len(),
            0,
            (&raw mut address).cast(),
            &raw mut length,
        )
    };
    let read = usize::try_from(read).ok()?;
    Some(Frame {
        at: arrival(socket).unwrap_or_else(now),
        outgoing: address.sll_pkttype == libc::PACKET_OUTGOING,
        bytes: bytes[..read].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::requirements::lacks_network;
    use crate::skip;

    #[test]
    fn frames_are_seen_with_their_way_and_time() {
        if let Some(reason) = lacks_network() {
            skip!("{reason}");
        }
        let (one, other) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        let path = other.path();
        let mac = "52:54:00:00:00:01";
        one.ip(&format!(
            "link add wire address {mac} type veth peer name wire netns {}",
            path.display()
        ))
        .unwrap();
        for (namespace, address) in [(&one, "192.0.2.1"), (&other, "192.0.2.2")] {
            namespace
                .ip(&format!("address add {address}/24 dev wire"))
                .unwrap();
            namespace.ip("link set wire up").unwrap();
        }
        let captures = [&one, &other].map(|side| Capture::start(side, "wire").unwrap());
        let before = now();
        let near = one.enter(|| UdpSocket::bind("192.0.2.1:0")).unwrap();
        let far = other.enter(|| UdpSocket::bind("192.0.2.2:0")).unwrap();
        far.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let port = near.local_addr().unwrap().port();
        near.send_to(b"one word", far.local_addr().unwrap())
            .unwrap();
        far.recv(&mut [0; 16]).unwrap();
        let after = now();
        let [sent, came] = captures.map(Capture::finish);
        for (frames, outgoing) in [(sent, true), (came, false)] {
            let frame = frames
                .iter()
                .find(|frame| frame.udp(port) == Some(b"one word"))
                .unwrap();
            assert_eq!(frame.udp(port ^ 1), None);
            assert_eq!(frame.from(), mac);
            assert_eq!((frame.kind(), frame.outgoing), (0x0800, outgoing));
            assert!(
                before <= frame.at && frame.at <= after,
                "{before:?} {frame:?} {after:?}"
            );
        }
    }
}
