use super::*;
use std::sync::mpsc;

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
    hub.set_input(Box::new(move |bytes| keys.send(bytes.to_vec()).unwrap()));
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
