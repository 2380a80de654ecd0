//! TCP and unix sockets.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};

use super::stretch;
use super::{Connect, Connection, Listen, Patience, Piece, Within};
use crate::address::Address;
use crate::endpoint::{Endpoint, RemoteHost};
use crate::raw::{PagePipe, Then, receive_all, send_all};

/// Asked of the kernel for each direction of a unix socket; it may grant less. Two batches fit. Those
/// of TCP grow with what the connection needs, and a fixed size keeps them from it: smaller ones stay
/// in the CPU's cache, which a copy in a loop-back or a fast network gains from.
const BUFFER: usize = 4 << 20;
/// Waits are cut into pieces of this length to see whether they are still wanted.
const SLICE: Duration = Duration::from_millis(20);

/// A connected stream socket.
pub struct SocketConnection {
    fd: OwnedFd,
    /// Made when the first pages are sent by reference; holds nothing when there was none to be had, and
    /// all pages are copied.
    pipe: OnceLock<Option<PagePipe>>,
}

impl SocketConnection {
    /// Takes over a connected stream socket.
    ///
    /// # Errors
    /// When it cannot be set up.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, false)?;
        if sockopt::socket_domain(&fd)? == AddressFamily::UNIX {
            // A smaller buffer than asked for is slower, not wrong.
            let _ = sockopt::set_socket_send_buffer_size(&fd, BUFFER);
            let _ = sockopt::set_socket_recv_buffer_size(&fd, BUFFER);
        } else {
            sockopt::set_tcp_nodelay(&fd, true)?;
            let peer = rustix::net::getpeername(&fd).ok().flatten();
            if let Some(Ok(peer)) = peer.map(SocketAddr::try_from) {
                leave_unpaced(&fd, peer);
            }
        }
        Ok(Self {
            fd,
            pipe: OnceLock::new(),
        })
    }

    /// Transfers `len` bytes as the socket is ready for them: `some` does what can be done at once, given
    /// what is done, and tells how much that was.
    fn bit_by_bit(
        &self,
        len: usize,
        readiness: PollFlags,
        within: Within,
        mut some: impl FnMut(usize) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut done = 0;
        let mut patience = within.patience();
        while done < len {
            let began = Instant::now();
            if patience.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if wait(self.fd.as_fd(), readiness, patience)? {
                match some(done) {
                    Ok(more) => {
                        done += more;
                        patience = within.patience();
                        continue;
                    }
                    Err(error) if is_passing(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            patience = patience.saturating_sub(began.elapsed());
        }
        Ok(())
    }

    /// The pipe to send pages by reference, if there is one to be had.
    fn pipe(&self) -> Option<&PagePipe> {
        self.pipe.get_or_init(|| PagePipe::new().ok()).as_ref()
    }
}

/// A TCP socket to connect to `to` with, non-blocking, as migrations use it.
///
/// # Errors
/// When the kernel has none to give.
pub fn tcp_socket(to: SocketAddr) -> io::Result<OwnedFd> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    leave_unpaced(&fd, to);
    Ok(fd)
}

/// Keeps a connection within this host from being paced, as a host whose connections are (bbr) would do
/// it: that only costs CPU time. What was connected before this still has the timers.
fn leave_unpaced(fd: &OwnedFd, peer: SocketAddr) {
    if peer.ip().is_loopback() {
        // Every kernel has reno.
        let _ = sockopt::set_tcp_congestion(fd, "reno");
    }
}

impl Connection for SocketConnection {
    fn send_pieces(&self, bytes: &[u8], pieces: &[Piece<'_>]) -> io::Result<()> {
        let fd = self.fd.as_fd();
        let mut rest = pieces;
        while let Some((stretch, after)) = stretch::next(rest) {
            let pipe = match stretch.referenced.is_empty() {
                true => None,
                false => self.pipe(),
            };
            let Some(pipe) = pipe else {
                // The last stretch, or no pipe, of which all the rest is copied at once.
                return send_all(fd, bytes, rest, Then::End);
            };
            send_all(fd, bytes, stretch.copied, Then::More)?;
            let then = match after.is_empty() {
                true => Then::End,
                false => Then::More,
            };
            pipe.send_all(fd, stretch.referenced, then)?;
            rest = after;
        }
        Ok(())
    }

    fn receive_pieces(&self, bytes: &mut [u8], pieces: &[Piece<'_>]) -> io::Result<()> {
        receive_all(self.fd.as_fd(), bytes, pieces)
    }

    fn send_within(&self, bytes: &[u8], within: Within) -> io::Result<()> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        self.bit_by_bit(bytes.len(), PollFlags::OUT, within, |done| {
            Ok(rustix::net::send(&self.fd, &bytes[done..], flags)?)
        })
    }

    fn receive_within(&self, bytes: &mut [u8], within: Within) -> io::Result<()> {
        self.bit_by_bit(
            bytes.len(),
            PollFlags::IN,
            within,
            |done| match rustix::net::recv(&self.fd, &mut bytes[done..], RecvFlags::DONTWAIT)? {
                (_, 0) => Err(io::ErrorKind::UnexpectedEof.into()),
                (_, got) => Ok(got),
            },
        )
    }

    fn wait_readable(&self, timeout: Duration) -> io::Result<bool> {
        wait(self.fd.as_fd(), PollFlags::IN, timeout)
    }

    fn set_io_timeout(&self, timeout: Duration) -> io::Result<()> {
        let timeout = Some(timeout.max(Duration::from_millis(1)));
        sockopt::set_socket_timeout(&self.fd, sockopt::Timeout::Send, timeout)?;
        sockopt::set_socket_timeout(&self.fd, sockopt::Timeout::Recv, timeout)?;
        if sockopt::socket_domain(&self.fd)? != AddressFamily::UNIX {
            // Data that the peer's host does not acknowledge ends the connection as soon, also when
            // it only lies in the kernel's buffer.
            let ms = timeout.map_or(0, |t| u32::try_from(t.as_millis()).unwrap_or(u32::MAX));
            sockopt::set_tcp_user_timeout(&self.fd, ms)?;
        }
        Ok(())
    }

    fn shutdown(&self) {
        // Fails only when it is closed already.
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both);
    }

    fn remote(&self) -> RemoteHost {
        if let Ok(AddressFamily::UNIX) = sockopt::socket_domain(&self.fd) {
            return RemoteHost::Here;
        }
        let peer = rustix::net::getpeername(&self.fd).ok().flatten();
        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
        peer.map_or(RemoteHost::Unknown, RemoteHost::from)
    }
}

/// Whether a socket that seemed ready was not, or the call was interrupted.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, WouldBlock};
    matches!(error.kind(), Interrupted | WouldBlock)
}

fn wait(fd: BorrowedFd<'_>, flags: PollFlags, timeout: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(timeout).map_err(|_| io::ErrorKind::InvalidInput)?;
    match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Connects to a TCP or unix address.
pub struct SocketConnect {
    to: Endpoint,
}

impl SocketConnect {
    /// A connector for `to`.
    ///
    /// # Errors
    /// For `fd:N`, which can only listen: a migration needs several connections.
    pub fn new(to: Endpoint) -> io::Result<Self> {
        if matches!(to.address(), Address::Fd(_)) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "an fd address can only listen",
            ));
        }
        Ok(Self { to })
    }
}

impl Connect for SocketConnect {
    fn connect(&self, patience: Patience<'_>) -> io::Result<Box<dyn Connection>> {
        let fd = match self.to.address() {
            Address::Unix(path) => {
                let fd = rustix::net::socket_with(
                    AddressFamily::UNIX,
                    SocketType::STREAM,
                    SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                    None,
                )?;
                let to = SocketAddrUnix::new(path.as_path())?;
                connect_within(fd, patience, |fd| rustix::net::connect(fd, &to))?
            }
            Address::Tcp { .. } => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                let mut connected = None;
                for to in self.to.sockets() {
                    let fd = tcp_socket(*to)?;
                    match connect_within(fd, patience, |fd| rustix::net::connect(fd, to)) {
                        Ok(fd) => {
                            connected = Some(fd);
                            break;
                        }
                        Err(error) => last = error,
                    }
                }
                connected.ok_or(last)?
            }
            Address::Fd(_) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok(Box::new(SocketConnection::new(fd)?))
    }

    fn address(&self) -> String {
        self.to.to_string()
    }

    fn is_within_host(&self) -> bool {
        self.to.is_loopback()
    }
}

fn connect_within(
    fd: OwnedFd,
    patience: Patience<'_>,
    connect: impl Fn(&OwnedFd) -> rustix::io::Result<()>,
) -> io::Result<OwnedFd> {
    let deadline = Instant::now() + patience.timeout;
    loop {
        if (patience.give_up)() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match connect(&fd) {
            Ok(()) | Err(Errno::ISCONN) => return Ok(fd),
            Err(Errno::INPROGRESS | Errno::ALREADY) => {
                if wait(fd.as_fd(), PollFlags::OUT, SLICE)? {
                    sockopt::socket_error(&fd)??;
                    return Ok(fd);
                }
            }
            // A unix listener whose queue is full.
            Err(Errno::AGAIN) => std::thread::sleep(SLICE),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// Listens on a TCP or unix address, or on an inherited socket.
pub struct SocketListen {
    fd: OwnedFd,
    address: String,
    socket_file: Option<SocketFile>,
}

/// The file of a unix socket that we bound, removed with it if it is still ours.
struct SocketFile {
    path: PathBuf,
    /// Device and inode; `None` where they could not be told.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            identity: identity(path),
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let meta = path.symlink_metadata().ok()?;
    Some((meta.dev(), meta.ino()))
}

impl SocketListen {
    /// Listens on a TCP or unix address. A socket file left behind by a dead process is replaced.
    ///
    /// # Errors
    /// When the address is in use or not ours; for `fd:N`, which
    /// [`SocketListen::from_fd`] takes.
    pub fn bind(at: &Endpoint) -> io::Result<Self> {
        match at.address() {
            Address::Tcp { .. } => {
                let listener = TcpListener::bind(at.sockets())?;
                let address = listener.local_addr()?.to_string();
                Self::set_up(listener.into(), address, None)
            }
            Address::Unix(path) => {
                remove_stale(path)?;
                let listener = UnixListener::bind(path)?;
                let file = SocketFile::at(path);
                Self::set_up(listener.into(), at.to_string(), Some(file))
            }
            Address::Fd(_) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "an inherited socket is taken over by its descriptor",
            )),
        }
    }

    /// Takes over an inherited socket that listens already.
    ///
    /// # Errors
    /// When it is no listening stream socket.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        if sockopt::socket_type(&fd)? != SocketType::STREAM || !sockopt::socket_acceptconn(&fd)? {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the inherited descriptor is no listening stream socket",
            ));
        }
        let name = rustix::net::getsockname(&fd)?;
        let address = match (
            SocketAddr::try_from(name.clone()),
            SocketAddrUnix::try_from(name),
        ) {
            (Ok(tcp), _) => tcp.to_string(),
            (_, Ok(unix)) => format!(
                "unix:{}",
                unix.path()
                    .map(|p| p.to_string_lossy().into_owned())
                    .unwrap_or_default()
            ),
            _ => "inherited socket".to_owned(),
        };
        Self::set_up(fd, address, None)
    }

    fn set_up(fd: OwnedFd, address: String, socket_file: Option<SocketFile>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self {
            fd,
            address,
            socket_file,
        })
    }
}

/// Removes a socket on which nobody listens. Any other answer is one of somebody, or of the kernel about a
/// socket that is not for us.
fn remove_stale(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let is_socket = path
        .symlink_metadata()
        .is_ok_and(|meta| meta.file_type().is_socket());
    let refused = |e: io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err_and(refused) {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

impl Listen for SocketListen {
    fn accept(&self, timeout: Duration) -> io::Result<Option<Box<dyn Connection>>> {
        if !wait(self.fd.as_fd(), PollFlags::IN, timeout)? {
            return Ok(None);
        }
        match rustix::net::accept_with(&self.fd, SocketFlags::CLOEXEC) {
            Ok(fd) => Ok(SocketConnection::new(fd).ok().map(|c| Box::new(c) as _)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED | Errno::PROTO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn address(&self) -> String {
        self.address.clone()
    }
}

impl Drop for SocketListen {
    fn drop(&mut self) {
        // Someone else may have removed it, and may listen there now.
        if let Some(file) = &self.socket_file
            && file.identity.is_some()
            && identity(&file.path) == file.identity
        {
            let _ = std::fs::remove_file(&file.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    fn bind(path: &Path) -> io::Result<SocketListen> {
        let at = Endpoint::numeric(Address::Unix(path.to_owned())).unwrap();
        SocketListen::bind(&at)
    }

    #[test]
    fn only_a_socket_on_which_nobody_listens_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _datagrams = UnixDatagram::bind(&path).unwrap();
        assert!(bind(&path).is_err());
        assert!(path.exists());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "text").unwrap();
        assert!(bind(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"text");
        std::fs::remove_file(&path).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(bind(&path).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_took_the_place_of_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let ours = bind(&path).unwrap();
        // Both exist for a moment, so they have not the same inode.
        let other = dir.path().join("other");
        let _theirs = UnixListener::bind(&other).unwrap();
        std::fs::rename(&other, &path).unwrap();
        drop(ours);
        assert!(path.exists());
    }
}
