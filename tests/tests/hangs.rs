//! A guest whose storage does not answer can be stopped all the same.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::Host;
use tests::blackbox::wait::PATIENCE;
use tests::blackbox::{Console, Guest, Pair, Vms, fails, guest_lock, holds, images, signal};

/// How long a guest may take to end by force: five seconds, and what a busy machine adds. Half of the time
/// that its disk alone is given to end its requests.
const FORCE: Duration = Duration::from_secs(9);

/// A guest whose writes to its disk hang.
fn with_hanging_disk(host: &Host) -> (Console, PathBuf) {
    let disk = images::sparse(host.path(), "data.raw", 16 << 20);
    let orders = host.path().join("disk-faults");
    fs::write(&orders, "").expect("orders");
    let guest = Guest::idle().disk(&disk);
    let mut console = host.run_with("guest", &guest, |command| {
        command.env("VMM_DEBUG_DISK_FAULTS", &orders);
    });
    fs::write(&orders, "data write hang\ndata flush hang\n").expect("orders");
    console.waits_for_disk();
    (console, orders)
}

#[test]
fn stop_by_force_does_not_wait_for_storage_that_hangs() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let (_console, _orders) = with_hanging_disk(host);
    let began = Instant::now();
    let _ = host.vmm(["stop", "guest", "--force"]).success();
    let took = began.elapsed();
    assert!(took < FORCE, "{took:?}");
    host.is_clean();
}

#[test]
fn a_second_signal_does_not_wait_for_storage_that_hangs() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let (_console, _orders) = with_hanging_disk(host);
    let pid = host.pid("guest");
    let log = host.folder("guest").join("vmm.log");
    let asked = || {
        let log = fs::read_to_string(&log).unwrap_or_default();
        log.matches("asked by a signal").count()
    };
    signal(pid, Signal::TERM);
    holds("the first signal is heard", || asked() == 1);
    let began = Instant::now();
    signal(pid, Signal::TERM);
    host.is_clean();
    assert!(began.elapsed() < FORCE, "{:?}", began.elapsed());
}

#[test]
fn a_pause_says_that_storage_hangs_and_stopping_goes_on_meanwhile() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let (mut console, orders) = with_hanging_disk(host);
    let pause = host.vmm(["pause", "guest"]);
    fails(pause, 1, &["disk.hangs", "data.raw"]);
    let _ = host.vmm(["resume", "guest"]).success();
    fs::write(&orders, "").expect("orders");
    console.knows_of_disk_faults();
    console.verifies_blocks();
    fs::write(&orders, "data write hang\ndata flush hang\n").expect("orders");
    console.waits_for_disk();
    let pausing = host.spawn(["pause", "guest"]);
    let mut before = String::new();
    holds("the guest stands still", || {
        std::thread::sleep(Duration::from_millis(500));
        let now = console.text();
        std::mem::replace(&mut before, now.clone()) == now
    });
    let began = Instant::now();
    let _ = host.vmm(["stop", "guest", "--force"]).success();
    assert!(began.elapsed() < FORCE, "{:?}", began.elapsed());
    let paused = pausing.finish(PATIENCE);
    assert_eq!(paused.unwrap_or_else(|e| panic!("{e:#}")).code(), 1);
    host.is_clean();
}
