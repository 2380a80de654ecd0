//! Every order in which the steps of changes, of the background copy and of a target that fails can happen, see
//! `block::mirror`: two writers that overlap, a piece of two sectors, a target that is given up once and taken up again.

use stateright::{Checker, Model, Property};

/// What is left out of the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Without {
    Nothing,
    /// A change does not wait for another of the same bytes.
    OrderOfChanges,
    /// A change does not wait for the copy of its bytes.
    ChangesWaiting,
    /// The copy does not wait for the changes that are under way.
    CopyWaiting,
    /// What the target missed is not marked.
    Marks,
    /// A target is taken up again while something is under way there.
    Idleness,
}

const SECTORS: usize = 2;
/// Who writes: two writers, the second of them one sector alone, and the copy.
const WRITERS: usize = 2;
const COPY: usize = WRITERS;
const FIRST: [usize; WRITERS] = [0, 1];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Change {
    Idle,
    /// Both images are asked; the next sector that the disk gets.
    Both(usize),
    /// The disk alone.
    Here(usize),
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Copying {
    Idle,
    /// It keeps new changes away.
    Keeps,
    /// It has read so many sectors.
    Reads(usize, [u8; SECTORS]),
    /// The target writes.
    Writes,
    Done,
}

/// What the target was asked, and has not done yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Asked {
    next: usize,
    bytes: [u8; SECTORS],
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    disk: [u8; SECTORS],
    target: [u8; SECTORS],
    changes: [Change; WRITERS],
    copying: Copying,
    far: [Option<Asked>; WRITERS + 1],
    /// The target is given up.
    is_given_up: bool,
    may_fail: bool,
    missed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Writer(usize),
    Copy,
    Far(usize),
    Fail,
    Resume,
}

struct Mirrored(Without);

impl State {
    fn is_under_way(&self, writer: usize) -> bool {
        matches!(self.changes[writer], Change::Both(_) | Change::Here(_))
    }

    fn is_kept(&self) -> bool {
        !matches!(self.copying, Copying::Idle | Copying::Done)
    }

    fn is_over(&self) -> bool {
        self.changes.iter().all(|change| *change == Change::Done)
            && self.copying == Copying::Done
            && !self.missed
            && !self.is_given_up
            && self.far.iter().all(Option::is_none)
    }
}

impl Mirrored {
    fn writer(&self, state: &mut State, index: usize) -> Option<()> {
        let value = 1 + index as u8;
        state.changes[index] = match state.changes[index] {
            Change::Idle => {
                let other = state.is_under_way(1 - index);
                let kept = state.is_kept();
                let waits = (other && self.0 != Without::OrderOfChanges)
                    || (kept && self.0 != Without::ChangesWaiting);
                (!waits).then_some(())?;
                if state.is_given_up {
                    Change::Here(FIRST[index])
                } else {
                    state.far[index] = Some(Asked {
                        next: FIRST[index],
                        bytes: [value; SECTORS],
                    });
                    Change::Both(FIRST[index])
                }
            }
            Change::Both(SECTORS) => {
                let is_late = state.far[index].is_some();
                // It waits for the target, unless that is given up.
                (!is_late || state.is_given_up).then_some(())?;
                state.missed |= is_late && self.0 != Without::Marks;
                Change::Done
            }
            Change::Here(SECTORS) => {
                state.missed |= self.0 != Without::Marks;
                Change::Done
            }
            Change::Both(sector) => {
                state.disk[sector] = value;
                Change::Both(sector + 1)
            }
            Change::Here(sector) => {
                state.disk[sector] = value;
                Change::Here(sector + 1)
            }
            Change::Done => return None,
        };
        Some(())
    }

    fn copy(&self, state: &mut State) -> Option<()> {
        state.copying = match state.copying {
            Copying::Idle => {
                (!state.is_given_up).then_some(())?;
                // What is missed from here on is for the next pass.
                state.missed = false;
                Copying::Keeps
            }
            Copying::Keeps => {
                let changes = (0..WRITERS).any(|writer| state.is_under_way(writer));
                (!changes || self.0 == Without::CopyWaiting).then_some(())?;
                Copying::Reads(0, [0; SECTORS])
            }
            Copying::Reads(SECTORS, bytes) => {
                if state.is_given_up {
                    // It is not begun, and copied again.
                    state.missed = true;
                    Copying::Done
                } else {
                    state.far[COPY] = Some(Asked { next: 0, bytes });
                    Copying::Writes
                }
            }
            Copying::Reads(sector, mut bytes) => {
                bytes[sector] = state.disk[sector];
                Copying::Reads(sector + 1, bytes)
            }
            Copying::Writes => {
                let is_late = state.far[COPY].is_some();
                (!is_late || state.is_given_up).then_some(())?;
                // What stopped is copied again, which the copy knows by itself.
                state.missed |= is_late;
                Copying::Done
            }
            Copying::Done => {
                state.missed.then_some(())?;
                Copying::Idle
            }
        };
        Some(())
    }

    fn far(state: &mut State, index: usize) -> Option<()> {
        let asked = state.far[index].as_mut()?;
        state.target[asked.next] = asked.bytes[asked.next];
        asked.next += 1;
        if asked.next == SECTORS {
            state.far[index] = None;
        }
        Some(())
    }
}

impl Model for Mirrored {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            disk: [7; SECTORS],
            target: [0; SECTORS],
            changes: [Change::Idle; WRITERS],
            copying: Copying::Idle,
            far: [const { None }; WRITERS + 1],
            is_given_up: false,
            may_fail: true,
            missed: false,
        }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Step>) {
        actions.extend((0..WRITERS).map(Step::Writer));
        actions.extend((0..=COPY).map(Step::Far));
        actions.extend([Step::Copy, Step::Fail, Step::Resume]);
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        match step {
            Step::Writer(index) => self.writer(&mut next, index)?,
            Step::Copy => self.copy(&mut next)?,
            Step::Far(index) => Self::far(&mut next, index)?,
            Step::Fail => {
                state.may_fail.then_some(())?;
                next.may_fail = false;
                next.is_given_up = true;
            }
            Step::Resume => {
                state.is_given_up.then_some(())?;
                // Whoever waits for what was given up has heard so.
                let is_idle = state.far.iter().all(Option::is_none);
                (is_idle || self.0 == Without::Idleness).then_some(())?;
                next.is_given_up = false;
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("the target is whole in the end", |_, state: &State| {
                !state.is_over() || state.target == state.disk
            }),
            // Of a model that comes to no end nothing would be shown.
            Property::sometimes("it is over", |_, state: &State| state.is_over()),
            Property::sometimes("it is over after a failure", |_, state: &State| {
                state.is_over() && !state.may_fail
            }),
        ]
    }
}

fn is_exact(without: Without) -> bool {
    let checker = Mirrored(without).checker().threads(2).spawn_bfs().join();
    for end in ["it is over", "it is over after a failure"] {
        assert!(checker.discovery(end).is_some(), "{without:?}: {end}");
    }
    println!("{without:?}: {} states", checker.unique_state_count());
    checker
        .discovery("the target is whole in the end")
        .is_none()
}

#[test]
fn no_order_of_steps_leaves_the_target_older_than_the_disk() {
    assert!(is_exact(Without::Nothing));
}

#[test]
fn each_of_the_rules_is_needed() {
    for without in [
        Without::OrderOfChanges,
        Without::ChangesWaiting,
        Without::CopyWaiting,
        Without::Marks,
        Without::Idleness,
    ] {
        assert!(!is_exact(without), "{without:?}");
    }
}
