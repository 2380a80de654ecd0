//! Guests that go to another host before the content of their disk does.

use serde_json::Value;
use tests::blackbox::leaving::{LISTEN, Leaving, NOT_BY_ITSELF, ON_DEMAND, hash};
use tests::blackbox::moving_disk::{CHECK, SIZE, VERIFY, allocated, holds_its_content, options_of};
use tests::blackbox::relay::Link;
use tests::blackbox::wait::PATIENCE;
use tests::blackbox::{Guest, Migration, Vms, crash, eventually, guest_lock, holds, images, kill};
use tests::matrix::verdict::chain;
use tests::network::TwoHosts;

#[test]
fn a_guest_goes_before_its_disk_does_and_fetches_each_block_once() {
    let Some(_lock) = guest_lock() else { return };
    let mut leaving = Leaving::new("there.raw");
    let first = leaving.scene.disk.clone();
    let address = leaving.receives(&[]);
    // Nobody serves it for being asked whether it would work.
    let plan = [
        "migrate",
        "guest",
        "--to",
        &address,
        "--disks",
        "on-demand",
        "--plan",
    ];
    let _ = leaving.here().vmm(plan).success();
    assert_eq!(leaving.served(), Vec::<Value>::new());
    // Nor is who was left of an earlier attempt in its way.
    let image = first.display().to_string();
    let waits = [
        "disk",
        "serve",
        &image,
        "--when-guest-has-gone",
        "--listen",
        LISTEN,
    ];
    let earlier = leaving.here().spawn(waits);
    eventually("an earlier one waits", || {
        let served = leaving.served();
        (served.first()?["awaiting"] == true).then_some(())
    });
    let report = leaving.goes(&address, ON_DEMAND);
    let _ended = earlier.finish(PATIENCE);
    let disks = &report["disks"];
    assert_eq!(disks["bytes"], 0, "{report:#}");
    assert_eq!(
        disks["on_demand"][0]["disk_bytes_before_commit"], 0,
        "{report:#}"
    );
    assert_eq!(disks["left"][0]["whole"], false, "{report:#}");
    let before = hash(&first);
    leaving.scene.console.verifies_blocks();
    leaving.scene.console.verifies_ledger();
    leaving.becomes_whole();
    assert_eq!(
        hash(&first),
        before,
        "the image that was served was written"
    );
    leaving.scene.is_refused(&first, "the guest went to");
    leaving.destination().stop("guest");
    // What nobody has written stays a hole: beside the content is what the guest has come to write.
    assert!(allocated(&leaving.there) <= (24 + 8 + 1) << 20);
    holds_its_content(&leaving.there);
    let guest = Guest::idle().disk_with(&leaving.there, options_of(&leaving.there), CHECK);
    let mut console = leaving.destination().run("again", &guest);
    console.verifies_blocks();
    leaving.destination().stop("again");
    leaving.scene.pair.is_clean();
}

#[test]
fn whoever_of_both_ends_is_killed_after_the_commit_goes_on_where_it_was() {
    let Some(_lock) = guest_lock() else { return };
    let mut leaving = Leaving::new("there.qcow2");
    let first = leaving.scene.disk.clone();
    let address = leaving.receives(&[]);
    let _ = leaving.goes(&address, NOT_BY_ITSELF);
    leaving.scene.console.verifies_blocks();
    let before = hash(&first);
    // Far from all: what the guest does not touch is not there.
    let missing = leaving.missing().expect("something is missing");
    assert!(missing["bytes"].as_u64() > Some(48 << 20), "{missing}");
    let served = leaving.served().remove(0);
    assert_eq!(missing["from"], served["listen"], "{served}");
    let leaves = ["migrate", "guest", "--to", "127.0.0.1:1"];
    let refused = leaving.destination().vmm(leaves).expect_code(1).stderr;
    assert!(refused.contains("disk.in-part"), "{refused}");

    // The guest's host: what it was told is done is there when it runs again, and what it lacks comes.
    leaving.destination().crash("guest");
    let options = options_of(&leaving.there);
    let guest = Guest::dirtying().disk_with(&leaving.there, options, CHECK);
    leaving.scene.console = leaving.destination().run("guest", &guest);
    leaving.scene.console.verifies_blocks();

    // Who serves it: what is there goes on, and it is told what is missing from whom.
    let pid = served["pid"].as_u64().expect("a process");
    crash(u32::try_from(pid).expect("pid"));
    assert!(leaving.served()[0]["pid"].is_null());
    let image = first.display().to_string();
    let listen = served["listen"].as_str().expect("an address").to_owned();
    let again = ["disk", "serve", &image, "--listen", &listen, "--id", "data"];
    let mut server = leaving.here().spawn(again);
    eventually("it is served again", || {
        assert!(server.is_running(), "{}", server.stderr());
        leaving.served()[0]["pid"].is_u64().then_some(())
    });
    leaving.scene.console.verifies_blocks();
    leaving.destination().stop("guest");
    let there = leaving.there.display().to_string();
    let _ = leaving
        .destination()
        .vmm(["disk", "pull", &there])
        .success();
    let _ = server.finish(PATIENCE).expect("it is released").success();
    assert_eq!(
        hash(&first),
        before,
        "the image that was served was written"
    );
    let _ = leaving
        .destination()
        .vmm(["disk", "check", &there])
        .success();
    let guest = Guest::idle().disk_with(&leaving.there, options, CHECK);
    let mut console = leaving.destination().run("again", &guest);
    console.verifies_blocks();
    leaving.destination().stop("again");
    leaving.destination().is_swept();
}

/// Slow enough that there is time to do something before the commit.
const SLOW: &[&str] = &[
    "--disks",
    "data=on-demand",
    "--bandwidth",
    "4MiB/s",
    "--downtime-limit",
    "1us",
    "--reconnect-for",
    "0s",
];

#[test]
fn whatever_ends_it_before_the_commit_leaves_the_guest_and_nothing_else() {
    let Some(_lock) = guest_lock() else { return };
    let mut leaving = Leaving::new("there.raw");
    let is_as_before = |leaving: &mut Leaving| {
        leaving.scene.console.verifies_blocks();
        assert_eq!(leaving.served(), Vec::<Value>::new());
        // The guest's alone.
        assert_eq!(leaving.here().processes().len(), 1);
        holds("nothing is left there", || {
            !leaving.there.exists() && !images::map_of(&leaving.there).exists()
        });
    };
    // Its user cancels it; its server is killed.
    for killed in [false, true] {
        let address = leaving.receives(&[]);
        let mut moving = Migration::start(leaving.here(), "guest", &address, SLOW);
        moving.wait_progress();
        let served = leaving.served().remove(0);
        assert_eq!(served["awaiting"], true, "{served}");
        match killed {
            false => moving.interrupt(),
            true => {
                let pid = served["pid"].as_u64().expect("a process");
                kill(u32::try_from(pid).expect("pid"));
            }
        }
        let ended = moving.finish();
        assert_eq!(ended.report["status"], "cancelled", "{}", ended.err);
        is_as_before(&mut leaving);
        let _ = leaving.destination().vmm(["stop", "guest", "--force"]);
        holds("nobody waits there", || {
            leaving.destination().processes().is_empty()
        });
    }
    // Whoever asked for it is killed: it goes on, and its server with it.
    let address = leaving.receives(&[]);
    let mut moving = Migration::start(leaving.here(), "guest", &address, SLOW);
    moving.wait_progress();
    moving.kill();
    let faster = [
        "migrate",
        "guest",
        "--set",
        "bandwidth=unlimited,downtime-limit=1s",
    ];
    let _ = leaving.here().vmm(faster).success();
    leaving
        .scene
        .console
        .moves_to(&leaving.scene.pair.destination, "guest");
    leaving.scene.console.verifies_blocks();
    leaving.becomes_whole();
    leaving.destination().stop("guest");
    leaving.scene.pair.is_clean();
}

#[test]
fn a_source_that_is_killed_before_the_commit_has_its_guest_run_again_from_its_image() {
    let Some(_lock) = guest_lock() else { return };
    let mut leaving = Leaving::new("there.raw");
    let address = leaving.receives(&[]);
    let mut moving = Migration::start(leaving.here(), "guest", &address, SLOW);
    moving.wait_progress();
    leaving.here().crash("guest");
    let _ = moving.finish();
    let first = leaving.scene.disk.clone();
    leaving.scene.is_run_again_from(&first);
    assert_eq!(leaving.served(), Vec::<Value>::new());
    leaving.scene.host().stop("guest");
    leaving.scene.host().is_swept();
}

/// Where one host would serve and the other does not get through.
const PORT: u16 = 4444;

#[test]
fn a_guest_stays_whose_disk_could_not_be_fetched_where_it_goes() {
    let Some(_lock) = guest_lock() else { return };
    let Some(hosts) = TwoHosts::new() else { return };
    let (here, there) = (&hosts.a, &hosts.b);
    let disk = images::sparse(here.host.path(), "data.raw", SIZE);
    let guest = Guest::dirtying().disk_with(&disk, "id=data", VERIFY);
    let mut console = here.host.run("guest", &guest);
    console.verifies_blocks();
    let image = there.host.path().join("there.raw");
    let made = format!("data={},create", image.display());
    let listen = format!("{}:0", there.address);
    let address = there
        .host
        .receive_with("guest", &listen, &["--disk", &made]);
    let at = format!("{}:{PORT}", here.address);
    let how = [ON_DEMAND, &["--insecure", "--serve-at", &at]].concat();

    let wall = format!("ipproto tcp dport {PORT} prohibit");
    let _ = there
        .namespace
        .ip(&format!("rule add {wall}"))
        .expect("a firewall");
    let ended = Migration::start(&here.host, "guest", &address, &how).finish();
    let text = ended.ended(1, "failed");
    let ids = chain(&ended.report["error"]);
    assert!(ids.iter().any(|id| id == "negotiate.server"), "{ids:?}");
    assert!(text.contains(&at), "{text}");
    let listed = here.host.vmm(["disk", "serve", "--list", "--json"]);
    assert_eq!(listed.success().json_lines(), Vec::<Value>::new());
    console.verifies_blocks();
    // Nothing was made, so that it waits on.
    let _ = there.host.waits_on("guest");
    assert!(!image.exists(), "what was made is left");

    // By way of a relay nobody is tried that the guest does not seem to come from.
    let relay = hosts.relay(&address, Link::default());
    let via = relay.address();
    let migration = Migration::start(&here.host, "guest", &via, &how);
    let report = migration.finish().completed();
    assert_eq!(
        report["warnings"][0]["id"], "disk.server-untried",
        "{report:#}"
    );
    console.moves_to(&there.host, "guest");
    let missing = || there.host.status("guest")["disks"][0]["missing"].clone();
    eventually("it is told why nothing comes", || {
        missing()["why"].is_string().then_some(())
    });
    let _ = there
        .namespace
        .ip(&format!("rule del {wall}"))
        .expect("no firewall");
    console.verifies_blocks();
    console.verifies_ledger();
    eventually("the disk is whole", || missing().is_null().then_some(()));
    eventually("its server is told so", || {
        let listed = here.host.vmm(["disk", "serve", "--list", "--json"]);
        let served = listed.success().json_lines();
        (served[0]["released"] == true && served[0]["pid"].is_null()).then_some(())
    });
    there.host.stop("guest");
    drop(relay);
    hosts.is_clean();
}
