//! A tap interface of this host (Documentation/networking/tuntap.rst of Linux).

// Interfaces are asked about, and packets passed, by system calls that take raw addresses.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use block::Buffer;
use libc::{c_int, c_short, c_ulong};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::backend::{HEADER, NetBackend, Offloads};
use super::limits::MAX_PAIRS;
pub use super::tap_error::TapError;
use crate::locked::locked;

const DEVICE: &str = "/dev/net/tun";
/// Longest name of an interface.
const MOST_NAME: usize = libc::IFNAMSIZ - 1;
/// Most packets that are thrown away when an interface becomes live: a few times as many as the
/// kernel keeps.
const MOST_STALE: usize = 4096;

/// Whether the interface was made for several queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queues {
    One,
    Many,
}

/// An open tap interface, silent until it is told how many queues take part.
pub struct Tap {
    name: String,
    mtu: u16,
    offloads: Offloads,
    queues: Queues,
    fds: Vec<OwnedFd>,
    /// How many take part.
    active: Mutex<u16>,
    /// Keeps others of our kind off an interface that any number may open.
    _claim: Option<OwnedFd>,
}

impl Tap {
    /// Opens the tap `name`, which exists, with so many pairs of queues.
    ///
    /// # Errors
    /// When there is no such tap, somebody else has it, or it has fewer queues.
    pub fn open(name: &str, pairs: u16) -> Result<Self, TapError> {
        check_name(name)?;
        let info = Interface::of(name)?;
        let mtu = info.mtu()?;
        let pairs = pairs.clamp(1, MAX_PAIRS);
        let (first, queues) = open_first(name, pairs)?;
        let claim = match queues {
            // The kernel lets one process in.
            Queues::One => None,
            Queues::Many => Some(claim(name)?),
        };
        let mut fds = vec![first];
        for _ in 1..pairs {
            let fd = open_device(name)?;
            attach(&fd, name, Queues::Many).map_err(|e| refused(name, Queues::Many, e))?;
            fds.push(fd);
        }
        let mut tap = Self {
            name: name.to_owned(),
            mtu,
            offloads: Offloads::NONE,
            queues,
            fds,
            active: Mutex::new(pairs),
            _claim: claim,
        };
        let system = |operation| tap.system(operation);
        tap.set_pairs(0).map_err(system("silence"))?;
        let header = HEADER as c_int;
        // SAFETY: the argument is the address of an int, which the kernel reads.
        unsafe {
            ioctl(
                &tap.fds[0],
                libc::TUNSETVNETHDRSZ,
                &raw const header as c_ulong,
            )
        }
        .map_err(system("set the header of"))?;
        tap.offloads = [Offloads::ALL, Offloads::TCP, Offloads::CHECKSUM]
            .into_iter()
            .find(|offloads| tap.set_offloads(*offloads).is_ok())
            .unwrap_or_default();
        tap.set_offloads(Offloads::NONE)
            .map_err(tap.system("set the offloads of"))?;
        Ok(tap)
    }

    /// Name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Largest packet that the interface carries, without its Ethernet header.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Says why a guest that was told of `mtu` and `offloads` cannot go on with this interface.
    ///
    /// # Errors
    /// When it carries less, can do less, or is down.
    pub fn check(&self, mtu: u16, offloads: Offloads) -> Result<(), TapError> {
        let interface = || self.name.clone();
        if self.mtu < mtu {
            return Err(TapError::Mtu {
                interface: interface(),
                mtu: self.mtu,
                wanted: mtu,
            });
        }
        if !offloads.are_in(self.offloads) {
            return Err(TapError::Offloads {
                interface: interface(),
                have: self.offloads.bits(),
                wanted: offloads.bits(),
            });
        }
        if !Interface::of(&self.name)?.is_up()? {
            return Err(TapError::Down(interface()));
        }
        Ok(())
    }

    fn system(&self, operation: &'static str) -> impl Fn(io::Error) -> TapError + use<> {
        let interface = self.name.clone();
        move |source| TapError::System {
            operation,
            interface: interface.clone(),
            source,
        }
    }

    fn fd(&self, pair: u16) -> &OwnedFd {
        // Callers have as many pairs as were opened.
        &self.fds[usize::from(pair) % self.fds.len()]
    }

    fn set_queue(&self, pair: u16, flags: c_int) -> io::Result<()> {
        let mut request = Request::new(&self.name);
        // Fits: flags of interfaces have 16 bits.
        request.set_flags(flags as c_short);
        // SAFETY: the argument is the address of an ifreq, which the kernel reads.
        unsafe { ioctl(self.fd(pair), libc::TUNSETQUEUE, request.address()) }
    }

    /// Throws away what came while nobody was to hear it.
    fn forget_packets(&self) -> io::Result<()> {
        // Of each no more than the header, for which the kernel refuses to have no room.
        let mut header = [0; HEADER as usize];
        for _ in 0..MOST_STALE {
            match self.receive(0, &[Buffer::new(&mut header)]) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Tap {
    /// Says what the kernel means by a descriptor in bad state.
    fn explain(&self, error: io::Error) -> io::Error {
        if error.raw_os_error() != Some(libc::EBADFD) {
            return error;
        }
        let gone = format!(
            "the tap {:?} is gone from this host: it was deleted",
            self.name
        );
        io::Error::new(io::ErrorKind::NotFound, gone)
    }
}

impl NetBackend for Tap {
    fn pairs(&self) -> u16 {
        // At most MAX_PAIRS.
        self.fds.len() as u16
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_pairs(&self, pairs: u16) -> io::Result<()> {
        let mut active = locked(&self.active);
        if self.queues == Queues::One {
            if *active == 0 && pairs > 0 {
                self.forget_packets()?;
            }
            *active = pairs;
            return Ok(());
        }
        while *active > pairs {
            self.set_queue(*active - 1, libc::IFF_DETACH_QUEUE)?;
            *active -= 1;
        }
        while *active < pairs.min(self.pairs()) {
            self.set_queue(*active, libc::IFF_ATTACH_QUEUE)?;
            *active += 1;
        }
        Ok(())
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        // SAFETY: the argument is a number.
        unsafe { ioctl(self.fd(0), libc::TUNSETOFFLOAD, offloads.bits().into()) }
    }

    fn waiting(&self, pair: u16) -> BorrowedFd<'_> {
        self.fd(pair).as_fd()
    }

    fn receive(&self, pair: u16, into: &[Buffer<'_>]) -> io::Result<usize> {
        let iovecs = Buffer::as_iovecs(into);
        let fd = self.fd(pair).as_raw_fd();
        transfer(|| {
            // SAFETY: the vector and the memory that it names live for the duration of the call, and
            // nobody has a reference to that memory, which may change at any time.
            unsafe { libc::readv(fd, iovecs.as_ptr(), iovecs.len() as c_int) }
        })
        .map_err(|e| self.explain(e))
    }

    fn send(&self, pair: u16, packet: &[Buffer<'_>]) -> io::Result<()> {
        let iovecs = Buffer::as_iovecs(packet);
        let fd = self.fd(pair).as_raw_fd();
        transfer(|| {
            // SAFETY: as for `receive`.
            unsafe { libc::writev(fd, iovecs.as_ptr(), iovecs.len() as c_int) }
        })
        .map(drop)
        .map_err(|e| self.explain(e))
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap")
            .field("name", &self.name)
            .field("queues", &self.fds.len())
            .finish_non_exhaustive()
    }
}

/// Repeats a transfer that a signal interrupted.
fn transfer(call: impl Fn() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(bytes) = usize::try_from(call()) {
            return Ok(bytes);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// # Safety
/// The argument is what the request takes: a number, or the address of what it reads or writes.
unsafe fn ioctl(fd: &OwnedFd, request: libc::Ioctl, argument: c_ulong) -> io::Result<()> {
    // SAFETY: the caller's contract.
    if unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether an interface can have this name.
///
/// # Errors
/// [`TapError::Name`].
pub fn check_name(name: &str) -> Result<(), TapError> {
    let fits = (1..=MOST_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'/' && b != b'%')
        && name != "."
        && name != "..";
    if fits {
        Ok(())
    } else {
        Err(TapError::Name(name.chars().take(32).collect()))
    }
}

/// `struct ifreq` with the name of an interface.
struct Request(libc::ifreq);

impl Request {
    /// For an interface whose name was checked.
    fn new(name: &str) -> Self {
        // SAFETY: all zeroes are a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request
            .ifr_name
            .iter_mut()
            .zip(name.bytes().take(MOST_NAME))
        {
            *to = from.cast_signed();
        }
        Self(request)
    }

    fn set_flags(&mut self, flags: c_short) {
        self.0.ifr_ifru.ifru_flags = flags;
    }

    fn address(&mut self) -> c_ulong {
        &raw mut self.0 as c_ulong
    }
}

/// An interface, asked about by name.
struct Interface<'n> {
    name: &'n str,
    socket: OwnedFd,
}

impl<'n> Interface<'n> {
    fn of(name: &'n str) -> Result<Self, TapError> {
        let socket = rustix::net::socket_with(
            AddressFamily::INET,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|e| Self::failed(name, e.into()))?;
        let interface = Self { name, socket };
        match interface.ask(libc::SIOCGIFINDEX) {
            Ok(_) => Ok(interface),
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => {
                Err(TapError::Missing(name.to_owned()))
            }
            Err(e) => Err(Self::failed(name, e)),
        }
    }

    fn failed(name: &str, source: io::Error) -> TapError {
        TapError::System {
            operation: "ask about",
            interface: name.to_owned(),
            source,
        }
    }

    fn ask(&self, what: c_ulong) -> io::Result<Request> {
        let mut request = Request::new(self.name);
        // SAFETY: the argument is the address of an ifreq, which the kernel reads and fills.
        unsafe { ioctl(&self.socket, what, request.address()) }?;
        Ok(request)
    }

    fn mtu(&self) -> Result<u16, TapError> {
        let answer = self
            .ask(libc::SIOCGIFMTU)
            .map_err(|e| Self::failed(self.name, e))?;
        // SAFETY: the kernel filled this field.
        let mtu = unsafe { answer.0.ifr_ifru.ifru_mtu };
        Ok(u16::try_from(mtu.max(0)).unwrap_or(u16::MAX))
    }

    fn is_up(&self) -> Result<bool, TapError> {
        let answer = self
            .ask(libc::SIOCGIFFLAGS)
            .map_err(|e| Self::failed(self.name, e))?;
        // SAFETY: the kernel filled this field.
        let flags = unsafe { answer.0.ifr_ifru.ifru_flags };
        Ok(c_int::from(flags) & libc::IFF_UP != 0)
    }
}

fn open_device(name: &str) -> Result<OwnedFd, TapError> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(DEVICE, flags, Mode::empty()).map_err(|e| TapError::System {
        operation: "open /dev/net/tun for",
        interface: name.to_owned(),
        source: e.into(),
    })
}

/// Opens the first queue of a tap that was made for one or for many.
fn open_first(name: &str, pairs: u16) -> Result<(OwnedFd, Queues), TapError> {
    let fd = open_device(name)?;
    let kinds: &[Queues] = if pairs > 1 {
        &[Queues::Many]
    } else {
        &[Queues::One, Queues::Many]
    };
    let mut result = Ok(());
    for &queues in kinds {
        match attach(&fd, name, queues) {
            Ok(()) => return Ok((fd, queues)),
            // Made for the other kind.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => result = Err((queues, e)),
            Err(e) => return Err(refused(name, queues, e)),
        }
    }
    let Err((queues, error)) = result else {
        return Ok((fd, Queues::One));
    };
    // An interface that takes one queue is a tap, and one that takes none is not.
    if pairs > 1 && attach(&open_device(name)?, name, Queues::One).is_ok() {
        return Err(TapError::OneQueue(name.to_owned()));
    }
    Err(refused(name, queues, error))
}

fn attach(fd: &OwnedFd, name: &str, queues: Queues) -> io::Result<()> {
    let many = match queues {
        Queues::One => 0,
        Queues::Many => libc::IFF_MULTI_QUEUE,
    };
    let mut request = Request::new(name);
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | many;
    // Fits: these are 16 bits.
    request.set_flags(flags as c_short);
    // SAFETY: the argument is the address of an ifreq, which the kernel reads and fills.
    unsafe { ioctl(fd, libc::TUNSETIFF, request.address()) }
}

/// Why an interface could not be opened.
fn refused(name: &str, queues: Queues, error: io::Error) -> TapError {
    let name = name.to_owned();
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::E2BIG) => TapError::Busy(name),
        Some(libc::EPERM | libc::EACCES) => TapError::Denied(name),
        Some(libc::EINVAL) if queues == Queues::Many => TapError::NoTap(name),
        _ => TapError::System {
            operation: "open",
            interface: name,
            source: error,
        },
    }
}

/// Claims an interface that several processes can open, by a socket's name: it is known in this network
/// namespace alone, and goes with its process.
fn claim(name: &str) -> Result<OwnedFd, TapError> {
    let failed = |e: rustix::io::Errno| TapError::System {
        operation: "claim",
        interface: name.to_owned(),
        source: e.into(),
    };
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(failed)?;
    let address = SocketAddrUnix::new_abstract_name(format!("vmm/tap/{name}").as_bytes());
    match rustix::net::bind(&socket, &address.map_err(failed)?) {
        Ok(()) => Ok(socket),
        Err(rustix::io::Errno::ADDRINUSE) => Err(TapError::Busy(name.to_owned())),
        Err(e) => Err(failed(e)),
    }
}
