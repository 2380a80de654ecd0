//! A running guest moves from the version before this one to this one and back, and the other way round.

use tests::Host;
use tests::blackbox::{Console, Guest, Migration, Vms, guest_lock, holds, images};

/// Which version a host runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Last,
    This,
}

/// The host that a guest starts on, and the one of the other version.
fn hosts(first: Version) -> (Host, Host) {
    let last = Host::of_last_version().unwrap_or_else(|e| panic!("{e:#}"));
    let this = Host::new().unwrap_or_else(|e| panic!("{e:#}"));
    match first {
        Version::Last => (last, this),
        Version::This => (this, last),
    }
}

/// Moves the guest and has it verify all that it must hold.
#[track_caller]
fn moves(from: &Host, to: &Host, console: &mut Console) {
    let address = to.receive("guest", "127.0.0.1:0");
    let ended = Migration::start(from, "guest", &address, &[]).finish();
    let report = &ended.report;
    assert_eq!(ended.code, 0, "{report:#} {}", ended.err);
    assert_eq!(report["status"], "completed", "{report:#}");
    assert_eq!(report["verified"], true, "{report:#}");
    assert_eq!(to.status("guest")["state"], "running");
    from.is_clean();
    console.moves_to(to, "guest");
    console.verifies_ledger();
    console.verifies_blocks();
    console.ticks_once();
}

#[test]
fn guest_moves_to_the_other_version_and_back() {
    // Before the lock: nobody else has to wait while it is built.
    let _ = tests::last_version::vmm().unwrap_or_else(|e| panic!("{e:#}"));
    let Some(_lock) = guest_lock() else { return };
    for (first, cpus) in [
        (Version::Last, 1),
        (Version::Last, 2),
        (Version::This, 1),
        (Version::This, 2),
    ] {
        println!("from {first:?}, {cpus} vCPUs");
        let (home, away) = hosts(first);
        let disk = images::sparse(home.path(), "data.raw", 16 << 20);
        let guest = Guest::dirtying().cpus(cpus).disk(&disk);
        let mut console = home.run("guest", &guest);
        moves(&home, &away, &mut console);
        moves(&away, &home, &mut console);
        home.stop("guest");
    }
}

#[test]
fn guest_stays_where_it_is_when_its_move_to_the_other_version_is_cancelled() {
    let _ = tests::last_version::vmm().unwrap_or_else(|e| panic!("{e:#}"));
    let Some(_lock) = guest_lock() else { return };
    for first in [Version::Last, Version::This] {
        println!("from {first:?}");
        let (home, away) = hosts(first);
        let disk = images::sparse(home.path(), "data.raw", 16 << 20);
        let mut console = home.run("guest", &Guest::slow_to_move().disk(&disk));
        let address = away.receive("guest", "127.0.0.1:0");
        let mut migration = Migration::start(&home, "guest", &address, &["--bandwidth", "8MiB/s"]);
        migration.wait_progress();
        migration.interrupt();
        let ended = migration.finish();
        assert_eq!(ended.code, 4, "{:#} {}", ended.report, ended.err);
        assert_eq!(home.status("guest")["state"], "running");
        console.verifies_ledger();
        console.verifies_blocks();
        holds("who would have taken it in ends", || {
            away.processes().is_empty()
        });
        // One of version 0.1 that failed keeps its logs until it is told to stop.
        let _ = away.vmm(["stop", "guest", "--force"]);
        away.is_clean();
        // It has kept all that it needs to be moved.
        moves(&home, &away, &mut console);
        away.stop("guest");
    }
}
