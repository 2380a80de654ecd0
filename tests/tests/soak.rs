//! One guest that moves again and again: nothing goes wrong, and nothing grows.

use tests::blackbox::leftovers;
use tests::blackbox::relay::{Fate, Relay, Toward, Trap};
use tests::blackbox::vitals::{Course, Vitals};
use tests::blackbox::wire::kind;
use tests::blackbox::{Guest, Migration, Pair, Vms, guest_lock, holds, images};

/// A link that is lost ends the migration.
const ENDS: &[&str] = &["--reconnect-for", "0s"];
const MOVES: usize = 200;
const FAILURES: usize = 80;
/// After so many, whatever is made once has been made, and the allocator has what it keeps.
const WARM_UP: usize = 30;
/// Records of past migrations that a host may keep for its users, and those under way.
const MOST_RECORDS: usize = 256 + 8;

#[test]
fn guest_that_moves_two_hundred_times_is_unharmed_and_nothing_grows() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let files = tempfile::tempdir().expect("folder for the disk");
    let disk = images::sparse(files.path(), "data.raw", 4 << 20);
    let mut console = pair.source.run("guest", &Guest::small().disk(&disk));
    let mut course = Course::default();
    let (mut from, mut to) = (&pair.source, &pair.destination);
    for hop in 1..=MOVES {
        let address = to.receive("guest", "127.0.0.1:0");
        Migration::start(from, "guest", &address, &[])
            .finish()
            .completed();
        // Now the source has written everything that the guest had printed there.
        from.is_clean();
        console.moves_to(to, "guest");
        course.add(settled(to.pid("guest")));
        (from, to) = (to, from);
        if hop % 20 == 0 {
            console.verifies_ledger();
            console.verifies_blocks();
            console.ticks_once();
            console.forgets();
        }
    }
    course.has_not_grown(WARM_UP);
    for host in [&pair.source, &pair.destination] {
        let records = leftovers::records(&host.runtime_dir());
        assert!(records <= MOST_RECORDS, "{records} records are kept");
    }
    from.stop("guest");
    pair.is_clean();
}

#[test]
fn source_whose_migrations_fail_again_and_again_does_not_grow() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let files = tempfile::tempdir().expect("folder for the disk");
    let disk = images::sparse(files.path(), "data.raw", 4 << 20);
    let mut console = pair.source.run("guest", &Guest::small().disk(&disk));
    let pid = pair.source.pid("guest");
    let cuts = [
        (Toward::Source, kind::NEGOTIATED),
        (Toward::Source, kind::PREPARED),
        (Toward::Destination, kind::LAST_PASS),
        (Toward::Source, kind::READY),
    ];
    let mut course = Course::default();
    for round in 0..FAILURES {
        let address = pair.destination.receive("guest", "127.0.0.1:0");
        let (toward, kind) = cuts[round % cuts.len()];
        let cancels = round % 5 == 0;
        let fate = if cancels { Fate::Stall } else { Fate::Cut };
        let relay = Relay::new(&address, Some(Trap { toward, kind, fate }));
        let migration = Migration::start(&pair.source, "guest", &relay.address(), ENDS);
        if cancels {
            holds("the link is held", || relay.is_sprung());
            let _ = pair.source.vmm(["migrate", "guest", "--cancel"]).success();
            let _ = migration.finish().ended(4, "cancelled");
            relay.go_on();
        } else {
            let _ = migration.finish().ended(1, "failed");
        }
        pair.destination.waits_no_more("guest");
        course.add(settled(pid));
    }
    course.has_not_grown(WARM_UP);
    console.verifies_ledger();
    console.verifies_blocks();
    // Having failed so often is in the way of nothing.
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    let moved = Migration::start(&pair.source, "guest", &address, &[]).finish();
    moved.completed();
    console.moves_to(&pair.destination, "guest");
    console.verifies_ledger();
}

/// What the process holds when the threads of its last migration are gone.
fn settled(pid: u32) -> Vitals {
    let passing = ["migration", "disk-claims", "flush"];
    holds("threads of the migration end", || {
        let threads = leftovers::threads(pid);
        // Whoever received the guest answers for ever who has it.
        let incoming = threads.iter().filter(|name| *name == "incoming");
        incoming.count() <= 1
            && !threads
                .iter()
                .any(|name| passing.iter().any(|passing| name.starts_with(passing)))
    });
    Vitals::of(pid)
}
