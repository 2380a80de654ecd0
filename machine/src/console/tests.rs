use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;

use super::*;

const LIMIT: Duration = Duration::from_secs(10);

fn hub_with_socket(dir: &std::path::Path) -> (ConsoleHub, std::path::PathBuf) {
    let path = dir.join("c.sock");
    let hub = ConsoleHub::start(ConsoleOutputs {
        log: Some(RotatingFile::create(&dir.join("serial.log"), SERIAL_LOG_LIMIT).unwrap()),
        listener: Some(UnixListener::bind(&path).unwrap()),
        stdout: None,
    })
    .unwrap();
    (hub, path)
}

fn viewer(path: &std::path::Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

#[test]
fn output_reaches_the_log_and_viewers_and_keys_the_guest() {
    let temp = tempfile::tempdir().unwrap();
    let (hub, path) = hub_with_socket(temp.path());
    let (keys, typed) = mpsc::channel();
    hub.set_input(Box::new(move |bytes| {
        keys.send(bytes.to_vec()).unwrap();
        bytes.len()
    }));
    let mut writer = hub.writer();
    writer.write_all(b"before\n").unwrap();
    hub.flush(LIMIT);
    let mut viewer = viewer(&path);
    let mut seen = [0; 7];
    viewer.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"before\n");
    for byte in b"after\n" {
        writer.write_all(&[*byte]).unwrap();
    }
    let mut seen = [0; 6];
    viewer.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"after\n");
    viewer.write_all(b"ls\n").unwrap();
    assert_eq!(typed.recv_timeout(LIMIT).unwrap(), b"ls\n");
    hub.flush(LIMIT);
    assert_eq!(
        std::fs::read(temp.path().join("serial.log")).unwrap(),
        b"before\nafter\n"
    );
    hub.close();
}

#[test]
fn keys_of_one_who_leaves_at_once_reach_the_guest() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, path) = hub_with_socket(dir.path());
    let (keys, typed) = mpsc::channel();
    hub.set_input(Box::new(move |bytes| {
        let _ = keys.send(bytes.to_vec());
        bytes.len()
    }));
    hub.write(b"something to show\n");
    for _ in 0..20 {
        viewer(&path).write_all(b"q").unwrap();
        let key = typed.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(key, b"q");
    }
}

#[test]
fn a_viewer_that_does_not_read_is_dropped_and_blocks_nobody() {
    let temp = tempfile::tempdir().unwrap();
    let (hub, path) = hub_with_socket(temp.path());
    let mut stuck = viewer(&path);
    hub.write(b"hello\n");
    stuck.read_exact(&mut [0; 6]).unwrap();
    let chunk = [b'x'; 1024];
    let mut written = 6;
    for _ in 0..2048 {
        hub.write(&chunk);
        hub.write(b"\n");
        written += 1025;
        hub.flush(LIMIT);
    }
    assert_eq!(
        std::fs::metadata(temp.path().join("serial.log"))
            .unwrap()
            .len(),
        written
    );
    let mut rest = Vec::new();
    stuck.read_to_end(&mut rest).unwrap();
    assert!((rest.len() as u64) < written);
    let mut fresh = viewer(&path);
    assert!(fresh.read(&mut [0; 64]).unwrap() > 0);
    hub.close();
}

#[test]
fn standard_output_that_is_not_read_blocks_nobody() {
    let (reader, pipe) = rustix::pipe::pipe().unwrap();
    let hub = ConsoleHub::start(ConsoleOutputs {
        stdout: Some(pipe),
        ..Default::default()
    })
    .unwrap();
    for _ in 0..4096 {
        hub.write(&[b'y'; 1024]);
    }
    hub.flush(Duration::from_millis(1));
    let mut byte = [0];
    assert_eq!(rustix::io::read(&reader, &mut byte), Ok(1));
    drop(reader);
    hub.flush(LIMIT);
    hub.close();
}

/// A guest that takes keys only when a test lets it.
#[derive(Clone, Default)]
struct Slow(Arc<Mutex<(Vec<u8>, usize)>>);

impl Slow {
    fn at(hub: &ConsoleHub) -> Self {
        let slow = Self::default();
        let guest = slow.clone();
        hub.set_input(Box::new(move |keys| {
            let (read, room) = &mut *guest.0.lock().unwrap();
            let taken = keys.len().min(*room);
            *room -= taken;
            read.extend_from_slice(&keys[..taken]);
            taken
        }));
        slow
    }

    /// The guest reads so much more; what it has read once that is so much in all.
    fn reads(&self, hub: &ConsoleHub, more: usize, all: usize) -> Vec<u8> {
        self.0.lock().unwrap().1 += more;
        (hub.room_notifier())();
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            let read = self.0.lock().unwrap().0.clone();
            if read.len() >= all {
                return read;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "{} of {all}",
                read.len()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn keys(count: usize, from: u8) -> Vec<u8> {
    (0..count)
        .map(|n| from.wrapping_add((n % 251) as u8))
        .collect()
}

#[test]
fn keys_that_the_guest_does_not_take_stay_with_who_types() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, path) = hub_with_socket(dir.path());
    let guest = Slow::at(&hub);
    let typed = keys(1 << 20, 7);
    let mut typist = viewer(&path);
    typist.set_nonblocking(true).unwrap();
    let mut written = 0;
    // Until no more is taken in, which is long before all of it.
    let mut refusals = 0;
    while refusals < 100 && written < typed.len() {
        match typist.write(&typed[written..]) {
            Ok(n) => written += n,
            Err(e) => {
                assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
                refusals += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    assert!(
        written < typed.len(),
        "{written} bytes are kept for a guest that reads nothing"
    );
    typist.set_nonblocking(false).unwrap();
    let (rest, all) = (typed[written..].to_vec(), typed.len());
    // The last keys of one who does not wait for them to be read count, too.
    let typing = std::thread::spawn(move || typist.write_all(&rest).unwrap());
    let mut read = Vec::new();
    for part in 1..=8 {
        read = guest.reads(&hub, all / 8, part * all / 8);
    }
    typing.join().unwrap();
    assert!(read == typed);
    hub.close();
}

#[test]
fn keys_of_this_terminal_wait_and_those_of_others_do_not_wait_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, path) = hub_with_socket(dir.path());
    let guest = Slow::at(&hub);
    let typed = keys(TYPED_LIMIT + 5000, 3);
    let typing = std::thread::spawn({
        let (hub, typed) = (hub.clone(), typed.clone());
        move || hub.send_input(&typed)
    });
    let all = typed.len();
    assert!(guest.reads(&hub, all, all) == typed);
    typing.join().unwrap();
    viewer(&path).write_all(b"x").unwrap();
    assert_eq!(guest.reads(&hub, 1, all + 1).last(), Some(&b'x'));
    // Nobody waits for a console that is closed.
    let typing = std::thread::spawn({
        let (hub, typed) = (hub.clone(), typed);
        move || hub.send_input(&typed)
    });
    hub.close();
    typing.join().unwrap();
}

#[test]
fn one_who_has_left_keys_that_are_not_taken_keeps_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, path) = hub_with_socket(dir.path());
    hub.write(b"hello");
    hub.flush(LIMIT);
    let guest = Slow::at(&hub);
    for _ in 0..40 {
        viewer(&path).write_all(b"lost").unwrap();
    }
    let mut seen = [0; 5];
    let mut present = viewer(&path);
    present.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"hello");
    drop(guest);
    hub.close();
}
