//! A destination that has memory ready before the guest comes.

use tests::blackbox::leftovers::{memories, shared_memory_kib};
use tests::blackbox::{Guest, Migration, Pair, Vms, fails, guest_lock, holds};

const GUEST_KIB: u64 = 64 << 10;

#[test]
fn memory_is_ready_before_the_guest_and_no_more_than_it_needs_stays() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::dirtying());
    let (mut from, mut to) = (&pair.source, &pair.destination);
    for (what, reserve, reserved_kib) in [
        ("as large as the guest", "64MiB", GUEST_KIB),
        ("larger", "200MiB", 200 << 10),
        ("smaller", "10MiB", 10 << 10),
        ("of no whole huge pages", "8196KiB", 8196),
    ] {
        println!("a reserve {what}");
        let address = to.receive_with("guest", "127.0.0.1:0", &["--reserve", reserve]);
        let process = to.pid("guest");
        holds("the reserve is there", || {
            shared_memory_kib(process) >= reserved_kib
        });
        let report = Migration::start(from, "guest", &address, &[])
            .finish()
            .completed();
        assert_eq!(report["verified"], true, "{report:#}");
        assert_eq!(report["guest_bytes"], GUEST_KIB << 10, "{report:#}");
        console.moves_to(to, "guest");
        console.verifies_ledger();
        assert_eq!(to.status("guest")["memory_bytes"], GUEST_KIB << 10);
        assert_eq!(to.pid("guest"), process);
        assert_eq!(
            memories(process),
            1,
            "one memory: the reserve is the guest's"
        );
        let now = shared_memory_kib(process);
        assert!(now <= GUEST_KIB, "{now} KiB of guest memory");
        from.is_clean();
        std::mem::swap(&mut from, &mut to);
    }
    from.stop("guest");
    pair.is_clean();
}

#[test]
fn guest_may_come_before_the_reserve_is_filled() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::idle());
    let more = ["--reserve", "1GiB"];
    let address = pair.destination.receive_with("guest", "127.0.0.1:0", &more);
    Migration::start(&pair.source, "guest", &address, &[])
        .finish()
        .completed();
    console.moves_to(&pair.destination, "guest");
    console.verifies_ledger();
    let now = shared_memory_kib(pair.destination.pid("guest"));
    assert!(now <= GUEST_KIB, "{now} KiB of guest memory");
    pair.destination.stop("guest");
    pair.is_clean();
}

#[test]
fn reserve_goes_with_a_migration_that_does_not_come_to_its_end() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let guest = Guest::slow_to_move();
    let mut console = pair.source.run("guest", &guest);
    let more = ["--reserve", "128MiB"];
    let address = pair.destination.receive_with("guest", "127.0.0.1:0", &more);
    let limit = ["--bandwidth", "4MiB/s"];
    let mut migration = Migration::start(&pair.source, "guest", &address, &limit);
    migration.wait_phase("precopy");
    let _ = pair.source.vmm(["migrate", "guest", "--cancel"]).success();
    migration.finish().ended(4, "cancelled");
    pair.destination.is_clean();
    console.verifies_ledger();
    // And without any migration.
    pair.destination.receive_with("other", "127.0.0.1:0", &more);
    pair.destination.stop("other");
    pair.destination.is_clean();
}

#[test]
fn reserves_that_cannot_be_are_refused() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.destination;
    let cases: &[(&str, &[&str])] = &[
        ("0", &["0 bytes", "usage.reserve"]),
        ("512KiB", &["524288 bytes", "usage.reserve"]),
        ("1048577", &["1048577 bytes", "usage.reserve"]),
        ("64TiB", &["this host has", "usage.reserve"]),
        ("18446744073709551615", &["usage.reserve"]),
    ];
    for (size, words) in cases {
        println!("{size:?}");
        for detach in [&[][..], &["--detach"]] {
            let args = ["receive", "--listen", "127.0.0.1:0", "--reserve", size];
            fails(host.vmm(args.iter().chain(detach)), 2, words);
            host.is_clean();
        }
    }
    for size in ["much", "-1", "", "1GiB/s"] {
        println!("{size:?}");
        let args = ["receive", "--listen", "127.0.0.1:0", "--reserve", size];
        let run = host.vmm(args).expect_code(2);
        assert!(
            run.stderr.contains("--reserve") || run.stderr.contains("-1"),
            "{run}"
        );
    }
    host.is_clean();
}
