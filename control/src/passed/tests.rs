//! Clients of all kinds against the server.

use std::fs::File;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{FdFlags, fcntl_getfd};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, sendmsg, socket_with,
};
use tokio::sync::oneshot;

use super::server::{CONNECTIONS, Patience, serve};
use super::{
    Answer, FILES_LIMIT, FileAccess, FileId, FileKind, FileNote, FilesSocket, MESSAGE_LIMIT,
    PassedFiles, Passing,
};

/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);
/// So that no test passes because a client was given up after all.
const EVER: Duration = Duration::from_secs(3600);
const PATIENT: Patience = Patience {
    first_words: EVER,
    silence: EVER,
    answer: EVER,
};

/// A server on a thread of its own.
struct Rig {
    folder: tempfile::TempDir,
    files: Arc<PassedFiles>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Rig {
    fn new(patience: Patience) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = Arc::new(PassedFiles::default());
        let (end, ended) = oneshot::channel();
        let socket = FilesSocket::bind(&folder.path().join("files.sock")).unwrap();
        let theirs = Arc::clone(&files);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                tokio::select! {
                    served = serve(socket, theirs, patience) => panic!("{served:?}"),
                    _ = ended => {}
                }
            });
        });
        Self {
            folder,
            files,
            end: Some(end),
            thread: Some(thread),
        }
    }

    fn client(&self) -> Raw {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let path = self.folder.path().join("files.sock");
        connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        Raw(socket)
    }

    fn file(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, name).unwrap();
        path
    }

    fn kept(&self) -> usize {
        self.files.list().files.len()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.end.take().unwrap().send(());
        let _ = self.thread.take().unwrap().join();
    }
}

/// A client that can say anything.
struct Raw(OwnedFd);

impl Raw {
    fn send(
        &self,
        text: &[u8],
        descriptors: &[BorrowedFd<'_>],
        flags: SendFlags,
    ) -> rustix::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_LIMIT + 1))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(rights.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        sendmsg(
            &self.0,
            &[IoSlice::new(text)],
            &mut rights,
            flags | SendFlags::NOSIGNAL,
        )
    }

    /// The next answer; `None` where the server has ended the connection.
    fn answer(&self) -> Option<Answer> {
        let mut ready = [PollFd::new(&self.0, PollFlags::IN)];
        let deadline = Timespec {
            tv_sec: DEADLINE.as_secs().cast_signed(),
            tv_nsec: 0,
        };
        assert_eq!(
            poll(&mut ready, Some(&deadline)),
            Ok(1),
            "nothing is answered"
        );
        let mut text = vec![0; MESSAGE_LIMIT];
        match recv(&self.0, &mut text, RecvFlags::empty()) {
            Ok((0, _)) | Err(rustix::io::Errno::CONNRESET) => None,
            read => Some(serde_json::from_slice(&text[..read.unwrap().0]).unwrap()),
        }
    }

    fn says(&self, text: &[u8], descriptors: &[BorrowedFd<'_>]) -> Option<Answer> {
        self.send(text, descriptors, SendFlags::empty()).unwrap();
        self.answer()
    }

    fn passes(&self, files: &[&File]) -> Vec<FileId> {
        let descriptors: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        match self.says(&text(files.len()), &descriptors) {
            Some(Answer::Kept(ids)) => ids,
            other => panic!("{other:?}"),
        }
    }

    fn is_ended(&self) -> bool {
        self.answer().is_none()
    }
}

/// A message that is right for so many files that can be read.
fn text(count: usize) -> Vec<u8> {
    let note = FileNote {
        kind: FileKind::Disk,
        access: FileAccess::Read,
        name: "it".into(),
    };
    serde_json::to_vec(&Passing::new(vec![note; count])).unwrap()
}

fn refusal(answer: Option<Answer>) -> String {
    match answer {
        Some(Answer::Refused(why)) => why.id,
        other => panic!("{other:?}"),
    }
}

/// Whoever has the writing ends of a pipe closes all of them.
fn is_let_go(mut reading: std::io::PipeReader) {
    let mut ready = [PollFd::new(&reading, PollFlags::IN)];
    let deadline = Timespec {
        tv_sec: DEADLINE.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    assert_eq!(
        poll(&mut ready, Some(&deadline)),
        Ok(1),
        "the descriptor stays open"
    );
    assert_eq!(reading.read(&mut [0]).unwrap(), 0);
}

/// Opens a file so that it can be known when nobody has it open any more.
fn marked(path: &Path) -> File {
    let file = File::open(path).unwrap();
    flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    file
}

fn is_closed(path: &Path) {
    let other = File::open(path).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while flock(&other, FlockOperation::NonBlockingLockExclusive).is_err() {
        assert!(Instant::now() < deadline, "the file stays open");
        std::thread::yield_now();
    }
}

#[test]
fn passed_files_are_taken_by_their_identifiers() {
    let rig = Rig::new(PATIENT);
    let client = rig.client();
    let (one, other) = (
        File::open(rig.file("one")).unwrap(),
        File::open(rig.file("other")).unwrap(),
    );
    let ids = client.passes(&[&one, &other]);
    let third = client.passes(&[&one]);
    assert_eq!((ids.len(), third.len(), rig.kept()), (2, 1, 3));
    let taken = rig
        .files
        .claim(ids[1], FileKind::Disk, FileAccess::Read)
        .unwrap();
    assert_eq!(fcntl_getfd(&taken.descriptor).unwrap(), FdFlags::CLOEXEC);
    let taken = File::from(taken.descriptor);
    assert_eq!(
        taken.metadata().unwrap().ino(),
        other.metadata().unwrap().ino()
    );
    // What was taken is not the connection's any more.
    drop(client);
    let deadline = Instant::now() + DEADLINE;
    while rig.kept() > 0 {
        assert!(
            Instant::now() < deadline,
            "files of a client that is gone are kept"
        );
        std::thread::yield_now();
    }
    let mut read = String::new();
    (&taken).read_to_string(&mut read).unwrap();
    assert_eq!(read, "other");
}

#[test]
fn what_nobody_has_taken_is_closed_when_its_client_parts() {
    let rig = Rig::new(PATIENT);
    let path = rig.file("one");
    let client = rig.client();
    let _ = client.passes(&[&marked(&path)]);
    assert_eq!(rig.kept(), 1);
    drop(client);
    is_closed(&path);
    // One that parts before it has heard an answer.
    let client = rig.client();
    client
        .send(&text(1), &[marked(&path).as_fd()], SendFlags::empty())
        .unwrap();
    drop(client);
    is_closed(&path);
    assert_eq!(rig.kept(), 0);
}

#[test]
fn what_is_refused_is_closed_and_the_next_is_taken() {
    let rig = Rig::new(PATIENT);
    let client = rig.client();
    let file = File::open(rig.file("one")).unwrap();
    let many = FILES_LIMIT + 1;
    let long = vec![b' '; MESSAGE_LIMIT + 1];
    let later = br#"{"version":2}"#;
    for (said, count, id) in [
        (&text(1)[..], 1, "file.type"),
        (&text(2), 1, "file.message"),
        (&text(1), 2, "file.message"),
        (&text(1), 0, "file.message"),
        (&text(many), many, "file.too-many"),
        (&text(FILES_LIMIT), many, "file.too-many"),
        (b"{", 1, "file.message"),
        (&later[..], 1, "file.version"),
        (&long, 1, "file.message"),
        (&long, many, "file.too-many"),
    ] {
        let (reading, writing) = std::io::pipe().unwrap();
        let copies: Vec<_> = (0..count).map(|_| writing.as_fd()).collect();
        assert_eq!(refusal(client.says(said, &copies)), id, "{count}");
        drop(writing);
        is_let_go(reading);
        assert_eq!(client.passes(&[&file]).len(), 1);
    }
    // All of a packet or nothing.
    let (reading, writing) = std::io::pipe().unwrap();
    let before = rig.kept();
    let answer = client.says(&text(2), &[file.as_fd(), writing.as_fd()]);
    assert_eq!(refusal(answer), "file.type");
    drop(writing);
    is_let_go(reading);
    assert_eq!(rig.kept(), before);
}

#[test]
fn a_packet_without_a_word_ends_the_connection() {
    let rig = Rig::new(PATIENT);
    let client = rig.client();
    let path = rig.file("one");
    let _ = client.passes(&[&marked(&path)]);
    let (reading, writing) = std::io::pipe().unwrap();
    client
        .send(&[], &[writing.as_fd()], SendFlags::empty())
        .unwrap();
    drop(writing);
    assert!(client.is_ended());
    is_let_go(reading);
    is_closed(&path);
}

#[test]
fn who_says_nothing_is_not_waited_for() {
    let soon = Duration::from_millis(1);
    let rig = Rig::new(Patience {
        first_words: soon,
        ..PATIENT
    });
    assert!(rig.client().is_ended());
    let rig = Rig::new(Patience {
        silence: soon,
        ..PATIENT
    });
    let path = rig.file("one");
    let client = rig.client();
    let _ = client.passes(&[&marked(&path)]);
    assert!(client.is_ended());
    is_closed(&path);
}

#[test]
fn who_does_not_listen_to_answers_is_left() {
    let rig = Rig::new(Patience {
        answer: Duration::from_millis(1),
        ..PATIENT
    });
    let client = rig.client();
    let deadline = Instant::now() + DEADLINE;
    let ended = loop {
        match client.send(b"{", &[], SendFlags::DONTWAIT) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
            Err(e) => break e,
        }
        assert!(Instant::now() < deadline, "it is waited for");
        std::thread::yield_now();
    };
    assert!(
        matches!(
            ended,
            rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET
        ),
        "{ended}"
    );
}

#[test]
fn the_silent_keep_nobody_out() {
    let rig = Rig::new(PATIENT);
    let silent: Vec<_> = (0..20 * CONNECTIONS).map(|_| rig.client()).collect();
    let file = File::open(rig.file("one")).unwrap();
    assert_eq!(rig.client().passes(&[&file]).len(), 1);
    assert!(silent[0].is_ended());
}

#[test]
fn who_finds_no_place_is_told() {
    let rig = Rig::new(PATIENT);
    let file = File::open(rig.file("one")).unwrap();
    let mut busy: Vec<_> = (0..CONNECTIONS).map(|_| rig.client()).collect();
    for client in &busy {
        let _ = client.passes(&[&file]);
    }
    let late = rig.client();
    assert_eq!(refusal(late.answer()), "api.busy");
    assert!(late.is_ended());
    assert_eq!(
        busy.pop().unwrap().passes(&[&file]).len(),
        1,
        "the others stay"
    );
    // The place is free once all that was passed there is closed.
    let deadline = Instant::now() + DEADLINE;
    loop {
        let next = rig.client();
        // It may be turned away before it has said anything.
        let _ = next.send(&text(1), &[file.as_fd()], SendFlags::empty());
        if matches!(next.answer(), Some(Answer::Kept(_))) {
            break;
        }
        assert!(Instant::now() < deadline, "there is no place again");
    }
}

#[test]
fn so_many_files_wait_and_no_more() {
    let rig = Rig::new(PATIENT);
    let client = rig.client();
    let file = File::open(rig.file("one")).unwrap();
    let eight = [&file; FILES_LIMIT];
    while rig.kept() < 32 {
        assert_eq!(client.passes(&eight).len(), FILES_LIMIT);
    }
    let refused = client.says(&text(1), &[file.as_fd()]);
    assert_eq!(refusal(refused), "file.too-many");
    let id = rig.files.list().files[0].id;
    drop(rig.files.let_go(id).unwrap());
    assert_eq!(client.passes(&[&file]).len(), 1);
}
