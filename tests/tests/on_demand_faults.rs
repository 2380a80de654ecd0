//! Guests whose disk is fetched while they run, and whoever has it is lost, slow or broken: they hear what they were to hear, never of
//! zeroes, and go on.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::json;
use tests::blackbox::leaving::{Leaving, NOT_BY_ITSELF, hash};
use tests::blackbox::moving_disk::{CHECK, holds_its_content, options_of};
use tests::blackbox::wait::PATIENCE;
use tests::blackbox::{Guest, Mounted, Vms, eventually, guest_lock, signal};
use tests::{Host, skip};

/// Waits until the guest was told of requests that failed since now.
#[track_caller]
fn hears_of_failures(leaving: &mut Leaving) {
    let before = leaving.scene.console.failed_requests();
    eventually("requests fail", || {
        leaving.scene.console.is_unharmed();
        (leaving.scene.console.failed_requests() > before).then_some(())
    });
}

/// The guest finds what it wrote, and no request fails meanwhile.
#[track_caller]
fn hears_of_none(leaving: &mut Leaving) {
    let before = leaving.scene.console.failed_requests();
    leaving.scene.console.verifies_blocks();
    leaving.scene.console.verifies_ledger();
    assert_eq!(leaving.scene.console.failed_requests(), before);
}

#[test]
fn requests_fail_for_a_source_that_is_lost_only_if_that_is_wanted_and_until_it_is_back() {
    let Some(_lock) = guest_lock() else { return };
    let mut leaving = Leaving::new("there.raw");
    let first = leaving.scene.disk.clone();
    let address = leaving.receives(&[]);
    let how = "data=on-demand,pull=off,on-source-loss=error:100ms";
    let _ = leaving.goes(&address, &["--disks", how]);
    leaving.scene.console.verifies_blocks();
    let told = json!({"error": {"after_ms": 100}});
    assert_eq!(leaving.lacks()["on_source_loss"], told);
    let before = hash(&first);

    leaving.kills_server();
    leaving.scene.console.knows_of_a_lost_source();
    hears_of_failures(&mut leaving);
    let why = leaving.is_told_why_nothing_comes();
    assert!(why.contains("refused"), "{why}");
    leaving.scene.console.wait_tick();

    // Told to wait, they do; and the one that waits hears it when it is told otherwise.
    leaving.pulls(&["--on-source-loss", "pause"]);
    eventually("requests wait", || {
        let before = leaving.scene.console.failed_requests();
        leaving.scene.console.wait_tick();
        (leaving.scene.console.failed_requests() == before).then_some(())
    });
    leaving.pulls(&["--on-source-loss", "error:0ms"]);
    hears_of_failures(&mut leaving);

    let server = leaving.serves_again(|_| ());
    eventually("it comes again", || {
        leaving.lacks()["why"].is_null().then_some(())
    });
    hears_of_none(&mut leaving);

    // It is kept with the disk.
    leaving.destination().crash("guest");
    let options = options_of(&leaving.there);
    let guest = Guest::dirtying().disk_with(&leaving.there, options, CHECK);
    leaving.scene.console = leaving.destination().run("guest", &guest);
    leaving.scene.console.verifies_blocks();
    let told = json!({"error": {"after_ms": 0}});
    assert_eq!(leaving.lacks()["on_source_loss"], told);
    leaving.destination().stop("guest");
    let there = leaving.there.display().to_string();
    let pull = leaving.destination().vmm(["disk", "pull", &there]);
    let _ = pull.success();
    let _ = server.finish(PATIENCE).expect("it is released").success();
    holds_its_content(&leaving.there);
    assert_eq!(
        hash(&first),
        before,
        "the image that was served was written"
    );
    leaving.destination().is_swept();
}

/// Names the file that orders faults of disks, see docs/testing.md.
const ORDERS: &str = "VMM_DEBUG_DISK_FAULTS";

fn orders(host: &Host) -> PathBuf {
    host.path().join("disk-faults")
}

/// Has the storage of `host` do so from now on.
fn order(host: &Host, faults: &str) {
    fs::write(orders(host), faults).expect("orders");
}

/// Nothing comes, for which the job names `why`; the guest waits, and goes on when `mend` has mended it.
#[track_caller]
fn waits_and_goes_on(leaving: &mut Leaving, why: &str, mend: impl FnOnce(&Leaving)) {
    let told = leaving.job(|job| job["held_up_by"]["id"] == why);
    leaving.scene.console.waits_for_disk();
    mend(leaving);
    hears_of_none(leaving);
    let job = leaving.job(|job| job["held_up_by"].is_null());
    assert_eq!(job["progress"]["waiting_ms"], json!(null), "{told:#}");
}

#[test]
fn storage_that_fails_at_either_end_is_waited_for_and_the_pull_is_steered_as_a_job() {
    let Some(_lock) = guest_lock() else { return };
    let mut leaving = Leaving::slowly("there.raw");
    let first = leaving.scene.disk.clone();
    order(leaving.here(), "");
    order(leaving.destination(), "");
    let ordered = orders(leaving.destination());
    let address = leaving.receives_with(|command| _ = command.env(ORDERS, ordered));
    let _ = leaving.goes(&address, NOT_BY_ITSELF);
    leaving.scene.console.verifies_blocks();
    let before = hash(&first);
    let served = leaving.served().remove(0);
    let job = leaving.job(|_| true);
    assert_eq!(job["state"], "paused", "{job:#}");
    assert_eq!(job["from"], served["listen"], "{job:#}");
    assert!(job["progress"]["class_bytes"]["demand"].as_u64() > Some(0));
    assert_eq!(job["progress"]["class_bytes"]["background"], 0, "{job:#}");

    // Where it is served.
    leaving.kills_server();
    order(leaving.here(), "data read EIO\ndata map EIO\n");
    let ordered = orders(leaving.here());
    let server = leaving.serves_again(|command| _ = command.env(ORDERS, ordered));
    waits_and_goes_on(&mut leaving, "disk.source-lost", |leaving| {
        order(leaving.here(), "");
    });
    // Where it comes, which is no loss of its source. What the guest asks for now was never written there.
    leaving.pulls(&["--on-source-loss", "error:0ms"]);
    order(leaving.destination(), "data write-zeroes EIO\n");
    waits_and_goes_on(&mut leaving, "disk.not-stored", |leaving| {
        order(leaving.destination(), "");
    });

    let id = job["id"].as_str().expect("id");
    let steered = |what: &[&str]| {
        let all = [&["disk", "jobs", "guest"], what].concat();
        let _ = leaving.destination().vmm(all).success();
    };
    steered(&["--set", "data,bandwidth=1MiB/s"]);
    leaving.pulls(&[]);
    let ahead = |job: &serde_json::Value| job["progress"]["class_bytes"]["background"].as_u64();
    let running = leaving.job(|job| job["state"] == "running" && ahead(job) > Some(0));
    assert_eq!(running["limits"]["bandwidth_bytes_per_s"], 1 << 20);
    steered(&["--pause", id]);
    leaving.job(|job| job["state"] == "paused");
    let cancel = ["disk", "jobs", "guest", "--cancel", id];
    let refused = leaving.destination().vmm(cancel).expect_code(1).stderr;
    assert!(refused.contains("job.no-cancel"), "{refused}");
    // What nobody writes but the pull.
    order(leaving.destination(), "data write EIO 33554432+25165824\n");
    steered(&["--resume", id]);
    leaving.job(|job| job["held_up_by"]["id"] == "disk.not-stored");
    order(leaving.destination(), "");
    steered(&["--set", "data,bandwidth=unlimited"]);
    leaving.pulls(&["--priority", "high"]);
    let over = leaving.job(|job| job["state"] == "concluded");
    assert_eq!(over["result"]["outcome"], "completed", "{over:#}");
    leaving.becomes_whole();
    let _ = server.finish(PATIENCE).expect("it is released").success();
    leaving.scene.console.verifies_blocks();
    leaving.destination().stop("guest");
    holds_its_content(&leaving.there);
    assert_eq!(
        hash(&first),
        before,
        "the image that was served was written"
    );
    leaving.scene.pair.is_clean();
}

/// Takes what room there is beside `image`, until the file that is returned goes.
fn filled(image: &Path) -> PathBuf {
    let other = image.with_file_name("other");
    let written = fs::write(&other, vec![1; 64 << 20]);
    assert!(written.is_err(), "it has room for all");
    other
}

#[test]
fn a_server_that_stands_still_and_storage_without_room_are_waited_for() {
    let Some(_lock) = guest_lock() else { return };
    let mut leaving = Leaving::slowly("small/there.raw");
    let folder = leaving.there.parent().expect("folder").to_owned();
    let mounted = match Mounted::at(folder, "63M") {
        Ok(mounted) => mounted,
        Err(why) => {
            println!("{}", skip::line(format_args!("{why}")));
            leaving.here().stop("guest");
            return;
        }
    };
    let address = leaving.receives(&[]);
    let _ = leaving.goes(&address, NOT_BY_ITSELF);
    leaving.scene.console.verifies_blocks();
    // Not cut: what is sent to it arrives, and nothing comes back.
    let server = leaving.server();
    signal(server, Signal::STOP);
    waits_and_goes_on(&mut leaving, "disk.source-lost", |_| {
        signal(server, Signal::CONT);
    });
    // What is missing finds no room, and the guest hears of what it writes itself into holes of its image.
    let other = filled(&leaving.there);
    leaving.scene.console.knows_of_disk_faults();
    leaving.pulls(&[]);
    let full = leaving.job(|job| job["held_up_by"]["id"] == "disk.not-stored");
    assert_eq!(full["state"], "running", "{full:#}");
    leaving.scene.console.verifies_ledger();
    fs::remove_file(&other).expect("room again");
    leaving.becomes_whole();
    leaving.scene.console.verifies_blocks();
    leaving.destination().stop("guest");
    holds_its_content(&leaving.there);
    drop(mounted);
    leaving.scene.pair.is_clean();
}
