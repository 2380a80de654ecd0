//! The socket at which files are passed, and its packets.
//!
//! The types of listeners and streams have the event loop wait for a socket of packets, too; nothing is read from them or
//! written to them but whole packets.

use std::fs::{self, Permissions};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    bind, listen, recvmsg, sendmsg, socket_with,
};
use rustix::process::Uid;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

use super::message::{FILES_LIMIT, MESSAGE_LIMIT};

/// Connections that wait to be taken in.
const BACKLOG: i32 = 128;

/// Where a VM is passed files: a unix socket of packets, mode 0600.
#[derive(Debug)]
pub struct FilesSocket {
    socket: OwnedFd,
    /// Who may connect, beside root.
    pub(super) user: Uid,
}

impl FilesSocket {
    /// Listens at `path`, for this user and root.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        listen(&socket, BACKLOG)?;
        Ok(Self {
            socket,
            user: rustix::process::geteuid(),
        })
    }

    /// On the event loop of the caller.
    pub(super) fn listener(self) -> io::Result<Listener> {
        UnixListener::from_std(self.socket.into()).map(Listener)
    }
}

/// Takes connections in.
#[derive(Debug)]
pub(super) struct Listener(UnixListener);

impl Listener {
    pub(super) async fn accept(&self) -> io::Result<Packets> {
        let (socket, _) = self.0.accept().await?;
        Ok(Packets { socket })
    }
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Packets {
    pub(super) socket: UnixStream,
}

/// A packet as it came in.
#[derive(Debug)]
pub(super) struct Packet {
    /// None for a packet without bytes, and after the last.
    pub(super) text: Vec<u8>,
    /// At most [`FILES_LIMIT`] where nothing is cut off.
    pub(super) descriptors: Vec<OwnedFd>,
    /// What was cut off.
    pub(super) cut: Cut,
}

/// What of a packet did not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// Nothing: it is whole.
    Nothing,
    /// Text (`MSG_TRUNC`).
    Text,
    /// Descriptors (`MSG_CTRUNC`), which the kernel has closed; or there is one too many.
    Descriptors,
}

impl Packets {
    /// The connection `socket`, which does not block.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        UnixStream::from_std(socket.into()).map(|socket| Self { socket })
    }

    /// The next packet.
    pub(super) async fn receive(&self) -> io::Result<Packet> {
        self.socket
            .async_io(Interest::READABLE, || receive(&self.socket))
            .await
    }

    /// Sends `text` if there is room for it at once.
    pub(super) fn send_now(&self, text: &[u8]) -> io::Result<()> {
        send(&self.socket, text, &[])
    }

    /// Sends `text` with `descriptors`, as one.
    pub(super) async fn send(&self, text: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.socket
            .async_io(Interest::WRITABLE, || send(&self.socket, text, descriptors))
            .await
    }
}

fn receive(socket: impl AsFd) -> io::Result<Packet> {
    let mut text = vec![0; MESSAGE_LIMIT];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_LIMIT))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut text)],
        &mut rights,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    text.truncate(got.bytes);
    let descriptors = rights.drain().filter_map(|part| match part {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors: Vec<_> = descriptors.flatten().collect();
    // The space for them is rounded up: one more may fit.
    let cut = if got.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > FILES_LIMIT {
        Cut::Descriptors
    } else if got.flags.contains(ReturnFlags::TRUNC) {
        Cut::Text
    } else {
        Cut::Nothing
    };
    Ok(Packet {
        text,
        descriptors,
        cut,
    })
}

fn send(socket: impl AsFd, text: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_LIMIT))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !rights.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "more descriptors than a packet can have",
        ));
    }
    sendmsg(
        socket,
        &[IoSlice::new(text)],
        &mut rights,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}
