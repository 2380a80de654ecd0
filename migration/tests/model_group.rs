//! One decision over several guests: a group that switches over as one, by a leader, model-checked.
//!
//! Each member is handed over as in `model.rs`; what is new is that a destination that said that it is ready keeps to
//! that until it is told the leader's decision, and that the leader decides once, for all. Whoever is in doubt asks; as
//! a decision is final, an answer cannot be outdated, so a question and its answer are one step here, which is taken or
//! not. A process that crashes takes the guest that it holds with it.

use stateright::{Checker, Model, Property};

const MOST: usize = 3;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Source {
    /// The guest is stopped, everything was sent.
    Stopped,
    /// The guest runs here again.
    Runs,
    /// The guest lives at the destination.
    Released,
    /// The others have gone and this one could not: the guest stands still until its user says what is to be.
    Held,
    Crashed,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Destination {
    Filling,
    /// Everything is loaded, and it waits for the decision, however long.
    Ready,
    /// The commit is recorded, no instruction was executed.
    Starting,
    Runs,
    /// Nothing is built, and nothing will run.
    Empty,
    /// The process is gone; what it had recorded is not.
    Down,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Decision {
    Open,
    Commit,
    GiveUp,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Member {
    source: Source,
    destination: Destination,
    /// Its destination's journal has the commit.
    committed: bool,
    /// It took that back, as the guest could not be started.
    taken_back: bool,
    /// The leader was told that it is ready.
    told_ready: bool,
    /// Whether the guest has executed instructions at the destination.
    ran: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    members: Vec<Member>,
    /// What the leader's journal has.
    recorded: Decision,
    /// What the leader's process goes by; none while it is down.
    leader: Option<Decision>,
    /// Decisions that anybody was ever told: commit, give up.
    told: [bool; 2],
    crashes: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Action {
    IsReady(usize),
    CannotBeBuilt(usize),
    TellsReady(usize),
    LeaderDecides(Decision),
    DestinationHears(usize),
    DestinationTires(usize),
    Starts(usize),
    CannotStart(usize),
    SourceHears(usize),
    SourceTires(usize),
    LeaderCrashes,
    LeaderReturns,
    SourceCrashes(usize),
    DestinationCrashes(usize),
    DestinationReturns(usize),
}

/// What counts more when both cannot be had.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Consistency {
    /// All or none.
    Group,
    /// Each goes on as soon as it is certain where.
    Availability,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    Ours,
    /// A destination that is ready gives up when it hears nothing, as that of a single guest does.
    GiveUpAlone,
    /// The leader does not wait for the last one.
    DecideEarly,
    /// The leader tells its decision before it is recorded.
    TellUnrecorded,
    /// A source that hears nothing takes its guest back.
    ResumeOnSilence,
}

struct Group {
    members: usize,
    most_crashes: u8,
    consistency: Consistency,
    rules: Rules,
}

impl Group {
    fn may_commit(&self, state: &State) -> bool {
        let mut ready = state.members.iter().filter(|member| member.told_ready);
        match self.rules {
            Rules::DecideEarly => ready.next().is_some(),
            _ => ready.count() == self.members,
        }
    }

    /// What the leader says; `None` where it is down or has not decided.
    fn ask(state: &mut State) -> Option<Decision> {
        let decision = state
            .leader
            .filter(|decision| *decision != Decision::Open)?;
        state.told[usize::from(decision == Decision::GiveUp)] = true;
        Some(decision)
    }

    fn destination_hears(state: &mut State, i: usize) -> Option<()> {
        let decision = Self::ask(state)?;
        let member = &mut state.members[i];
        match decision {
            Decision::Commit => {
                member.committed = true;
                member.destination = Destination::Starting;
            }
            _ => member.destination = Destination::Empty,
        }
        Some(())
    }

    fn source_hears(&self, state: &mut State, i: usize) -> Option<()> {
        let decision = Self::ask(state)?;
        let member = &mut state.members[i];
        member.source = match (decision, member.destination) {
            (Decision::GiveUp, _) => Source::Runs,
            (_, Destination::Runs) => Source::Released,
            // It has the record of a commit, and of no guest that did not start: what ran there is gone with its process.
            (_, Destination::Empty) if member.committed && !member.taken_back => Source::Released,
            // It answers that the guest never ran, and never will.
            (_, Destination::Empty) => match self.consistency {
                Consistency::Group => Source::Held,
                Consistency::Availability => Source::Runs,
            },
            // No answer yet.
            _ => return None,
        };
        Some(())
    }

    fn act(&self, state: &mut State, action: Action) -> Option<()> {
        use Action::*;
        match action {
            IsReady(i) => state.members[i].destination = Destination::Ready,
            CannotBeBuilt(i) | DestinationTires(i) => {
                state.members[i].destination = Destination::Empty;
            }
            CannotStart(i) => {
                state.members[i].destination = Destination::Empty;
                state.members[i].taken_back = true;
            }
            TellsReady(i) => state.members[i].told_ready = true,
            LeaderDecides(decision) => {
                state.leader = Some(decision);
                if self.rules != Rules::TellUnrecorded {
                    state.recorded = decision;
                }
            }
            DestinationHears(i) => Self::destination_hears(state, i)?,
            Starts(i) => {
                state.members[i].destination = Destination::Runs;
                state.members[i].ran = true;
            }
            SourceHears(i) => self.source_hears(state, i)?,
            SourceTires(i) => state.members[i].source = Source::Runs,
            LeaderCrashes => {
                state.crashes += 1;
                state.leader = None;
            }
            // What it had not recorded it had told nobody, so it may decide against it.
            LeaderReturns => {
                if state.recorded == Decision::Open {
                    state.recorded = Decision::GiveUp;
                }
                state.leader = Some(state.recorded);
            }
            SourceCrashes(i) => {
                state.crashes += 1;
                state.members[i].source = Source::Crashed;
            }
            DestinationCrashes(i) => {
                state.crashes += 1;
                state.members[i].destination = Destination::Down;
            }
            DestinationReturns(i) => state.members[i].destination = Destination::Empty,
        }
        Some(())
    }

    /// Whether all is settled once everybody who asks is heard and nothing more breaks.
    fn comes_to_rest(&self, state: &State) -> bool {
        let mut state = state.clone();
        let all = |f: fn(usize) -> Action| (0..self.members).map(f);
        let steps: Vec<Action> = std::iter::once(Action::LeaderReturns)
            .chain(all(Action::DestinationReturns))
            .chain(all(Action::CannotBeBuilt))
            .chain(std::iter::once(Action::LeaderDecides(Decision::GiveUp)))
            .chain(all(Action::DestinationHears))
            .chain(all(Action::Starts))
            .chain(all(Action::SourceHears))
            .collect();
        for step in steps {
            let mut possible = Vec::new();
            self.actions(&state, &mut possible);
            if possible.contains(&step) {
                self.act(&mut state, step);
            }
        }
        let mut members = state.members.iter();
        members.all(|member| member.source != Source::Stopped)
    }

    fn runs_here(member: &Member) -> bool {
        member.source == Source::Runs
    }
}

impl Model for Group {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let member = Member {
            source: Source::Stopped,
            destination: Destination::Filling,
            committed: false,
            taken_back: false,
            told_ready: false,
            ran: false,
        };
        vec![State {
            members: vec![member; self.members],
            recorded: Decision::Open,
            leader: Some(Decision::Open),
            told: [false; 2],
            crashes: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let may_crash = state.crashes < self.most_crashes;
        match state.leader {
            None => actions.push(Action::LeaderReturns),
            Some(Decision::Open) => {
                actions.push(Action::LeaderDecides(Decision::GiveUp));
                if self.may_commit(state) {
                    actions.push(Action::LeaderDecides(Decision::Commit));
                }
            }
            Some(_) => {}
        }
        if may_crash && state.leader.is_some() {
            actions.push(Action::LeaderCrashes);
        }
        for (i, member) in state.members.iter().enumerate() {
            match member.destination {
                Destination::Filling => {
                    actions.extend([Action::IsReady(i), Action::CannotBeBuilt(i)]);
                }
                Destination::Ready => {
                    actions.push(Action::DestinationHears(i));
                    if !member.told_ready && state.leader == Some(Decision::Open) {
                        actions.push(Action::TellsReady(i));
                    }
                    if self.rules == Rules::GiveUpAlone {
                        actions.push(Action::DestinationTires(i));
                    }
                }
                Destination::Starting => {
                    actions.extend([Action::Starts(i), Action::CannotStart(i)]);
                }
                Destination::Down => actions.push(Action::DestinationReturns(i)),
                Destination::Runs | Destination::Empty => {}
            }
            if member.source == Source::Stopped {
                actions.push(Action::SourceHears(i));
                if self.rules == Rules::ResumeOnSilence {
                    actions.push(Action::SourceTires(i));
                }
            }
            if may_crash {
                if member.source != Source::Crashed {
                    actions.push(Action::SourceCrashes(i));
                }
                if member.destination != Destination::Down {
                    actions.push(Action::DestinationCrashes(i));
                }
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
            Property::always("no guest runs twice", |_, s: &State| {
                let mut members = s.members.iter();
                members.all(|it| !Self::runs_here(it) || it.destination != Destination::Runs)
            }),
            Property::always(
                "a guest that ran there never runs here again",
                |_, s: &State| s.members.iter().all(|it| !Self::runs_here(it) || !it.ran),
            ),
            Property::always("the group is never split", |m: &Self, s: &State| {
                let here = s.members.iter().any(Self::runs_here);
                let there = s.members.iter().any(|member| member.ran);
                m.consistency == Consistency::Availability || !(here && there)
            }),
            Property::always("none runs there before all could", |_, s: &State| {
                let all = s.members.iter().all(|member| member.told_ready);
                all || s.members.iter().all(|member| !member.ran)
            }),
            Property::always("one decision is told", |_, s: &State| {
                s.told != [true, true]
            }),
            Property::always("nothing runs there without its record", |_, s: &State| {
                s.members
                    .iter()
                    .all(|member| !member.ran || member.committed)
            }),
            Property::always(
                "none is left behind that could have gone",
                |_, s: &State| {
                    let is_held = |member: &Member| member.source == Source::Held;
                    // One whose process was lost, or whose host could not run it after all.
                    s.crashes > 0
                        || !s.members.iter().any(is_held)
                        || s.members
                            .iter()
                            .any(|member| is_held(member) && member.committed)
                },
            ),
            Property::always("whoever asks comes to know", |m: &Self, s: &State| {
                m.comes_to_rest(s)
            }),
            Property::sometimes("all go", |m: &Self, s: &State| {
                let gone = s.members.iter().filter(|it| it.source == Source::Released);
                gone.count() == m.members
            }),
            Property::sometimes("all stay", |m: &Self, s: &State| {
                s.members.iter().filter(|it| Self::runs_here(it)).count() == m.members
            }),
            Property::sometimes("a leader comes back, and all go", |m: &Self, s: &State| {
                let gone = s.members.iter().filter(|it| it.source == Source::Released);
                s.crashes > 0 && gone.count() == m.members
            }),
            Property::sometimes(
                "one that lost its destination is not lost",
                |m: &Self, s: &State| {
                    let is_kept = |member: &Member| match m.consistency {
                        Consistency::Group => member.source == Source::Held,
                        Consistency::Availability => Self::runs_here(member),
                    };
                    s.members.iter().any(|it| it.ran) && s.members.iter().any(is_kept)
                },
            ),
        ]
    }
}

#[test]
fn a_group_goes_as_one_or_stays_as_one() {
    for consistency in [Consistency::Group, Consistency::Availability] {
        for (members, most_crashes) in [(1, 2), (2, 2), (MOST, 1)] {
            let group = Group {
                members,
                most_crashes,
                consistency,
                rules: Rules::Ours,
            };
            let checker = group.checker().threads(2).spawn_bfs().join();
            let states = checker.unique_state_count();
            println!("{members} members: {states} states");
            // A group of one has nobody to be split from.
            if members > 1 {
                checker.assert_properties();
                assert!(states > 1000, "{states} states of {members} members");
            }
            for property in checker.model().properties() {
                let is_rule = property.expectation == stateright::Expectation::Always;
                assert!(
                    !is_rule || checker.discovery(property.name).is_none(),
                    "{} with {members}",
                    property.name
                );
            }
        }
    }
}

#[test]
fn the_model_sees_a_broken_rule() {
    for (rules, broken) in [
        (
            Rules::GiveUpAlone,
            "none is left behind that could have gone",
        ),
        (Rules::DecideEarly, "none runs there before all could"),
        (Rules::TellUnrecorded, "one decision is told"),
        (Rules::TellUnrecorded, "the group is never split"),
        (Rules::ResumeOnSilence, "no guest runs twice"),
    ] {
        let group = Group {
            members: 2,
            most_crashes: 1,
            consistency: Consistency::Group,
            rules,
        };
        let checker = group.checker().threads(2).spawn_bfs().join();
        assert!(checker.discovery(broken).is_some(), "not seen: {broken}");
    }
    // What is right where each may go on alone is not where all go or none.
    let group = Group {
        members: 2,
        most_crashes: 1,
        consistency: Consistency::Availability,
        rules: Rules::Ours,
    };
    let is_split = |state: &State| {
        state.members.iter().any(Group::runs_here) && state.members.iter().any(|it| it.ran)
    };
    let checker = group.checker().threads(2).spawn_bfs().join();
    let path = checker.discovery("one that lost its destination is not lost");
    assert!(path.is_some_and(|path| is_split(path.last_state())));
}
