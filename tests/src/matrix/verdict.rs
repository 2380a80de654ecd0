//! Checks what became of a migration: the reports of both sides, the guest, and what is left.

use std::path::Path;

use serde_json::Value;

use super::scene::{NAME, Scene};
use super::{End, Receiver, Whereabouts, standing};
use crate::Host;
use crate::blackbox::wait::PATIENCE;
use crate::blackbox::{Vms, holds, leftovers};
use crate::process::Outcome;

/// Checks everything, and ends what still runs.
///
/// # Panics
/// When anything is not as `end` says.
pub fn check(mut scene: Scene, end: &End) {
    reported(&mut scene, end);
    resolve(&mut scene, end.guest);
    let mut scene = received(scene, end);
    lives(&mut scene, end.guest);
    scene.pair.is_clean();
    let images = std::iter::once(&scene.disk).chain(&scene.travels_to);
    for image in images.filter(|image| image.exists()) {
        // A process is gone before the kernel has closed its locks.
        holds("nobody claims the disk any more", || {
            !leftovers::is_locked(image)
        });
    }
    if let Some(there) = &scene.travels_to {
        images_tell(&scene, there, end.guest);
    }
}

/// Checks that of the two images of a disk that travelled the one is used that the guest had, and the other is not.
fn images_tell(scene: &Scene, there: &Path, guest: Whereabouts) {
    let pair = &scene.pair;
    let [here, there] = [(&pair.source, &*scene.disk), (&pair.destination, there)];
    let (had, other) = match guest {
        Whereabouts::Source | Whereabouts::UnknownNever | Whereabouts::Nowhere => (here, there),
        Whereabouts::Destination
        | Whereabouts::PausedThere
        | Whereabouts::UnknownRan
        | Whereabouts::UnknownRanAndKilled => (there, here),
    };
    let run = |(host, image): (&Host, &Path)| {
        let disk = image.display().to_string();
        host.vmm(["run", "after", "--detach", "--disk", &disk])
    };
    // Where nobody was killed, what was made for a guest that did not come is gone.
    if other.1.exists() {
        crate::blackbox::fails(run(other), 1, &["--use-stale"]);
    } else {
        assert_eq!(other.1, there.1, "the image at the source is gone");
    }
    let _ = run(had).success();
    had.0.stop("after");
    pair.is_clean();
}

/// Identifiers of an error and of all that explains it, outermost first.
pub fn chain(error: &Value) -> Vec<String> {
    let mut ids = Vec::new();
    collect(error, &mut ids);
    ids
}

fn collect(error: &Value, ids: &mut Vec<String>) {
    if let Some(id) = error["id"].as_str() {
        ids.push(id.to_owned());
    }
    for cause in error["causes"].as_array().into_iter().flatten() {
        collect(cause, ids);
    }
}

/// Checks that an error names these, in this order and the root cause last.
#[track_caller]
pub fn names(error: &Value, wanted: &[&str]) {
    let ids = chain(error);
    let mut found = ids.iter();
    // `a|b`: either will do.
    let fits = |wanted: &str, found: &String| wanted.split('|').any(|id| id == found);
    for id in wanted {
        assert!(
            found.any(|found| fits(id, found)),
            "{id} is missing, or out of order, in {ids:?} of {error:#}"
        );
    }
    if let Some(root) = wanted.last() {
        let last = ids.last();
        assert!(
            last.is_some_and(|last| fits(root, last)),
            "{root} is not the root cause, in {ids:?} of {error:#}"
        );
    }
    assert_eq!(
        wanted.is_empty(),
        ids.is_empty(),
        "an error where none was, or none where one was: {error:#}"
    );
}

fn reported(scene: &mut Scene, end: &End) {
    let ended = scene.ended();
    assert_eq!(ended.code, end.code, "{:#} {}", ended.report, ended.err);
    assert!(!ended.err.contains("panicked"), "{}", ended.err);
    if let Some(status) = end.status {
        assert_eq!(ended.report["status"], status, "{:#}", ended.report);
    }
    names(&ended.report["error"], end.chain);
    if end.code == 0 {
        let report = ended.completed();
        // Nor one of which the user heard while it lasted.
        assert!(report["warnings"].is_null(), "{report:#}");
    }
}

fn unknown(scene: &Scene) {
    let status = scene.pair.source.status(NAME);
    assert_eq!(status["state"], "handover-unknown", "{status:#}");
    // The guest cannot be let run, moved or ended by accident.
    for args in [
        &["resume", NAME][..],
        &["stop", NAME, "--force"],
        &["migrate", NAME, "--to", "127.0.0.1:1"],
    ] {
        crate::blackbox::fails(scene.pair.source.vmm(args), 1, &["--resolve"]);
    }
}

/// Resolves what is not known.
fn resolve(scene: &mut Scene, guest: Whereabouts) {
    let again = match guest {
        Whereabouts::UnknownRan => false,
        Whereabouts::UnknownNever | Whereabouts::UnknownRanAndKilled => true,
        _ => return,
    };
    unknown(scene);
    // While nobody can be asked, it stays unknown.
    if scene.relay.is_down() {
        let _ = scene
            .pair
            .source
            .vmm(["migrate", NAME, "--resolve"])
            .expect_code(3);
        unknown(scene);
    }
    if again && !scene.receiver.is_running() {
        // Whoever listens there now has its journal.
        if matches!(guest, Whereabouts::UnknownRanAndKilled) {
            scene.pair.destination.is_swept();
        }
        let listen = scene.address.clone();
        scene.pair.destination.receive("answers", &listen);
    }
    scene.relay.go_on();
    // Nobody asks for it.
    let source = &scene.pair.source;
    if guest == Whereabouts::UnknownNever {
        source.wait_state(NAME, "running");
        let status = source.status(NAME);
        assert_eq!(status["migration"]["resolution"], "never-ran", "{status:#}");
    } else {
        holds("the source ends", || source.processes().is_empty());
    }
    if scene.pair.destination.state("answers").is_some() {
        scene.pair.destination.stop("answers");
    }
}

/// Checks what the receiver said, if it ended.
fn received(mut scene: Scene, end: &End) -> Scene {
    let (code, ids) = match end.receiver {
        Receiver::Holds => {
            assert!(scene.receiver.is_running(), "{}", scene.receiver.stderr());
            return scene;
        }
        Receiver::Waits(ids) => return waits(scene, ids),
        Receiver::Killed => (128 + 9, None),
        Receiver::Ends(code, ids) => (code, Some(ids)),
    };
    holds("the receiver ends", || !scene.receiver.is_running());
    let idle = scene.pair.destination.spawn(["list"]);
    let receiver = std::mem::replace(&mut scene.receiver, idle);
    let outcome = receiver
        .finish(PATIENCE)
        .unwrap_or_else(|e| panic!("{e:#}"));
    let outcome = outcome.expect_code(code);
    assert!(!outcome.stderr.contains("panicked"), "{outcome}");
    if let Some(ids) = ids {
        names(&last_error(&outcome), ids);
    }
    scene
}

/// Checks that the receiver goes on waiting with nothing of the migration, and ends it.
fn waits(mut scene: Scene, ids: &[&str]) -> Scene {
    let destination = &scene.pair.destination;
    holds("the receiver waits on", || {
        destination.status(NAME)["failed_migrations"] == 1
    });
    let status = destination.status(NAME);
    assert_eq!(status["state"], "incoming", "{status:#}");
    names(&status["last_failure"], ids);
    let pid = destination.pid(NAME);
    holds("nothing of the migration is left", || {
        leftovers::memories(pid) == 0 && leftovers::machines(pid) == 0
    });
    // Told at most once a second.
    holds("the receiver has said so", || {
        scene.receiver.stdout().contains("\"failed_migrations\":1")
            && scene.receiver.stderr().contains("goes on waiting at")
    });
    destination.stop(NAME);
    let idle = destination.spawn(["list"]);
    let receiver = std::mem::replace(&mut scene.receiver, idle);
    let outcome = receiver
        .finish(PATIENCE)
        .unwrap_or_else(|e| panic!("{e:#}"));
    let outcome = outcome.expect_code(0);
    assert!(!outcome.stderr.contains("panicked"), "{outcome}");
    // It said so to programs, and to people.
    let lines = outcome.json_lines();
    let told = lines.iter().find(|line| line["failed_migrations"] == 1);
    names(
        &told.unwrap_or_else(|| panic!("{outcome}"))["last_failure"],
        ids,
    );
    assert!(outcome.stderr.contains("goes on waiting at"), "{outcome}");
    scene
}

/// The error with which a command ended that prints JSON.
fn last_error(outcome: &Outcome) -> Value {
    let last = outcome.json_lines().pop().unwrap_or_default();
    last["error"].clone()
}

/// Checks that the guest lives where it must and nowhere else, and ends it.
fn lives(scene: &mut Scene, guest: Whereabouts) {
    let ended = scene.ended();
    let Scene {
        pair,
        console,
        source_killed,
        before,
        disk,
        travels_to,
        ..
    } = scene;
    let there = match guest {
        Whereabouts::Source | Whereabouts::UnknownNever => &pair.source,
        Whereabouts::Destination | Whereabouts::PausedThere | Whereabouts::UnknownRan => {
            &pair.destination
        }
        Whereabouts::Nowhere | Whereabouts::UnknownRanAndKilled => {
            pair.source.is_swept();
            return pair.destination.is_swept();
        }
    };
    if std::ptr::eq(there, &pair.destination) {
        if *source_killed {
            pair.source.is_swept();
        } else {
            pair.source.is_clean();
        }
        console.moves_to(there, NAME);
        if guest == Whereabouts::PausedThere {
            assert_eq!(there.status(NAME)["state"], "paused");
            let _ = there.vmm(["resume", NAME]).success();
        }
        let disk = travels_to.as_ref().unwrap_or(disk);
        standing::settles(there, disk, None);
        standing::is_remembered(&there.status(NAME), None);
    } else {
        pair.destination.is_swept();
        standing::settles(there, disk, Some(before));
        standing::is_remembered(&there.status(NAME), Some(&ended.report));
    }
    let status = there.status(NAME);
    assert_eq!(status["state"], "running", "{status:#}");
    standing::is_listed(there);
    console.wait_tick();
    console.verifies_ledger();
    console.verifies_blocks();
    console.ticks_once();
    there.stop(NAME);
}
