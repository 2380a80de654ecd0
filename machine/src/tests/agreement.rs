//! Versions of the state are compared before anything moves, whatever else may differ.

use std::sync::Arc;

use control::instance::VmState;
use migration::journal::MemoryJournal;
use migration::observation::Observation;
use migration::request::MigrateRequest;
use migration::steering::Steering;
use migration::transport::socket::SocketConnect;
use migration::vm::{DestinationMachine, SourceMachine};
use migration::{MigrationId, Outcome, source};

use crate::moving::source::MachineSource;
use crate::power::PauseReason;
use crate::snapshot::agreement::Known;
use crate::snapshot::{codec, saved};
use crate::state::components;
use crate::state::{Form, MachineState, RunStateV1};
use crate::tests::moving::{Host, destination, endpoint};
use crate::tests::{COUNTING, count, has_kvm, machine, wait_for_count_beyond};

/// The components of `known` after `change`.
fn changed(known: &Known, change: impl FnOnce(&mut serde_json::Value)) -> Known {
    let mut offer: serde_json::Value = serde_json::from_str(&known.to_json()).unwrap();
    change(&mut offer["components"]);
    Known::from_json(&offer.to_string()).unwrap()
}

/// Everything that an observation says.
fn text(observation: &Observation) -> String {
    let causes = observation.causes.iter().map(text);
    std::iter::once(observation.message.clone())
        .chain(causes)
        .collect::<Vec<_>>()
        .join(" | ")
}

#[test]
fn what_the_destination_cannot_read_is_refused_by_name_before_anything_moves() {
    if !has_kvm() {
        return;
    }
    type Change = fn(&mut serde_json::Value);
    let cases: [(Change, &str); 4] = [
        // One device has got a version that the destination does not know, the others have not.
        (
            |offer| offer["rtc"] = [2, 2].into(),
            "rtc: the source saves version 2, the destination loads version 1",
        ),
        (
            |offer| offer["virtio-rng"] = [3, 4].into(),
            "virtio-rng: the source saves versions 3 to 4, the destination loads version 1",
        ),
        (
            |offer| offer["balloon"] = [1, 1].into(),
            "balloon: the source saves version 1, the destination does not know it",
        ),
        (
            |offer| drop(offer.as_object_mut().unwrap().remove("pit")),
            "pit: the destination loads version 1, the source does not save it",
        ),
    ];
    for (change, expected) in cases {
        let (machine, _ends) = machine(&COUNTING);
        let machine = Arc::new(machine);
        machine.resume(PauseReason::NotStarted).unwrap();
        let offer = changed(&components::of(machine.spec()), change);
        let vm = MachineSource::new(machine.clone(), "guest").writing(offer);
        let there = Host::new();
        let target = destination(&there);
        let address = endpoint(&target.status().listen.unwrap());
        let outcome = source::migrate(
            &vm,
            &SocketConnect::new(address.clone()).unwrap(),
            &source::Options::new(
                MigrationId::random().unwrap(),
                MigrateRequest::new(address.to_string()),
            ),
            &Steering::new(),
            &MemoryJournal::default(),
        );
        let Outcome::Failed(report) = outcome else {
            panic!("{outcome:?}")
        };
        let told = report.error.unwrap();
        assert_eq!(told.phase.as_deref(), Some("negotiate"), "{told}");
        assert!(text(&told).contains(expected), "{}", text(&told));
        assert_eq!(
            report.wire_bytes,
            report.wire_bytes.min(64 << 10),
            "no page was sent"
        );
        wait_for_count_beyond(&machine, count(&machine));
        assert_ne!(target.status().state, VmState::Running);
    }
}

#[test]
fn what_an_older_destination_cannot_read_is_refused_by_name() {
    if !has_kvm() {
        return;
    }
    let (machine, _ends) = machine(&COUNTING);
    let machine = Arc::new(machine);
    let known = components::of(machine.spec());
    let source = |known| MachineSource::new(machine.clone(), "guest").writing(known);
    source(known.clone()).agree_on_state(None).unwrap();
    let newer = changed(&known, |offer| offer["rtc"] = [1, 2].into());
    source(newer).agree_on_state(None).unwrap();
    let unfit = changed(&known, |offer| {
        offer["rtc"] = [2, 3].into();
        offer["tpm"] = [1, 1].into();
    });
    let refused = source(unfit).agree_on_state(None).unwrap_err();
    assert_eq!(refused.id, "negotiate.state");
    let said = text(&refused);
    assert!(
        said.contains("rtc: the destination wants version 1, the source saves versions 2 to 3"),
        "{said}"
    );
    assert!(said.contains("tpm: the source saves version 1"), "{said}");
}

#[test]
fn a_choice_that_was_not_offered_is_refused() {
    if !has_kvm() {
        return;
    }
    let (machine, _ends) = machine(&COUNTING);
    let source = MachineSource::new(Arc::new(machine), "guest");
    for choice in [
        "",
        "{}",
        r#"{"components":{}}"#,
        r#"{"components":{"rtc":7}}"#,
    ] {
        let refused = source.agree_on_state(Some(choice)).unwrap_err();
        assert_eq!(refused.id, "negotiate.state", "{choice}");
    }
}

#[test]
fn the_state_travels_in_the_form_that_was_agreed_on() {
    if !has_kvm() {
        return;
    }
    let (machine, _ends) = machine(&COUNTING);
    let machine = Arc::new(machine);
    let spec = machine.spec().clone();
    let source = MachineSource::new(machine, "guest");
    source.pause().unwrap();
    let newest = components::of(&spec).newest();
    for (chosen, version) in [(None, 1), (Some(newest.to_json()), saved::SAVED_VERSION)] {
        source.agree_on_state(chosen.as_deref()).unwrap();
        let blob = source.save_state().unwrap();
        assert_eq!(codec::version(&blob).unwrap(), version);
        let state = MachineState::decode(&blob, &spec).unwrap();
        assert_eq!(state.run, RunStateV1::Running);
        // What was offered is what is saved, neither more nor less.
        let form = Form::Components(newest.clone());
        assert!(state.encode(&form).is_ok());
    }
}

#[test]
fn an_older_source_is_answered_nothing_and_a_newer_one_what_to_write() {
    if !has_kvm() {
        return;
    }
    let (machine, _ends) = machine(&COUNTING);
    let description = machine.spec().describe("guest").unwrap();
    let mut vm = crate::moving::destination::tests::nowhere();
    assert_eq!(vm.choose_state(&description, None).unwrap(), None);
    let known = components::of(machine.spec());
    let offer = changed(&known, |offer| offer["rtc"] = [1, 5].into());
    let chosen = vm.choose_state(&description, Some(&offer.to_json()));
    assert_eq!(chosen.unwrap(), Some(known.newest().to_json()));
    let older = first_of_transports(&known);
    let chosen = vm.choose_state(&description, Some(&older.to_json()));
    assert_eq!(chosen.unwrap(), Some(older.newest().to_json()));
    let refused = vm.choose_state(&description, Some("{")).unwrap_err();
    assert_eq!(refused.id, "negotiate.state");
}

/// `known`, but of virtio transports the first version only.
fn first_of_transports(known: &Known) -> Known {
    changed(known, |offer| {
        for (id, versions) in offer.as_object_mut().unwrap() {
            if id.starts_with("virtio-mmio") {
                *versions = [1, 1].into();
            }
        }
    })
}

#[test]
fn the_state_is_written_as_was_agreed_and_not_in_the_newest_form() {
    if !has_kvm() {
        return;
    }
    let (machine, _ends) = machine(&COUNTING);
    let machine = Arc::new(machine);
    machine.resume(PauseReason::NotStarted).unwrap();
    let vm = MachineSource::new(machine.clone(), "guest");
    vm.pause().unwrap();
    let saved = |agreed: &Known| {
        vm.agree_on_state(Some(&agreed.newest().to_json())).unwrap();
        vm.save_state().unwrap()
    };
    let known = components::of(machine.spec());
    let older = first_of_transports(&known);
    assert_ne!(older.newest(), known.newest());
    let (old, new) = (saved(&older), saved(&known));
    let read = |blob: &[u8]| MachineState::decode(blob, machine.spec()).unwrap();
    let again = |blob: &[u8], form: &Known| {
        let form = Form::Components(form.newest());
        read(blob).encode(&form).unwrap()
    };
    assert_eq!(again(&old, &older), old);
    assert_eq!(again(&new, &known), new);
    assert_ne!(again(&old, &known), old);
}
