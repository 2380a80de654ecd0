//! A disk that is to move to another image, and its guest that is to leave, at the same time: one of them is refused, by
//! the name of what is in its way and with the command that ends that.

use tests::blackbox::moving_disk::{SLOW, Scene, move_args};
use tests::blackbox::wait::PATIENCE;
use tests::blackbox::{Migration, Vms, eventually, guest_lock, holds};
use tests::process::Process;

/// Slow enough that it goes on until it is cancelled.
const SLOW_MIGRATION: &[&str] = &["--bandwidth", "1MiB/s"];

fn migrates<'a>(address: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let args = ["migrate", "guest", "--to", address];
    args.into_iter().chain(more.iter().copied()).collect()
}

/// Why a command that has been started was refused.
#[track_caller]
fn refused(process: Process) -> String {
    let ended = process.finish(PATIENCE).expect("it ends");
    ended.expect_code(1).stderr
}

#[test]
fn a_guest_stays_while_its_disk_moves_and_leaves_when_that_is_cancelled_as_told() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let address = scene.pair.destination.receive("there", "127.0.0.1:0");
    let (running, id) = scene.begins(&scene.path("there.raw"), SLOW);
    let command = format!("vmm disk jobs guest --cancel {id}");
    for _ in 0..2 {
        let run = scene.host().vmm(migrates(&address, &[]));
        let said = run.expect_code(1).stderr;
        assert!(
            said.contains("disk data is being moved") && said.contains(&command),
            "{said}"
        );
    }
    assert_eq!(scene.job(&id)["state"], "running");
    let _ = scene.host().vmm(command.split(' ').skip(1)).success();
    let _ = running.finish(PATIENCE).expect("it ends").expect_code(4);
    let _ = Migration::start(scene.host(), "guest", &address, &[])
        .finish()
        .completed();
    scene.console.moves_to(&scene.pair.destination, "there");
    scene.goes_on();
    scene.pair.destination.stop("there");
    scene.pair.is_clean();
}

#[test]
fn a_disk_stays_while_its_guest_leaves_and_moves_when_that_is_cancelled_as_told() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let there = scene.path("there.raw");
    let address = scene.pair.destination.receive("there", "127.0.0.1:0");
    let mut leaving = Migration::start(scene.host(), "guest", &address, SLOW_MIGRATION);
    leaving.wait_progress();
    let said = refused(scene.host().spawn(move_args("guest:data", &there, &[])));
    let command = "vmm migrate guest --cancel";
    assert!(
        said.contains("a migration of this VM is running") && said.contains(command),
        "{said}"
    );
    assert!(!there.exists(), "what was made for the disk is left");
    let _ = scene.host().vmm(command.split(' ').skip(1)).success();
    let _ = leaving.finish().ended(4, "cancelled");
    let _ = scene.moves(&there, &[]);
    scene.goes_on();
    scene.is_at(&there);
    scene.host().stop("guest");
    let _ = scene.pair.destination.vmm(["stop", "there", "--force"]);
    scene.pair.is_clean();
}

#[test]
fn of_two_migrations_and_a_move_of_one_disk_at_once_one_goes_on() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let first = scene.disk.clone();
    let there = scene.path("there.raw");
    let destination = &scene.pair.destination;
    let addresses = ["one", "two"].map(|name| destination.receive(name, "127.0.0.1:0"));
    let slow_move = move_args("guest:data", &there, &["--bandwidth", "1MiB/s"]);
    let mut all = vec![scene.host().spawn(slow_move)];
    for address in &addresses {
        let args = migrates(address, SLOW_MIGRATION);
        all.push(scene.host().spawn(args));
    }
    let job = eventually("one of them goes on", || {
        let jobs = scene.host().jobs("guest");
        jobs.into_iter().find(|job| job["state"] == "running")
    });
    let id = job["id"].as_str().expect("id").to_owned();
    holds("the others are refused", || {
        let running = all
            .iter_mut()
            .filter_map(|one| one.is_running().then_some(()));
        running.count() == 1
    });
    let at = all.iter_mut().position(Process::is_running);
    let one = all.remove(at.expect("the one that goes on"));
    for said in all.into_iter().map(refused) {
        assert!(
            said.contains("is being moved") || said.contains("migration of this VM"),
            "{said}"
        );
    }
    assert_eq!(scene.job(&id)["state"], "running");
    scene.goes_on();
    let cancel = ["jobs", "guest", &id, "--cancel"];
    let _ = scene.host().vmm(cancel).success();
    let _ = one.finish(PATIENCE).expect("it ends").expect_code(4);
    scene.is_at(&first);
    // Nothing of any of them is in the way.
    let _ = scene.moves(&there, &[]);
    scene.goes_on();
    scene.is_at(&there);
    scene.host().stop("guest");
    for name in ["one", "two"] {
        let _ = scene.pair.destination.vmm(["stop", name, "--force"]);
    }
    scene.pair.is_clean();
}
