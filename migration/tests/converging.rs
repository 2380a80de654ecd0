//! What is sent twice, how passes follow each other, and that a limit is a promise.

mod double;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use double::scene::{HOT, SLOW, Scene, ignore};
use double::{Destination, Guest, Source};
use migration::Outcome;
use migration::observation::Observation;
use migration::progress::{Event, Iteration, Limits, Report, TimeoutAction, Verify};
use migration::steering::{Events, Steering};
use migration::units::Span;
use migration::vm::{Rehearsal, RunState};

/// A limit that is no matter.
const LAX: Limits = Limits {
    downtime: Duration::from_secs(20),
    bandwidth: None,
};

fn completed(outcome: Outcome) -> Report {
    match outcome {
        Outcome::Completed(report) => report,
        other => panic!("{other:?}"),
    }
}

fn iterations(report: &Report) -> &[Iteration] {
    report.iterations.as_deref().unwrap()
}

/// Reads events until the warning `id`.
fn wait_for_warning(events: &Events, id: &str) -> Observation {
    events
        .iter()
        .find_map(|event| match event {
            Event::Warning { observation } if observation.id == id => Some(observation),
            _ => None,
        })
        .unwrap_or_else(|| panic!("it ended without the warning {id}"))
}

#[test]
fn what_was_loaded_and_read_from_disks_before_is_sent_once() {
    let mut scene = Scene::new(Guest::Idle);
    let [here, _] = scene.run(ignore);
    let report = completed(here);
    // The page that a device writes while its state is saved comes again.
    let raw = report.encodings["raw"].pages;
    assert!((900..=901).contains(&raw), "{raw} pages sent of 900");
    for later in &iterations(&report)[1..] {
        assert_eq!(later.pages, 0, "{later:?}");
    }
    assert!(scene.vm.contents() == scene.into.contents());
}

#[test]
fn a_second_attempt_sends_what_devices_wrote_between_once() {
    let mut scene = Scene::new(Guest::Idle);
    scene.into.refuse = double::Refuse::LoadState;
    let [here, _] = scene.run(ignore);
    assert!(matches!(here, Outcome::Failed(_)), "{here:?}");
    scene.vm.fill(1, 0, 100);
    let mut again = Scene {
        into: Destination::new(&scene.witness),
        ..scene
    };
    again.options.id = migration::MigrationId::random().unwrap();
    let [here, _] = again.run(ignore);
    let raw = completed(here).encodings["raw"].pages;
    assert!((1000..=1001).contains(&raw), "{raw} pages sent of 1000");
    assert!(again.vm.contents() == again.into.contents());
}

#[test]
fn a_slow_flush_holds_up_no_pass_and_is_no_part_of_the_dirty_rate() {
    let flush = Duration::from_millis(400);
    let mut scene = Scene::new(Guest::Writes {
        pages: 500,
        pause: Duration::from_millis(1),
    });
    scene.vm.flush_takes = flush;
    scene.limit(LAX);
    let [here, _] = scene.run(ignore);
    let report = completed(here);
    // A page a millisecond at most, of which a short pass sees one. What is written in the time of a
    // flush would be hundreds of pages in a pass.
    for pass in iterations(&report) {
        assert!(pass.dirty_pages_per_s < 50_000.0, "{pass:?}");
        assert!(pass.ms < 400.0, "{pass:?}");
    }
    let last = iterations(&report).last().unwrap();
    assert!(last.pages < 300, "{last:?}");
    // The guest is stopped after a flush, and what that took is known.
    assert!(scene.vm.flushes.load(Ordering::SeqCst) >= 1);
    assert!(report.forecast_downtime_ms.unwrap() >= 400.0, "{report:?}");
}

/// Of a pass that takes longer than a flush stays fresh: the passes, and the flushes of the running guest.
fn slow_passes(writes_to_disks: bool) -> (usize, usize) {
    let mut scene = Scene::new(Guest::Idle);
    scene.vm.fill(1, 0, 1000);
    scene.vm.writes_to_disks = writes_to_disks;
    scene.limit(Limits {
        bandwidth: Some(8 << 20),
        ..LAX
    });
    let [here, _] = scene.run(ignore);
    let passes = completed(here).passes().unwrap();
    (passes as usize, scene.vm.flushes.load(Ordering::SeqCst))
}

#[test]
fn a_guest_that_writes_nothing_to_its_disks_needs_no_pass_beside_a_flush() {
    let (passes, flushes) = slow_passes(false);
    assert_eq!(flushes, 0);
    let (more, flushes) = slow_passes(true);
    assert!(flushes > 0);
    assert!(passes < more, "{passes} and {more}");
}

#[test]
fn a_guest_whose_passes_take_long_is_stopped_all_the_same() {
    let mut scene = Scene::new(HOT);
    scene.limit(Limits {
        bandwidth: Some(4 << 20),
        ..LAX
    });
    let [here, _] = scene.run(ignore);
    // The second or third is only there to be flushed beside.
    let report = completed(here);
    assert!(report.passes().unwrap() <= 8, "{report:?}");
}

#[test]
fn passes_and_flushes_that_bring_nothing_are_rare_and_new_limits_act_at_once() {
    let mut scene = Scene::new(Guest::Idle);
    scene.vm.rehearsal.save = Duration::from_millis(50);
    scene.limit(Limits {
        downtime: Duration::from_millis(20),
        bandwidth: None,
    });
    let began = Instant::now();
    let [here, _] = scene.run(|steering, events| {
        let passes = events.iter().filter(|e| matches!(e, Event::Iteration(_)));
        let eighth = passes.take(8).last().unwrap();
        // 20 ms before the second or third, and twice that before each further one.
        assert!(began.elapsed() > Duration::from_millis(600), "{eighth:?}");
        steering.set_limits(LAX);
    });
    let report = completed(here);
    assert!(report.passes().unwrap() < 20, "{report:?}");
    assert!(scene.vm.flushes.load(Ordering::SeqCst) < 20);
}

#[test]
fn a_guest_is_not_stopped_beyond_the_limit_though_nothing_is_left() {
    let mut scene = Scene::new(Guest::Idle);
    scene.vm.rehearsal = Rehearsal {
        stop: Duration::from_millis(2),
        save: Duration::from_millis(50),
    };
    scene.options.request.downtime_limit = Span(Duration::from_millis(20));
    scene.options.request.timeout = Some(Span(Duration::from_secs(1)));
    let [here, _] = scene.run(|_, events| {
        let warning = wait_for_warning(&events, "migration.limit-too-strict");
        let message = warning.message;
        assert!(
            message.contains("saving and loading its state"),
            "{message}"
        );
        assert!(message.contains("--set downtime-limit="), "{message}");
    });
    let Outcome::Failed(report) = here else {
        panic!("{here:?}")
    };
    assert_eq!(report.error.unwrap().root().id, "migration.timed-out");
    assert_eq!(scene.vm.pauses.load(Ordering::SeqCst), 0, "it was stopped");
    scene.assert_kept();

    // Unless that was asked for.
    let mut scene = Scene::new(Guest::Idle);
    scene.vm.rehearsal.save = Duration::from_millis(50);
    scene.options.request.downtime_limit = Span(Duration::from_millis(20));
    scene.options.request.timeout = Some(Span(Duration::from_millis(300)));
    scene.options.request.on_timeout = TimeoutAction::Stop;
    let [here, _] = scene.run(ignore);
    assert!(completed(here).forecast_downtime_ms.unwrap() >= 100.0);
}

#[test]
fn a_limit_that_fits_what_was_measured_can_be_small() {
    let mut scene = Scene::new(Guest::Idle);
    scene.vm.rehearsal = Rehearsal {
        stop: Duration::from_micros(50),
        save: Duration::from_micros(100),
    };
    // Less than what was once taken for granted; answers within this process take microseconds, but on
    // a busy machine the quickest of them may have taken longer.
    scene.options.request.downtime_limit = Span(Duration::from_millis(3));
    scene.options.request.timeout = Some(Span(Duration::from_secs(20)));
    let [here, _] = scene.run(ignore);
    let forecast = completed(here).forecast_downtime_ms.unwrap();
    assert!((0.25..=3.0).contains(&forecast), "{forecast}");
}

#[test]
fn a_guest_that_its_user_paused_moves_under_any_limit() {
    let mut scene = Scene::new(Guest::Idle);
    scene.vm = scene.vm.paused_by_user();
    scene.vm.rehearsal.save = Duration::from_secs(5);
    scene.options.request.downtime_limit = Span(Duration::from_millis(1));
    let [here, there] = scene.run(ignore);
    assert_eq!(completed(here).run_state, RunState::Paused);
    assert_eq!(completed(there).run_state, RunState::Paused);
}

fn hashed(verify: Verify, downtime: Duration) -> Scene {
    let witness = std::sync::Arc::default();
    let vm = Source::new(32_000, Guest::Idle, &witness);
    vm.fill(0, 0, 15_000);
    let mut scene = Scene {
        into: Destination::new(&witness),
        vm,
        witness,
        ..Scene::new(Guest::Idle)
    };
    scene.options.request.verify = verify;
    scene.options.request.downtime_limit = Span(downtime);
    scene
}

#[test]
fn hashing_all_memory_counts_in_forecast_and_limit() {
    let forecast = |verify| {
        let [here, _] = hashed(verify, LAX.downtime).run(ignore);
        completed(here).forecast_downtime_ms.unwrap()
    };
    let (with, without) = (forecast(Verify::Full), forecast(Verify::Off));
    assert!(with > without, "{with} {without}");

    // 60 MiB are not hashed within a millisecond.
    let mut scene = hashed(Verify::Full, Duration::from_millis(1));
    scene.options.request.timeout = Some(Span(Duration::from_secs(2)));
    let [here, _] = scene.run(|_, events| {
        let warning = wait_for_warning(&events, "migration.limit-too-strict");
        assert!(warning.message.contains("hashing its memory"), "{warning}");
    });
    assert!(matches!(here, Outcome::Failed(_)), "{here:?}");
    assert_eq!(scene.vm.pauses.load(Ordering::SeqCst), 0, "it was stopped");
    scene.assert_kept();
}

#[test]
fn reports_tell_the_run_state_in_which_the_guest_was_moved() {
    let mut scene = Scene::new(HOT);
    scene.limit(SLOW);
    let [here, there] = scene.run_with(|vm, steering, events| {
        let _ = events.iter().find(|e| matches!(e, Event::Progress { .. }));
        vm.user_pauses();
        steering.set_limits(LAX);
    });
    assert_eq!(completed(here).run_state, RunState::Paused);
    assert_eq!(completed(there).run_state, RunState::Paused);
    assert_eq!((scene.into.started, scene.into.held), (0, 1));
}

#[test]
fn reports_of_a_guest_that_stays_tell_its_run_state_then() {
    let mut scene = Scene::new(HOT);
    scene.limit(SLOW);
    let [here, _] = scene.run_with(|vm, steering: &Steering, events| {
        let _ = events.iter().find(|e| matches!(e, Event::Progress { .. }));
        vm.user_pauses();
        steering.cancel();
    });
    let Outcome::Cancelled(report) = here else {
        panic!("{here:?}")
    };
    assert_eq!(report.run_state, RunState::Paused);
}
