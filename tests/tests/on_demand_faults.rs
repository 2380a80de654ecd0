//! Guests whose disk is fetched while they run, and whoever has it is lost, slow or broken: they hear what they were to hear, never of
//! zeroes, and go on.

use serde_json::json;
use tests::blackbox::leaving::{Leaving, hash};
use tests::blackbox::moving_disk::{CHECK, holds_its_content, options_of};
use tests::blackbox::wait::PATIENCE;
use tests::blackbox::{Guest, Vms, eventually, guest_lock};

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
