//! The two-step hand-over, model-checked: messages get lost or late, either side crashes at any step
//! and comes back with its journal only, the guest may fail to start, the source may ask again.
//!
//! A process that crashes takes the guest that it holds with it; that is no fault of the hand-over.
//! Strangers ask about the migration at any time, and old records are forgotten. The rules are the
//! engine's (`source/undecided.rs`, `destination/committing.rs`, `journal/`); broken ones show that the model
//! would see it.

mod checked;

use std::collections::BTreeSet;

use stateright::{Model, Property};

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
    /// The migration has begun, the journal knows nothing of it.
    Begun,
    /// Its journal has room for the decision, and guest memory comes in.
    Filling,
    /// Everything is loaded, the source was told.
    Ready,
    /// The commit is recorded, no instruction was executed.
    Starting,
    Runs,
    /// Nothing is built; questions are answered from the journal, and other migrations may come.
    Empty,
    /// The process is gone.
    Down,
}

/// What the destination's journal has of the migration.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Room {
    /// It does not know the identifier.
    Unknown,
    /// Room that no decision was recorded in.
    Blank,
    GaveUp,
    Committed,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    source: Source,
    destination: Destination,
    /// The destination's journal: the decision, and what a commit was answered with.
    room: Room,
    answered: Option<bool>,
    /// Answers that the source was ever given: never-ran, ran.
    given: [bool; 2],
    /// Someone who asked about what the journal did not know had it write something down.
    wrote_for_stranger: bool,
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
    StrangerAsks,
    DestinationReserves,
    DestinationFails,
    DestinationIsReady,
    DestinationForgets,
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
    /// A destination records its answer also for an identifier that it does not know.
    RecordForStrangers,
    /// A commit makes the room for its record if there is none any more.
    CommitMakesRoom,
    /// A destination says that it is ready before its journal has room for the decision, which the
    /// commit then makes.
    ReadyBeforeRoom,
}

struct Handover {
    rules: Rules,
}

impl Handover {
    /// Answers a question; whoever asks about what is unknown here leaves no trace, as no commit can
    /// come for it any more.
    fn answer(&self, state: &mut State) -> bool {
        match (state.room, self.rules) {
            (Room::Unknown, Rules::RecordForStrangers) => {
                state.room = Room::GaveUp;
                state.wrote_for_stranger = true;
            }
            (Room::Blank, Rules::AnswerUnrecorded) => {}
            (Room::Blank, _) => state.room = Room::GaveUp,
            _ => {}
        }
        match state.room {
            Room::Committed => *state.answered.get_or_insert(true),
            _ => false,
        }
    }

    fn answer_source(&self, state: &mut State) {
        let ran = self.answer(state);
        state.given[usize::from(ran)] = true;
        let message = if ran { Message::Ran } else { Message::NeverRan };
        state.network.insert(message);
    }

    fn deliver(&self, state: &mut State, message: Message) -> Option<()> {
        match (message, state.source, state.destination) {
            (Message::Ready, Source::WaitsForReady, _) => state.source = Source::Decided,
            (Message::Commit, _, Destination::Ready) => match (state.room, self.rules) {
                (Room::Blank, _)
                | (Room::Unknown, Rules::CommitMakesRoom | Rules::ReadyBeforeRoom) => {
                    state.room = Room::Committed;
                    state.destination = Destination::Starting;
                }
                _ => {
                    state.destination = Destination::Empty;
                    self.answer_source(state);
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
            (Message::Resolve, _, _) => self.answer_source(state),
            // Too late: dropped.
            _ => {}
        }
        Some(())
    }

    /// Whether the source, which does not know, does once its question and the answer get through.
    fn can_be_told(&self, state: &State) -> bool {
        let mut state = state.clone();
        state.network.clear();
        self.act(&mut state, Action::SourceAsks);
        self.act(&mut state, Action::Deliver(Message::Resolve));
        for answer in [Message::Ran, Message::NeverRan] {
            if state.network.contains(&answer) {
                self.act(&mut state, Action::Deliver(answer));
            }
        }
        matches!(state.source, Source::Runs | Source::Released)
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
            StrangerAsks => {
                self.answer(state);
            }
            DestinationReserves => {
                state.room = Room::Blank;
                state.destination = Destination::Filling;
            }
            DestinationFails => {
                if state.room == Room::Blank {
                    state.room = Room::Unknown;
                }
                state.destination = Destination::Empty;
            }
            DestinationIsReady => {
                state.destination = Destination::Ready;
                state.network.insert(Message::Ready);
            }
            DestinationForgets => state.room = Room::Unknown,
            DestinationGivesUp => {
                state.destination = Destination::Empty;
                self.answer_source(state);
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
                    self.answer_source(state);
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
            destination: Destination::Begun,
            room: Room::Unknown,
            answered: None,
            given: [false; 2],
            wrote_for_stranger: false,
            ran: false,
            network: BTreeSet::new(),
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
            Destination::Begun => {
                actions.extend([Action::DestinationReserves, Action::DestinationFails]);
                if self.rules == Rules::ReadyBeforeRoom {
                    actions.push(Action::DestinationIsReady);
                }
            }
            Destination::Filling => {
                actions.extend([Action::DestinationIsReady, Action::DestinationFails]);
            }
            Destination::Ready => actions.push(Action::DestinationGivesUp),
            Destination::Starting => {
                actions.extend([Action::DestinationStarts, Action::DestinationCannotStart]);
            }
            Destination::Down => actions.push(Action::DestinationReturns),
            _ => {}
        }
        if !matches!(state.destination, Destination::Starting | Destination::Down) {
            actions.push(Action::StrangerAsks);
        }
        // After 30 days, or many other migrations. A commit stays until its source will not ask any more.
        if matches!(state.room, Room::Blank | Room::GaveUp) {
            actions.push(Action::DestinationForgets);
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
                |_, s: &State| s.source != Source::Released || s.room == Room::Committed || s.ran,
            ),
            Property::always("nothing runs there without its record", |_, s: &State| {
                !s.ran || s.room == Room::Committed
            }),
            Property::always("a question has one answer for ever", |_, s: &State| {
                s.given != [true, true]
            }),
            Property::always("a stranger leaves no record", |_, s: &State| {
                !s.wrote_for_stranger
            }),
            Property::always("a doubt ends when the question is heard", |m, s: &State| {
                s.source != Source::Unknown
                    || matches!(s.destination, Destination::Starting | Destination::Down)
                    || Self::can_be_told(m, s)
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
            Property::sometimes(
                "a destination that gave up tells the source so, later",
                |_, s: &State| {
                    s.source == Source::Unknown
                        && s.destination == Destination::Empty
                        && s.room == Room::GaveUp
                },
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
    checked::holds(Handover { rules: Rules::Ours }, 300);
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
        (Rules::RecordForStrangers, "a stranger leaves no record"),
        (Rules::CommitMakesRoom, "at most one side runs the guest"),
        (Rules::ReadyBeforeRoom, "at most one side runs the guest"),
    ] {
        checked::shows(Handover { rules }, broken);
    }
}
