//! A throttled disk holds up what is over its limits, by parking it, and nothing else.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use block::throttle::{Limits, Throttle};
use block::{
    Access, Action, Backend, BlockDevice, Buffer, Content, Durability, Error, Job, Pool, RawImage,
    Submitter,
};
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(20);

fn throttled(dir: &TempDir, limits: Limits) -> (Arc<Throttle>, Receiver<()>) {
    let path = dir.path().join("disk");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let image = RawImage::open(&path, Access::ReadWrite, Content::Raw).unwrap();
    let disk = Throttle::new(Arc::new(image), limits, || {}).unwrap();
    let (tell, told) = channel();
    let tell = std::sync::Mutex::new(tell);
    disk.tell_arrivals(Arc::new(move || {
        // Nobody may be listening any more.
        let _ = tell.lock().unwrap().send(());
    }));
    (Arc::new(disk), told)
}

/// None of any kind.
const NOTHING: Limits = Limits {
    bytes: None,
    requests: Some(0),
    writes: None,
};

fn write(disk: &dyn BlockDevice, len: usize) -> block::Result<()> {
    let mut bytes = vec![1; len];
    disk.write(&[Buffer::new(&mut bytes)], 0, Durability::Flushed)
}

/// Writes until it may not any more.
fn exhaust(disk: &dyn BlockDevice) {
    for _ in 0..1000 {
        if let Err(error) = write(disk, 512) {
            assert!(matches!(error, Error::Throttled { .. }), "{error}");
            assert!(error.is_for_now());
            return;
        }
    }
    panic!("no limit");
}

#[test]
fn whatever_is_over_a_limit_is_told_when_it_may_come_again() {
    for (bytes, requests, writes) in [
        (Some(512 << 10), None, None),
        (None, Some(100), None),
        (None, None, Some(512 << 10)),
    ] {
        let dir = TempDir::new().unwrap();
        let limits = Limits {
            bytes,
            requests,
            writes,
        };
        let (disk, told) = throttled(&dir, limits);
        for _ in 0..5 {
            exhaust(&*disk);
            disk.flush().unwrap();
            told.recv_timeout(LONG).unwrap();
            write(&*disk, 512).unwrap();
        }
    }
}

#[test]
fn no_more_gets_through_than_the_rate_lets() {
    let dir = TempDir::new().unwrap();
    let (disk, _told) = throttled(
        &dir,
        Limits {
            bytes: Some(1 << 20),
            ..Limits::default()
        },
    );
    let (began, mut written) = (Instant::now(), 0);
    while written < 400 << 10 {
        assert!(disk.wait(LONG));
        if write(&*disk, 16 << 10).is_ok() {
            written += 16 << 10;
        }
    }
    // All but a tenth of a second's and the last one.
    assert!(began.elapsed() >= Duration::from_millis(250), "too fast");
}

#[test]
fn limits_are_changed_and_taken_away_while_requests_wait() {
    let dir = TempDir::new().unwrap();
    let (disk, told) = throttled(&dir, NOTHING);
    exhaust(&*disk);
    assert!(!disk.wait(Duration::from_millis(5)));
    assert!(told.try_recv().is_err());
    disk.set_limits(Limits::default());
    told.recv_timeout(LONG).unwrap();
    write(&*disk, 512).unwrap();
    disk.set_limits(NOTHING);
    exhaust(&*disk);
    let waiting = std::thread::spawn({
        let disk = disk.clone();
        move || disk.wait(LONG)
    });
    disk.release();
    told.recv_timeout(LONG).unwrap();
    assert!(waiting.join().unwrap());
    for _ in 0..1000 {
        write(&*disk, 512).unwrap();
    }
}

#[test]
fn a_limit_on_writes_holds_up_no_read_and_counts_no_write_that_is_put_off_below() {
    let dir = TempDir::new().unwrap();
    let writes = |rate| Limits {
        writes: Some(rate),
        ..Limits::default()
    };
    let (disk, _told) = throttled(&dir, writes(0));
    exhaust(&*disk);
    let mut bytes = [0; 512];
    for _ in 0..1000 {
        disk.read(&[Buffer::new(&mut bytes)], 0).unwrap();
    }
    // Whoever is held up by the layer below comes again, and again.
    let (below, _told) = throttled(&dir, NOTHING);
    exhaust(&*below);
    let over = Throttle::new(below.clone(), writes(1), || {}).unwrap();
    for _ in 0..1000 {
        write(&over, 512).unwrap_err();
    }
    below.set_limits(Limits::default());
    write(&over, 512).unwrap();
    write(&over, 512).unwrap_err();
}

/// A request that says how it ended, or that it was parked.
struct Request(Action, std::sync::mpsc::Sender<&'static str>);

impl Job for Request {
    fn action(&self) -> Action {
        self.0
    }

    fn buffers(&self) -> &[Buffer<'_>] {
        &[]
    }

    fn complete(self: Box<Self>, result: block::Result<()>) {
        let ended = if result.is_ok() { "done" } else { "failed" };
        self.1.send(ended).unwrap();
    }

    fn park(self: Box<Self>) {
        self.1.send("parked").unwrap();
    }
}

#[test]
fn any_number_that_waits_holds_up_no_flush() {
    let dir = TempDir::new().unwrap();
    let (disk, _told) = throttled(&dir, NOTHING);
    exhaust(&*disk);
    let pool = Pool::new(disk, || {}).unwrap();
    let (tell, told) = channel();
    let submit = |action| {
        pool.submit(Box::new(Request(action, tell.clone())), Submitter::Hurried);
        told.recv_timeout(LONG).unwrap()
    };
    let discard = Action::Discard {
        offset: 0,
        len: 512,
    };
    for _ in 0..20 {
        assert_eq!(submit(discard), "parked");
    }
    assert_eq!(submit(Action::Flush), "done");
}
