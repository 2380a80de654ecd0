//! The two-step hand-over, model-checked: messages get lost or late, either side crashes at any step
//! and comes back with its journal only, the guest may fail to start, the source may ask again.
//!
//! A process that crashes takes the guest that it holds with it; that is no fault of the hand-over.
//! The rules are the engine's (`source/handover.rs`, `destination/take.rs`, `journal.rs`); two
//! broken ones show that the model would see it.

use std::collections::BTreeSet;

use stateright::{Checker, Model, Property};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
enum Message {
    Ready,
    Commit,
    Committed,
    Resolve,
    Ran,
    NeverRan,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Source {
    /// The guest is stopped, everything was sent.
    WaitsForReady,
    /// The decision is recorded, nothing was sent.
    Decided,
    /// The commit may have arrived.
    CommitSent,
    /// The answer is missing.
    Unknown,
    /// The guest runs here again.
    Runs,
    /// The guest lives at the destination.
    Released,
    /// The process is gone, and the guest with it unless it was handed over.
    Crashed,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Destination {
    /// Everything is loaded, the source was told.
    Ready,
    /// The commit is recorded, no instruction was executed.
    Starting,
    Runs,
    /// Nothing is built; questions are answered from the journal.
    Empty,
    /// The process is gone.
    Down,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    source: Source,
    destination: Destination,
    /// The destination's journal: the decision, and what a commit was answered with.
    committed: Option<bool>,
    answered: Option<bool>,
    /// Answers that were ever given: never-ran, ran.
    given: [bool; 2],
    /// Whether the guest has executed instructions at the destination.
    ran: bool,
    network: BTreeSet<Message>,
    crashes: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Action {
    Deliver(Message),
    Lose(Message),
    SourceGivesUp,
    SourceSends,
    SourceMissesAnswer,
    SourceAsks,
    DestinationGivesUp,
    DestinationStarts,
    DestinationCannotStart,
    SourceCrashes,
    DestinationCrashes,
    DestinationReturns,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    Ours,
    /// A source that hears nothing takes the guest back.
    ResumeOnSilence,
    /// A destination says "never ran" without recording it first.
    AnswerUnrecorded,
    /// A source takes the guest back when its decision is recorded and the commit sent, on request.
    CancelAfterCommit,
}

struct Handover {
    rules: Rules,
}

impl Handover {
    fn answer(&self, state: &mut State) -> Message {
        if state.committed.is_none() && self.rules != Rules::AnswerUnrecorded {
            state.committed = Some(false);
        }
        let ran = match state.committed {
            Some(true) => *state.answered.get_or_insert(true),
            _ => false,
        };
        state.given[usize::from(ran)] = true;
        if ran { Message::Ran } else { Message::NeverRan }
    }

    fn deliver(&self, state: &mut State, message: Message) -> Option<()> {
        match (message, state.source, state.destination) {
            (Message::Ready, Source::WaitsForReady, _) => state.source = Source::Decided,
            (Message::Commit, _, Destination::Ready) => match state.committed {
                None => {
                    state.committed = Some(true);
                    state.destination = Destination::Starting;
                }
                Some(_) => {
                    state.destination = Destination::Empty;
                    let refusal = self.answer(state);
                    state.network.insert(refusal);
                }
            },
            (Message::Committed, Source::CommitSent, _) | (Message::Ran, Source::Unknown, _) => {
                state.source = Source::Released;
            }
            (Message::NeverRan, Source::CommitSent | Source::Unknown, _) => {
                state.source = Source::Runs;
            }
            // A question waits while the guest starts, and nobody answers when the process is gone.
            (Message::Resolve, _, Destination::Starting | Destination::Down) => return None,
            (Message::Resolve, _, _) => {
                let answer = self.answer(state);
                state.network.insert(answer);
            }
            // Too late: dropped.
            _ => {}
        }
        Some(())
    }

    fn act(&self, state: &mut State, action: Action) -> Option<()> {
        use Action::*;
        match action {
            Deliver(message) => {
                state.network.remove(&message);
                self.deliver(state, message)?;
            }
            Lose(message) => {
                state.network.remove(&message);
            }
            SourceGivesUp => state.source = Source::Runs,
            SourceSends => {
                state.source = Source::CommitSent;
                state.network.insert(Message::Commit);
            }
            SourceMissesAnswer if self.rules == Rules::ResumeOnSilence => {
                state.source = Source::Runs;
            }
            SourceMissesAnswer => state.source = Source::Unknown,
            SourceAsks => {
                state.network.insert(Message::Resolve);
            }
            DestinationGivesUp => {
                state.committed.get_or_insert(false);
                state.destination = Destination::Empty;
                let refusal = self.answer(state);
                state.network.insert(refusal);
            }
            DestinationStarts => {
                state.destination = Destination::Runs;
                state.ran = true;
                state.network.insert(Message::Committed);
            }
            DestinationCannotStart => {
                // Takes the commit back, unless someone was told that it ran.
                state.answered.get_or_insert(false);
                state.destination = Destination::Empty;
                // Told unless someone was told otherwise, unasked.
                if state.answered == Some(false) {
                    let refusal = self.answer(state);
                    state.network.insert(refusal);
                }
            }
            SourceCrashes => {
                state.crashes += 1;
                state.source = Source::Crashed;
            }
            DestinationCrashes => {
                state.crashes += 1;
                state.destination = Destination::Down;
            }
            DestinationReturns => state.destination = Destination::Empty,
        }
        Some(())
    }
}

impl Model for Handover {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            source: Source::WaitsForReady,
            destination: Destination::Ready,
            committed: None,
            answered: None,
            given: [false; 2],
            ran: false,
            network: BTreeSet::from([Message::Ready]),
            crashes: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for &message in &state.network {
            actions.extend([Action::Deliver(message), Action::Lose(message)]);
        }
        match state.source {
            Source::WaitsForReady => actions.push(Action::SourceGivesUp),
            Source::Decided => actions.extend([Action::SourceGivesUp, Action::SourceSends]),
            Source::CommitSent => {
                actions.push(Action::SourceMissesAnswer);
                if self.rules == Rules::CancelAfterCommit {
                    actions.push(Action::SourceGivesUp);
                }
            }
            // One that has crashed may be asked for by its user.
            Source::Unknown | Source::Crashed if !state.network.contains(&Message::Resolve) => {
                actions.push(Action::SourceAsks);
            }
            _ => {}
        }
        match state.destination {
            Destination::Ready => actions.push(Action::DestinationGivesUp),
            Destination::Starting => {
                actions.extend([Action::DestinationStarts, Action::DestinationCannotStart]);
            }
            Destination::Down => actions.push(Action::DestinationReturns),
            _ => {}
        }
        if state.crashes < 3 {
            if state.source != Source::Crashed {
                actions.push(Action::SourceCrashes);
            }
            if state.destination != Destination::Down {
                actions.push(Action::DestinationCrashes);
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.act(&mut state, action)?;
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("at most one side runs the guest", |_, s: &State| {
                !(s.source == Source::Runs && s.destination == Destination::Runs)
            }),
            Property::always(
                "a guest that ran there never runs here again",
                |_, s: &State| !(s.source == Source::Runs && s.ran),
            ),
            Property::always(
                "the source lets go only of a guest that was taken",
                |_, s: &State| s.source != Source::Released || s.committed == Some(true),
            ),
            Property::always("nothing runs there without its record", |_, s: &State| {
                !s.ran || s.committed == Some(true)
            }),
            Property::always("a question has one answer for ever", |_, s: &State| {
                s.given != [true, true]
            }),
            Property::always(
                "before the commit was sent the guest is here",
                |_, s: &State| {
                    !matches!(s.source, Source::WaitsForReady | Source::Decided) || !s.ran
                },
            ),
            Property::sometimes("the guest moves", |_, s: &State| {
                s.source == Source::Released && s.destination == Destination::Runs
            }),
            Property::sometimes("a lost answer is resolved to ran", |_, s: &State| {
                s.source == Source::Released && s.given[1] && s.destination == Destination::Runs
            }),
            Property::sometimes("a lost commit is resolved to never ran", |_, s: &State| {
                s.source == Source::Runs && s.given[0]
            }),
            Property::sometimes(
                "a guest that cannot start goes on at the source",
                |_, s: &State| s.source == Source::Runs && s.answered == Some(false),
            ),
            Property::eventually(
                "someone has the guest, unless its holder crashed",
                |_, s: &State| {
                    s.source == Source::Runs || s.destination == Destination::Runs || s.crashes > 0
                },
            ),
        ]
    }
}

#[test]
fn the_hand_over_never_runs_a_guest_twice_and_never_loses_it() {
    let checker = Handover { rules: Rules::Ours }
        .checker()
        .threads(2)
        .spawn_bfs()
        .join();
    checker.assert_properties();
    assert!(
        checker.unique_state_count() > 300,
        "{} states",
        checker.unique_state_count()
    );
}

#[test]
fn the_model_sees_a_broken_rule() {
    for (rules, broken) in [
        (Rules::ResumeOnSilence, "at most one side runs the guest"),
        (
            Rules::AnswerUnrecorded,
            "a question has one answer for ever",
        ),
        (Rules::CancelAfterCommit, "at most one side runs the guest"),
    ] {
        let checker = Handover { rules }.checker().threads(2).spawn_bfs().join();
        assert!(checker.discovery(broken).is_some(), "not seen: {broken}");
    }
}
