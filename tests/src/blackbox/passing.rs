//! A client that passes files to a VM, well or ill.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, sendmsg, socket_with,
};
use serde_json::{Value, json};

use super::vms::Vms;
use super::wait::PATIENCE;
use crate::Host;

/// Descriptors that the kernel sends at once (`SCM_MAX_FD`).
pub const MOST: usize = 253;

/// A connection to where files are passed.
#[derive(Debug)]
pub struct Passing(OwnedFd);

impl Passing {
    /// Connects to that of `vm`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn to(host: &Host, vm: &str) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        connect(
            &socket,
            &SocketAddrUnix::new(host.folder(vm).join("files.sock"))?,
        )?;
        Ok(Self(socket))
    }

    /// Says `text` with `descriptors`, 253 at most.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn say(&self, text: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !rights.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sendmsg(
            &self.0,
            &[IoSlice::new(text)],
            &mut rights,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// The next answer; `None` after the last.
    ///
    /// # Panics
    /// When there is none within [`PATIENCE`], or it is no JSON.
    #[track_caller]
    pub fn answer(&self) -> Option<Value> {
        let patience = Timespec {
            tv_sec: PATIENCE.as_secs().cast_signed(),
            tv_nsec: 0,
        };
        let mut ready = [PollFd::new(&self.0, PollFlags::IN)];
        assert_eq!(
            poll(&mut ready, Some(&patience)),
            Ok(1),
            "nothing is answered"
        );
        let mut text = vec![0; 64 << 10];
        match recv(&self.0, &mut text, RecvFlags::empty()) {
            Ok((0, _)) | Err(_) => None,
            Ok((length, _)) => Some(serde_json::from_slice(&text[..length]).expect("JSON")),
        }
    }

    /// Says `text` with `descriptors`, and is answered.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn ask(&self, text: &[u8], descriptors: &[BorrowedFd<'_>]) -> Value {
        self.say(text, descriptors).expect("the VM listens");
        self.answer().expect("an answer")
    }
}

/// What is said with `count` files for disks, opened for `access`.
pub fn told(count: usize, access: &str) -> Vec<u8> {
    let note = json!({"kind": "disk", "access": access, "name": "a disk"});
    json!({"version": 1, "files": vec![note; count]})
        .to_string()
        .into_bytes()
}

/// Makes a request at the control socket of a VM: the status code, and what is answered.
///
/// # Panics
/// When it is not answered.
#[track_caller]
pub fn request(host: &Host, vm: &str, line: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(host.folder(vm).join("control.sock")).expect("a VM");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let head = format!("{line} HTTP/1.1\r\nhost: vmm\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("the VM listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let _ = stream.shutdown(Shutdown::Both);
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    (
        status.expect("a status code"),
        serde_json::from_str(body).expect("JSON"),
    )
}
