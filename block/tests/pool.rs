//! A pool carries requests out side by side, and those that overlap in their order.

mod requests;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use block::fault::{Effect, Fault, FaultLayer, Operation};
use block::pool::THREADS;
use block::{Action, Backend, BlockDevice, Buffer, Durability, Job, Pool, Submitter};
use requests::{Ends, LIMIT, Request, open};
use tempfile::TempDir;

struct Disk {
    _dir: TempDir,
    faults: Arc<FaultLayer>,
    pool: Pool,
    ends: Ends<&'static str>,
}

impl Disk {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("disk.raw");
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let faults = Arc::new(FaultLayer::new(open(&path)));
        let pool = Pool::new(faults.clone(), || {}).unwrap();
        Self {
            _dir: dir,
            faults,
            pool,
            ends: Ends::new(),
        }
    }

    fn plan(&self, operation: Operation, times: u64, effect: Effect) {
        self.faults.inject(Fault {
            operation,
            skip: 0,
            times,
            effect,
        });
    }

    /// A request whose memory of 512 bytes, if it takes any, holds `byte`.
    fn request(&self, name: &'static str, action: Action, byte: u8) -> Box<Request<&'static str>> {
        let len = match action {
            Action::Read { .. } | Action::Write { .. } => 512,
            _ => 0,
        };
        self.ends.request(name, action, &vec![byte; len], 0)
    }

    fn write(&self, name: &'static str, offset: u64, byte: u8) {
        let durability = Durability::Flushed;
        let request = self.request(name, Action::Write { offset, durability }, byte);
        self.pool.submit(request, Submitter::Hurried);
    }

    fn read(&self, name: &'static str, offset: u64) {
        let request = self.request(name, Action::Read { offset }, 0xff);
        self.pool.submit(request, Submitter::Hurried);
    }

    fn end(&self) -> (&'static str, Option<u8>) {
        self.ends.end().first()
    }

    fn wait_hanging(&self, count: usize) {
        let deadline = Instant::now() + LIMIT;
        while self.faults.hanging() != count {
            assert!(Instant::now() < deadline, "{count} do not hang");
            std::thread::yield_now();
        }
    }
}

#[test]
fn requests_that_overlap_a_change_wait_for_it_and_others_do_not() {
    let disk = Disk::new();
    disk.plan(Operation::Write, 1, Effect::Hang);
    disk.write("first", 4096, 1);
    disk.wait_hanging(1);
    disk.write("over it", 4096 + 256, 2);
    disk.read("behind both", 4096 + 511);
    disk.write("elsewhere", 8192, 3);
    assert_eq!(disk.end(), ("elsewhere", Some(3)));
    let flush = disk.request("flush", Action::Flush, 0);
    disk.pool.submit(flush, Submitter::Hurried);
    // It waits for nobody.
    assert_eq!(disk.end(), ("flush", Some(0)));
    assert!(disk.ends.is_silent());
    disk.faults.release();
    // Told in any order.
    let mut ends = [disk.end(), disk.end(), disk.end()];
    ends.sort_unstable();
    let expected = [("behind both", 2), ("first", 1), ("over it", 2)];
    assert_eq!(ends, expected.map(|(name, byte)| (name, Some(byte))));
    let mut bytes = [0; 512];
    disk.faults.read(&[Buffer::new(&mut bytes)], 4096).unwrap();
    assert!(bytes[..256] == [1; 256] && bytes[256..] == [2; 256]);
}

#[test]
fn reads_of_one_place_go_on_together_and_as_many_as_there_are_threads() {
    let disk = Disk::new();
    disk.plan(Operation::Read, THREADS as u64, Effect::Hang);
    assert!(disk.pool.has_room());
    for _ in 0..THREADS {
        disk.read("beside the others", 0);
    }
    disk.wait_hanging(THREADS);
    assert!(!disk.pool.has_room());
    // Whoever may wait carries it out itself when all threads are taken.
    let alone = disk.request("alone", Action::Read { offset: 0 }, 9);
    disk.pool.submit(alone, Submitter::Ahead);
    assert_eq!(disk.end(), ("alone", Some(0)));
    disk.faults.release();
    for _ in 0..THREADS {
        assert_eq!(disk.end(), ("beside the others", Some(0)));
    }
}

#[test]
fn what_needs_something_absent_is_parked_and_out_of_everybodys_way() {
    let disk = Disk::new();
    disk.plan(Operation::Write, 1, Effect::Absent);
    disk.write("parked", 0, 1);
    assert_eq!(disk.end(), ("parked", None));
    let arrivals = Arc::new(Mutex::new(0));
    let count = Arc::clone(&arrivals);
    let arrived = Arc::new(move || *count.lock().unwrap() += 1);
    disk.pool.disk().tell_arrivals(arrived);
    disk.write("behind it", 0, 2);
    assert_eq!(disk.end(), ("behind it", Some(2)));
    disk.faults.arrive();
    assert_eq!(*arrivals.lock().unwrap(), 1);
    disk.write("again", 0, 1);
    assert_eq!(disk.end(), ("again", Some(1)));
}

#[test]
fn a_pool_is_dropped_though_a_request_hangs_and_what_was_submitted_is_done() {
    let Disk {
        _dir,
        faults,
        pool,
        ends,
    } = {
        let disk = Disk::new();
        disk.plan(Operation::Write, 1, Effect::Hang);
        disk.write("hangs", 0, 1);
        disk.wait_hanging(1);
        disk
    };
    let dropping = std::thread::spawn(move || drop(pool));
    let deadline = Instant::now() + LIMIT;
    while !dropping.is_finished() {
        assert!(Instant::now() < deadline, "the pool is not dropped");
        std::thread::yield_now();
    }
    faults.release();
    assert_eq!(ends.end().first(), ("hangs", Some(1)));
}

#[test]
fn a_thread_that_panics_leaves_the_order_and_the_others_go_on() {
    /// Has its buffers for whoever submits it, and panics when it is carried out.
    struct Panics(AtomicU32);
    impl Job for Panics {
        fn action(&self) -> Action {
            let durability = Durability::Flushed;
            Action::Write {
                offset: 0,
                durability,
            }
        }
        fn buffers(&self) -> &[Buffer<'_>] {
            let memory = Box::leak(Box::new([0; 512]));
            let buffers = Box::leak(Box::new([Buffer::new(memory)]));
            assert_eq!(self.0.fetch_add(1, Ordering::SeqCst), 0, "on purpose");
            buffers
        }
        fn complete(self: Box<Self>, _: block::Result<()>) {}
        fn park(self: Box<Self>) {}
    }
    let disk = Disk::new();
    let panics = Box::new(Panics(AtomicU32::new(0)));
    disk.pool.submit(panics, Submitter::Hurried);
    disk.write("after it", 0, 1);
    assert_eq!(disk.end(), ("after it", Some(1)));
}
