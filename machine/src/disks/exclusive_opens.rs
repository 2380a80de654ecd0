//! The exclusive opens of the block devices of a machine, as they are passed on to a successor on the same host.
//!
//! An exclusive open is a descriptor, so it passes only between processes of one host: the source listens at an
//! abstract socket, whose random name it tells with its disks' places, and gives copies to whoever
//! connects as the same user while the disks are offered. The kernel lets go of a device when the last
//! copy is closed, and until then one of the two has one.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use block::ExclusiveOpen;
use control::peer::is_of;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use rustix::process::Uid;

use crate::build::spec::MAX_PLUGGED;
use crate::opener;
use crate::threads::{self, ThreadKind};

/// How long a successor waits to be given the exclusive opens.
const PATIENCE: Duration = Duration::from_secs(2);
/// Random bytes in the name of a socket.
const NAME_LEN: usize = 16;

/// The exclusive opens of a machine.
#[derive(Debug, Default)]
pub(crate) struct ExclusiveOpens {
    kept: Arc<Mutex<Kept>>,
    hatch: Option<Hatch>,
}

#[derive(Debug, Default)]
struct Kept {
    opens: Vec<ExclusiveOpen>,
    offered: bool,
}

/// Where a successor asks.
#[derive(Debug)]
struct Hatch {
    name: String,
    /// Closed with this, a pipe ends the thread that waits there.
    _open: OwnedFd,
}

/// What the thread that waits for successors has.
struct HatchKeeper {
    listener: UnixListener,
    closing: OwnedFd,
    user: Uid,
}

impl ExclusiveOpens {
    /// Keeps `opens`, and is ready to pass them on.
    ///
    /// # Errors
    /// When no socket or thread can be had.
    pub(crate) fn new(opens: Vec<ExclusiveOpen>) -> io::Result<Self> {
        if opens.is_empty() {
            return Ok(Self::default());
        }
        let kept = Arc::new(Mutex::new(Kept {
            opens,
            offered: false,
        }));
        let (hatch, keeper) = opener::outside(open_hatch)?;
        let theirs = kept.clone();
        thread::Builder::new()
            .name("disk-holds".into())
            .spawn(move || {
                threads::begin(ThreadKind::Holder);
                keeper.serve(&theirs);
            })?;
        Ok(Self {
            kept,
            hatch: Some(hatch),
        })
    }

    /// Where a successor asks for them; `None` where there are none.
    pub(crate) fn name(&self) -> Option<&str> {
        self.hatch.as_ref().map(|hatch| hatch.name.as_str())
    }

    /// Gives copies to a successor that asks, from now on.
    pub(crate) fn offer(&self) {
        self.lock().offered = true;
    }

    /// Gives no more copies.
    pub(crate) fn withdraw(&self) {
        self.lock().offered = false;
    }

    /// Keeps one more, of a block device that becomes a disk of the machine.
    pub(crate) fn keep(&self, open: ExclusiveOpen) {
        self.lock().opens.push(open);
    }

    /// Lets go: the devices are a successor's, or nobody's.
    pub(crate) fn release(&self) {
        *self.lock() = Kept::default();
    }

    /// Lets go of block device `device`, which is no disk of the machine any more.
    pub(crate) fn release_device(&self, device: u64) {
        self.lock().opens.retain(|open| open.device() != device);
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn pass_to(&self, successor: &UnixStream, user: Uid) -> io::Result<()> {
        if !self.offered || !is_of(successor, user)? {
            return Ok(());
        }
        let copies: Vec<BorrowedFd<'_>> = self.opens.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PLUGGED))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        if !message.push(SendAncillaryMessage::ScmRights(&copies)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // A message cannot be without a byte.
        rustix::net::sendmsg(
            successor,
            &[IoSlice::new(&[0])],
            &mut message,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        )?;
        Ok(())
    }
}

impl HatchKeeper {
    /// Passes on what is kept to whoever comes, until the hatch is closed.
    fn serve(&self, kept: &Mutex<Kept>) {
        loop {
            let mut ends = [
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::new(&self.closing, PollFlags::empty()),
            ];
            match rustix::event::poll(&mut ends, None) {
                Ok(_) if ends[1].revents().is_empty() => {}
                Err(rustix::io::Errno::INTR) => continue,
                Ok(_) | Err(_) => return,
            }
            let passed = self.listener.accept().and_then(|(successor, _)| {
                let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.pass_to(&successor, self.user)
            });
            if let Err(error) = passed {
                tracing::warn!(%error, "the holds on block devices were not passed on");
            }
        }
    }
}

fn address(name: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("vmm-disk-holds-{name}"))
}

fn open_hatch() -> io::Result<(Hatch, HatchKeeper)> {
    let mut random = [0; NAME_LEN];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let name: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let listener = UnixListener::bind_addr(&address(&name)?)?;
    let (closing, open) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let keeper = HatchKeeper {
        listener,
        closing,
        user: rustix::process::geteuid(),
    };
    Ok((Hatch { name, _open: open }, keeper))
}

/// Copies of what the process that listens at `name` on this host has, and offers.
///
/// # Errors
/// When nobody of this user listens there, or does not answer.
pub(crate) fn ask(name: &str) -> io::Result<Vec<OwnedFd>> {
    // It is from a peer, and must name nothing but such a socket.
    if name.len() != 2 * NAME_LEN || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let owner = UnixStream::connect_addr(&address(name)?)?;
    if !is_of(&owner, rustix::process::geteuid())? {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    owner.set_read_timeout(Some(PATIENCE))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PLUGGED))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    rustix::net::recvmsg(
        &owner,
        &mut [IoSliceMut::new(&mut byte)],
        &mut message,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let passed = message.drain().filter_map(|part| match part {
        RecvAncillaryMessage::ScmRights(copies) => Some(copies),
        _ => None,
    });
    Ok(passed.flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_are_none_nobody_listens() {
        let opens = ExclusiveOpens::new(Vec::new()).unwrap();
        assert_eq!(opens.name(), None);
        opens.offer();
        opens.withdraw();
        opens.release();
    }

    #[test]
    fn a_peer_names_no_other_socket() {
        for name in ["", "../x", &"0".repeat(31), &"g".repeat(32)] {
            let refused = ask(name).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{name}");
        }
        assert!(ask(&"0".repeat(32)).is_err(), "nobody listens there");
    }
}
