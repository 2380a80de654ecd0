//! What carries a disk's requests out is exchanged under its driver: no request fails, none is lost or carried out by
//! the wrong one, whatever else happens to the device meanwhile.

#[path = "common/mod.rs"]
mod common;
#[path = "common/disk.rs"]
mod disk;
#[path = "common/witness.rs"]
mod witness;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use block::fault::{Effect, Fault, FaultLayer, Operation};
use block::{Access, Backend, BlockDevice, Buffer, Content, Durability, RawImage};
use common::{BUFFERS, Driver, STATUS, readable, wait_until, writable};
use devices::Error;
use devices::virtio::{Block, Handover};
use disk::{IOERR, OK, SECTORS, T_FLUSH, T_IN, T_OUT, T_ZERO, create, device, range};
use tempfile::TempDir;
use witness::{Turns, Witness};

const PATIENCE: Duration = Duration::from_secs(60);
const BRIEFLY: Duration = Duration::from_millis(20);
const FOREVER: u64 = u64::MAX;

fn image(path: &Path) -> Arc<RawImage> {
    Arc::new(RawImage::open(path, Access::ReadWrite, Content::Raw).unwrap())
}

fn backend(disk: Arc<dyn BlockDevice>) -> Arc<dyn Backend> {
    Block::backend_over(disk).unwrap()
}

/// A disk with a driver that has started, and new stacks over its image.
struct Setup {
    _dir: TempDir,
    path: PathBuf,
    image: Arc<RawImage>,
    turns: Arc<Turns>,
    driver: Driver,
}

impl Setup {
    fn new(queues: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        create(&path);
        let image = image(&path);
        let mut driver = Driver::new(device(image.clone(), queues));
        driver.start(0);
        Self {
            _dir: dir,
            path,
            image,
            turns: Arc::default(),
            driver,
        }
    }

    /// Exchanges the stack for the next one.
    fn pivot(&self) -> devices::Result<Duration> {
        let next = Witness::new(self.image.clone(), self.turns.clone());
        let next = backend(Arc::new(next));
        self.driver.transport.pivot(next, PATIENCE)
    }

    fn is_sound(&self) -> bool {
        self.turns.are_kept()
    }
}

/// The driver of one queue of a device, beside those of others.
fn beside(driver: &Driver) -> Driver {
    Driver {
        ram: driver.ram.clone(),
        transport: driver.transport.clone(),
        interrupt: driver.interrupt.clone(),
        features: driver.features,
        rings: driver.rings.clone(),
    }
}

/// Requests of a queue that are in flight together, each for a sector of its own.
const DEPTH: usize = 8;
const QUEUES: usize = 3;

/// What a sector holds that was written for the `count`th time.
fn content(sector: u64, count: u64) -> Vec<u8> {
    let mut words = [sector, count].into_iter().cycle();
    (0..64)
        .flat_map(|_| words.next().unwrap().to_le_bytes())
        .collect()
}

struct Load {
    driver: Driver,
    queue: usize,
    /// How often the sector of each slot was written, with the request in flight.
    counts: [u64; DEPTH],
    /// The type of the request in flight of each slot, which has the descriptor of that number.
    in_flight: [Option<u32>; DEPTH],
    done: usize,
}

impl Load {
    fn sector(&self, slot: usize) -> u64 {
        (self.queue * DEPTH + slot) as u64
    }

    fn at(&self, slot: usize) -> u64 {
        BUFFERS + self.sector(slot) * 0x1000
    }

    fn begin(&mut self, slot: usize) {
        let request = [T_OUT, T_IN, T_FLUSH, T_OUT, T_IN][(self.done + slot) % 5];
        let (sector, at) = (self.sector(slot), self.at(slot));
        self.driver.put(at, &request.to_le_bytes());
        self.driver.put(at + 8, &sector.to_le_bytes());
        self.driver.put(at + 16, &[0xff]);
        if request == T_OUT {
            self.counts[slot] += 1;
            let bytes = content(sector, self.counts[slot]);
            self.driver.put(at + 512, &bytes);
        }
        let (header, status) = (readable(at, 16), writable(at + 16, 1));
        let data = match request {
            T_OUT => Some(readable(at + 512, 512)),
            T_IN => Some(writable(at + 1024, 512)),
            _ => None,
        };
        let segments: Vec<_> = [Some(header), data, Some(status)]
            .into_iter()
            .flatten()
            .collect();
        self.driver.offer_as(self.queue, slot as u16, &segments);
        self.in_flight[slot] = Some(request);
    }

    fn end(&mut self, head: u16) {
        let slot = usize::from(head);
        let request = self.in_flight[slot].take().expect("not in flight");
        let at = self.at(slot);
        assert_eq!(self.driver.bytes(at + 16, 1), [OK]);
        if request == T_IN && self.counts[slot] > 0 {
            let expected = content(self.sector(slot), self.counts[slot]);
            assert!(self.driver.bytes(at + 1024, 512) == expected, "slot {slot}");
        }
        self.done += 1;
    }

    /// Keeps requests in flight until it is to end, and then waits for all.
    fn run(&mut self, goes_on: &AtomicBool, done: &AtomicUsize) {
        loop {
            let goes_on = goes_on.load(Ordering::SeqCst);
            if goes_on {
                for slot in 0..DEPTH {
                    if self.in_flight[slot].is_none() {
                        self.begin(slot);
                    }
                }
                self.driver.notify(self.queue);
            } else if self.in_flight.iter().all(Option::is_none) {
                return;
            }
            let (head, _) = self.driver.wait_used(self.queue);
            self.end(head);
            done.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Has every queue kept busy while `act` goes on, and checks what the image holds then; requests that ended.
fn under_load(setup: &Setup, act: impl FnOnce(&AtomicUsize)) -> usize {
    let (goes_on, done) = (AtomicBool::new(true), AtomicUsize::new(0));
    let mut loads: Vec<Load> = (0..QUEUES)
        .map(|queue| Load {
            driver: beside(&setup.driver),
            queue,
            counts: [0; DEPTH],
            in_flight: [None; DEPTH],
            done: 0,
        })
        .collect();
    std::thread::scope(|scope| {
        for load in &mut loads {
            let (goes_on, done) = (&goes_on, &done);
            scope.spawn(move || load.run(goes_on, done));
        }
        act(&done);
        goes_on.store(false, Ordering::SeqCst);
    });
    let held = std::fs::read(&setup.path).unwrap();
    for load in &loads {
        for slot in 0..DEPTH {
            let sector = load.sector(slot);
            let expected = match load.counts[slot] {
                0 => vec![0; 512],
                count => content(sector, count),
            };
            let at = sector as usize * 512;
            assert!(held[at..at + 512] == expected, "sector {sector}");
        }
    }
    assert!(setup.is_sound(), "two stacks had requests at once");
    done.load(Ordering::SeqCst)
}

#[test]
fn nothing_is_lost_by_a_thousand_pivots_under_load_also_of_two_threads_at_once() {
    let setup = Setup::new(QUEUES as u16);
    let done = under_load(&setup, |done| {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let before = done.load(Ordering::SeqCst);
                        setup.pivot().unwrap();
                        // With requests between two of them.
                        wait_until("requests end", || done.load(Ordering::SeqCst) > before);
                    }
                });
            }
        });
    });
    assert!(done > 1000);
}

#[test]
fn a_device_can_be_pivoted_while_it_is_paused_and_goes_on() {
    let setup = Setup::new(QUEUES as u16);
    under_load(&setup, |_| {
        let goes_on = AtomicBool::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while goes_on.load(Ordering::SeqCst) {
                    setup.pivot().unwrap();
                }
            });
            for _ in 0..100 {
                setup.driver.transport.pause().unwrap();
                assert!(!setup.driver.transport.has_unflushed_writes());
                let state = setup.driver.transport.save().unwrap();
                assert!(state.parked.is_empty());
                setup.driver.transport.resume().unwrap();
            }
            goes_on.store(false, Ordering::SeqCst);
        });
    });
}

#[test]
fn a_device_can_be_pivoted_while_its_driver_resets_it() {
    let mut setup = Setup::new(1);
    let (path, image, turns) = (setup.path.clone(), setup.image.clone(), setup.turns.clone());
    let transport = setup.driver.transport.clone();
    let goes_on = Arc::new(AtomicBool::new(true));
    let pivoting = std::thread::spawn({
        let goes_on = goes_on.clone();
        move || {
            for pivots in 1.. {
                let next = Witness::new(image.clone(), turns.clone());
                let next = backend(Arc::new(next));
                transport.pivot(next, PATIENCE).unwrap();
                if !goes_on.load(Ordering::SeqCst) {
                    return pivots;
                }
            }
            0
        }
    });
    for round in 1..=100_u8 {
        setup.driver.start(0);
        assert_eq!(setup.driver.disk_write(0, 1, &[round; 512], false), OK);
        // With a request that it does not wait for.
        setup.driver.put(BUFFERS, &T_FLUSH.to_le_bytes());
        let segments = [readable(BUFFERS, 16), writable(BUFFERS + 16, 1)];
        setup.driver.offer(0, &segments, false);
        setup.driver.notify(0);
        setup.driver.write(STATUS, 0);
        wait_until("the reset is done", || setup.driver.status() == 0);
    }
    goes_on.store(false, Ordering::SeqCst);
    assert!(pivoting.join().unwrap() > 0);
    assert!(setup.is_sound());
    assert_eq!(std::fs::read(path).unwrap()[512..1024], [100; 512]);
}

/// A device over a layer that does what it is told; the layer, and another over the same image.
fn faulty() -> (Setup, Arc<FaultLayer>, Arc<FaultLayer>) {
    let setup = Setup::new(1);
    let layer = || Arc::new(FaultLayer::new(setup.image.clone()));
    let (first, second) = (layer(), layer());
    let transport = &setup.driver.transport;
    transport.pivot(backend(first.clone()), PATIENCE).unwrap();
    (setup, first, second)
}

fn plan(disk: &FaultLayer, operation: Operation, times: u64, effect: Effect) {
    disk.inject(Fault {
        operation,
        skip: 0,
        times,
        effect,
    });
}

#[test]
fn a_pivot_that_is_late_changes_nothing_and_says_so() {
    let (mut setup, first, second) = faulty();
    let transport = setup.driver.transport.clone();
    plan(&first, Operation::Flush, 1, Effect::Hang);
    setup.driver.put(BUFFERS, &T_FLUSH.to_le_bytes());
    let segments = [readable(BUFFERS, 16), writable(BUFFERS + 16, 1)];
    setup.driver.offer(0, &segments, false);
    setup.driver.notify(0);
    first.wait_hanging(1);
    let error = transport
        .pivot(backend(second.clone()), BRIEFLY)
        .unwrap_err();
    assert!(matches!(error, Error::Hangs { .. }), "{error}");
    assert!(
        error.to_string().contains("exchange of its layers"),
        "{error}"
    );
    // Still the first one's, which has let go of nobody's requests.
    plan(&first, Operation::Write, 1, Effect::Fail(libc::EIO));
    plan(
        &second,
        Operation::Write,
        FOREVER,
        Effect::Fail(libc::ENOSPC),
    );
    let write = |driver: &mut Driver| {
        driver.put(BUFFERS + 0x1000, &T_OUT.to_le_bytes());
        driver.put(BUFFERS + 0x1008, &1_u64.to_le_bytes());
        let at = BUFFERS + 0x1000;
        let segments = [
            readable(at, 16),
            readable(at + 512, 512),
            writable(at + 16, 1),
        ];
        driver.offer(0, &segments, false);
        driver.notify(0);
        driver.wait_used(0);
        driver.bytes(at + 16, 1)[0]
    };
    assert_eq!(write(&mut setup.driver), IOERR);
    assert_eq!(write(&mut setup.driver), OK);
    first.release();
    setup.driver.wait_used(0);
    second.clear();
    plan(&second, Operation::Write, 1, Effect::Fail(libc::ENOSPC));
    transport.pivot(backend(second), PATIENCE).unwrap();
    assert_eq!(write(&mut setup.driver), IOERR);
    assert_eq!(write(&mut setup.driver), OK);
}

/// Has a read parked that `first` and `second` lack what it needs; its head, and where it puts what it reads: the byte 3.
fn park(setup: &mut Setup, lacking: [&FaultLayer; 2]) -> (u16, u64) {
    let at = BUFFERS + 0x2000;
    setup.driver.disk_write(0, 3, &[3; 512], false);
    for disk in lacking {
        plan(disk, Operation::Read, FOREVER, Effect::Absent);
    }
    setup.driver.put(at, &T_IN.to_le_bytes());
    setup.driver.put(at + 8, &3_u64.to_le_bytes());
    let segments = [
        readable(at, 16),
        writable(at + 512, 512),
        writable(at + 16, 1),
    ];
    let head = setup.driver.offer(0, &segments, false);
    setup.driver.notify(0);
    // The queue's thread is by this one after it was by the other.
    assert_eq!(setup.driver.disk_other(0, T_ZERO, 0, &range(9, 1, 0)), OK);
    (head, at + 512)
}

#[test]
fn what_is_parked_is_tried_again_by_the_pivot() {
    let (mut setup, first, second) = faulty();
    let (head, data) = park(&mut setup, [&first, &second]);
    let transport = setup.driver.transport.clone();
    let whole = backend(setup.image.clone());
    transport.pivot(whole, BRIEFLY).unwrap();
    assert_eq!(setup.driver.wait_used(0).0, head);
    assert_eq!(setup.driver.bytes(data, 512), [3; 512]);
}

#[test]
fn what_is_parked_hears_of_what_comes_to_the_new_backend() {
    let (mut setup, first, second) = faulty();
    let (head, data) = park(&mut setup, [&first, &second]);
    let transport = setup.driver.transport.clone();
    transport.pivot(backend(second.clone()), BRIEFLY).unwrap();
    // It is tried again, in vain, before anything comes.
    assert_eq!(setup.driver.disk_other(0, T_ZERO, 0, &range(9, 1, 0)), OK);
    second.clear();
    second.arrive();
    assert_eq!(setup.driver.wait_used(0).0, head);
    assert_eq!(setup.driver.bytes(data, 512), [3; 512]);
}

#[test]
fn what_comes_to_a_paused_device_is_flushed_before() {
    let (mut setup, _first, second) = faulty();
    let transport = setup.driver.transport.clone();
    assert_eq!(setup.driver.disk_write(0, 1, &[1; 512], false), OK);
    transport.pause().unwrap();
    let mut bytes = [7; 512];
    let buffers = [Buffer::new(&mut bytes)];
    second.write(&buffers, 0, Durability::Flushed).unwrap();
    plan(&second, Operation::Flush, 1, Effect::Fail(libc::EIO));
    let error = transport
        .pivot(backend(second.clone()), PATIENCE)
        .unwrap_err();
    assert!(matches!(error, Error::Flush { .. }), "{error}");
    assert!(second.has_unflushed_writes());
    plan(&second, Operation::Flush, 1, Effect::Hang);
    let error = transport
        .pivot(backend(second.clone()), BRIEFLY)
        .unwrap_err();
    assert!(matches!(error, Error::Hangs { .. }), "{error}");
    second.release();
    transport.pivot(backend(second.clone()), PATIENCE).unwrap();
    assert!(!second.has_unflushed_writes());
    transport.resume().unwrap();
    plan(&second, Operation::Write, 1, Effect::Fail(libc::EIO));
    assert_eq!(setup.driver.disk_write(0, 1, &[1; 512], false), IOERR);
}

#[test]
fn no_other_disk_takes_the_place_of_the_one_that_the_guest_knows() {
    let setup = Setup::new(1);
    let smaller = setup.path.with_extension("smaller");
    std::fs::write(&smaller, vec![0; (SECTORS as usize - 1) * 512]).unwrap();
    let only_read = RawImage::open(&setup.path, Access::ReadOnly, Content::Raw).unwrap();
    let others: [Arc<dyn BlockDevice>; 2] = [image(&smaller), Arc::new(only_read)];
    for other in others {
        let error = setup.driver.transport.pivot(backend(other), PATIENCE);
        let error = error.unwrap_err();
        assert!(matches!(error, Error::Unfit { .. }), "{error}");
    }
    let rng = Driver::new(Box::new(devices::virtio::Rng::new()));
    let next = backend(setup.image.clone());
    let error = rng.transport.pivot(next, PATIENCE).unwrap_err();
    assert!(matches!(error, Error::Unfit { .. }), "{error}");
}

/// Copies a file of an image to another, unless it is to fail.
struct Copies<'s> {
    from: &'s Path,
    to: &'s Path,
    fails: Option<Step>,
    decided: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Step {
    Complete,
    Decide,
}

impl Handover for Copies<'_> {
    type Error = Error;

    fn complete(&mut self) -> devices::Result<()> {
        // In place, as the file is open.
        let bytes = std::fs::read(self.from).unwrap();
        let to = std::fs::OpenOptions::new().write(true).open(self.to);
        std::os::unix::fs::FileExt::write_all_at(&to.unwrap(), &bytes, 0).unwrap();
        self.fails(Step::Complete)
    }

    fn decide(&mut self) -> devices::Result<()> {
        self.fails(Step::Decide)?;
        self.decided = true;
        Ok(())
    }
}

impl Copies<'_> {
    fn fails(&self, at: Step) -> devices::Result<()> {
        if self.fails == Some(at) {
            let device = "disk";
            let reason = "it was told to fail".to_owned();
            return Err(Error::Unfit { device, reason });
        }
        Ok(())
    }
}

#[test]
fn a_disk_is_handed_over_to_another_image_under_load_and_nothing_is_lost() {
    let setup = Setup::new(QUEUES as u16);
    let other = setup.path.with_extension("other");
    create(&other);
    let there = image(&other);
    let hand_over = |to: &Arc<RawImage>, fails| {
        let (from, to_path) = if Arc::ptr_eq(to, &there) {
            (&setup.path, &other)
        } else {
            (&other, &setup.path)
        };
        let mut copies = Copies {
            from,
            to: to_path,
            fails,
            decided: false,
        };
        let next = Witness::new(to.clone(), setup.turns.clone());
        let next = backend(Arc::new(next));
        let transport = &setup.driver.transport;
        let done = transport.hand_over(next, PATIENCE, &mut copies);
        assert_eq!(done.is_ok(), copies.decided);
        done
    };
    under_load(&setup, |done| {
        for _ in 0..20 {
            for fails in [Step::Complete, Step::Decide] {
                let failed = hand_over(&there, Some(fails));
                assert!(matches!(failed, Err(Error::Unfit { .. })), "{failed:?}");
            }
            hand_over(&there, None).unwrap();
            let before = done.load(Ordering::SeqCst);
            wait_until("requests go on there", || {
                done.load(Ordering::SeqCst) > before + 50
            });
            hand_over(&setup.image, None).unwrap();
        }
    });
}
