//! A link that breaks while a guest under load is copied, by the binary: a new one goes on from what is placed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use tests::blackbox::relay::Relay;
use tests::blackbox::{Guest, Migration, Pair, Vms, guest_lock};
use tests::matrix::verdict::chain;

const LISTEN: &str = "127.0.0.1:0";
/// So that there is time to cut.
const SLOW: [&str; 4] = ["--bandwidth", "12MiB/s", "--reconnect-for", "30s"];
const FAST: [&str; 4] = ["migrate", "guest", "--set", "bandwidth=unlimited"];

/// Cuts the link of `migration`, `times` times, each time once pages travel, and lets it come back.
#[track_caller]
fn cut(relay: &Relay, migration: &mut Migration, times: u64) {
    for number in 1..=times {
        migration.wait_progress();
        relay.cut();
        migration.wait_for("a lost link", |event| event["event"] == "link-lost");
        relay.go_on();
        let again = migration.wait_for("a new link", |event| event["event"] == "reconnected");
        assert_eq!(again["reconnects"], number, "{again}");
    }
}

#[test]
fn a_busy_guest_moves_over_a_link_that_is_cut_again_and_again() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::dirtying());
    let address = pair.destination.receive("guest", LISTEN);
    let relay = Relay::new(&address, None);
    let mut migration = Migration::start(&pair.source, "guest", &relay.address(), &SLOW);
    cut(&relay, &mut migration, 4);
    let told = &pair.source.vmm(["jobs", "guest", "--json"]).success();
    assert!(told.stdout.contains("\"reconnects\":4"), "{}", told.stdout);
    let _ = pair.source.vmm(FAST).success();
    let ended = migration.finish();
    assert_eq!(ended.report["reconnects"], 4, "{:#}", ended.report);
    assert_eq!(ended.report["verified"], true, "{:#}", ended.report);
    ended.completed();
    console.moves_to(&pair.destination, "guest");
    console.verifies_ledger();
    pair.destination.stop("guest");
    pair.is_clean();
}

#[test]
fn disks_travel_over_a_link_that_is_cut_again_and_again() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let [here, there] = [&pair.source, &pair.destination].map(|host| host.path().join("data.raw"));
    let file = File::create(&here).expect("image");
    file.set_len(64 << 20).expect("size");
    let content = vec![0xc7; 24 << 20];
    file.write_all_at(&content, 32 << 20).expect("content");
    let verify = "block=verify,size=4M block_rate=400";
    let guest = Guest::dirtying().disk_with(&here, "id=data", verify);
    let mut console = pair.source.run("guest", &guest);
    console.verifies_blocks();
    let place = format!("data={},create", there.display());
    let receives = [
        "receive", "--listen", LISTEN, "--name", "guest", "--detach", "--disk", &place,
    ];
    let _ = pair.destination.vmm(receives).success();
    let status = pair.destination.status("guest");
    let relay = Relay::new(status["listen"].as_str().expect("address"), None);
    let options = [&SLOW[..], &["--disks", "precopy", "--streams", "3"]].concat();
    let mut migration = Migration::start(&pair.source, "guest", &relay.address(), &options);
    cut(&relay, &mut migration, 3);
    let _ = pair.source.vmm(FAST).success();
    let ended = migration.finish();
    assert_eq!(ended.report["reconnects"], 3, "{:#}", ended.report);
    ended.completed();
    console.moves_to(&pair.destination, "guest");
    console.verifies_blocks();
    console.verifies_ledger();
    assert!(fs::read(&there).expect("image")[32 << 20..][..24 << 20] == content[..]);
    pair.destination.stop("guest");
    pair.is_clean();
}

#[test]
fn a_link_that_stays_away_ends_it_on_both_sides_and_the_guest_stays() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::dirtying());
    let address = pair.destination.receive("guest", LISTEN);
    let relay = Relay::new(&address, None);
    let options = ["--bandwidth", "12MiB/s", "--reconnect-for", "1s"];
    let mut migration = Migration::start(&pair.source, "guest", &relay.address(), &options);
    migration.wait_progress();
    relay.cut();
    let ended = migration.finish();
    let ids = chain(&ended.report["error"]);
    assert_eq!(ids[1], "migration.not-reconnected", "{ids:?}");
    let _ = ended.ended(1, "failed");
    pair.destination.waits_no_more("guest");
    console.wait_tick();
    console.verifies_ledger();
    pair.source.stop("guest");
    pair.is_clean();
}

#[test]
fn a_cancel_without_a_link_ends_it_and_the_guest_moves_when_asked_again() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::dirtying());
    let address = pair.destination.receive("guest", LISTEN);
    let relay = Relay::new(&address, None);
    let mut migration = Migration::start(&pair.source, "guest", &relay.address(), &SLOW);
    migration.wait_progress();
    relay.cut();
    migration.wait_for("a lost link", |event| event["event"] == "link-lost");
    migration.interrupt();
    let _ = migration.finish().ended(4, "cancelled");
    console.verifies_ledger();
    // Nobody has told the destination, whose user does.
    pair.destination.stop("guest");
    let address = pair.destination.receive("guest", LISTEN);
    Migration::start(&pair.source, "guest", &address, &[])
        .finish()
        .completed();
    console.moves_to(&pair.destination, "guest");
    console.verifies_ledger();
    pair.destination.stop("guest");
    pair.is_clean();
}
