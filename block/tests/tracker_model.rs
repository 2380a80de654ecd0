//! Every order in which the steps of writers and of users of the tracker can happen, see `block::tracker`: two
//! writers, a block of two sectors, two users that copy it.

use stateright::{Checker, Model, Property};

/// When a writer marks the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marks {
    /// Before it writes, and afterwards until no other generation has begun: as the tracker does.
    AroundIt,
    /// Before it writes, and afterwards once, if another generation has begun.
    Twice,
    /// Before it writes alone.
    Before,
    /// Afterwards, and only if another generation has begun.
    AfterAnother,
}

/// Sectors of the block.
const SECTORS: usize = 2;
/// Passes of the users while others write.
const PASSES: [u8; 2] = [2, 1];

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Writing {
    Idle,
    /// It has taken the generation.
    Took(u8),
    /// It has marked in this generation, and written so many sectors.
    Writes(u8, usize),
    /// It has taken the generation again, which was another.
    TookAnother(u8),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Writer {
    at: Writing,
    is_done: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Copying {
    Idle,
    /// It has begun a generation.
    Began(u8),
    /// It was told that the block has changed, and has read so many sectors.
    Reads(u8, usize),
    /// It has looked when no write was under way or to come, and copied what it was told.
    Done,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct User {
    at: Copying,
    since: u8,
    passes: u8,
    /// This pass began when all writers were done.
    is_last: bool,
    copy: [u8; SECTORS],
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    generation: u8,
    stamp: u8,
    disk: [u8; SECTORS],
    writers: [Writer; 2],
    users: [User; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Writer(usize),
    User(usize),
}

struct Tracked(Marks);

impl State {
    fn is_written(&self) -> bool {
        let is_done = |writer: &Writer| writer.at == Writing::Idle && writer.is_done;
        self.writers.iter().all(is_done)
    }
}

impl Tracked {
    fn writer(&self, state: &mut State, index: usize) -> Option<()> {
        let value = 1 + index as u8;
        let writer = &mut state.writers[index];
        writer.at = match writer.at {
            Writing::Idle => {
                (!writer.is_done).then_some(())?;
                Writing::Took(state.generation)
            }
            Writing::Took(generation) => {
                if self.0 != Marks::AfterAnother {
                    state.stamp = state.stamp.max(generation);
                }
                Writing::Writes(generation, 0)
            }
            Writing::Writes(generation, SECTORS) => {
                if state.generation == generation || self.0 == Marks::Before {
                    writer.is_done = true;
                    Writing::Idle
                } else {
                    Writing::TookAnother(state.generation)
                }
            }
            Writing::Writes(generation, sector) => {
                state.disk[sector] = value;
                Writing::Writes(generation, sector + 1)
            }
            Writing::TookAnother(generation) => {
                state.stamp = state.stamp.max(generation);
                if self.0 == Marks::AroundIt {
                    Writing::Writes(generation, SECTORS)
                } else {
                    writer.is_done = true;
                    Writing::Idle
                }
            }
        };
        Some(())
    }

    fn user(state: &mut State, index: usize) -> Option<()> {
        let is_written = state.is_written();
        let user = &mut state.users[index];
        let pass_is_over = |user: &User| {
            if user.is_last {
                Copying::Done
            } else {
                Copying::Idle
            }
        };
        user.at = match user.at {
            Copying::Idle => {
                user.is_last = is_written;
                if !is_written {
                    user.passes = user.passes.checked_sub(1)?;
                }
                state.generation += 1;
                Copying::Began(state.generation)
            }
            Copying::Began(next) if state.stamp >= user.since => Copying::Reads(next, 0),
            Copying::Began(next) => {
                user.since = next;
                pass_is_over(user)
            }
            Copying::Reads(next, SECTORS) => {
                user.since = next;
                pass_is_over(user)
            }
            Copying::Reads(next, sector) => {
                user.copy[sector] = state.disk[sector];
                Copying::Reads(next, sector + 1)
            }
            Copying::Done => return None,
        };
        Some(())
    }
}

impl Model for Tracked {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let writer = Writer {
            at: Writing::Idle,
            is_done: false,
        };
        let user = |passes| User {
            at: Copying::Idle,
            since: 1,
            passes,
            is_last: false,
            copy: [0; SECTORS],
        };
        vec![State {
            generation: 1,
            stamp: 0,
            disk: [0; SECTORS],
            writers: [writer.clone(), writer],
            users: PASSES.map(user),
        }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Step>) {
        actions.extend([0, 1].map(Step::Writer));
        actions.extend([0, 1].map(Step::User));
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        match step {
            Step::Writer(index) => self.writer(&mut next, index)?,
            Step::User(index) => Self::user(&mut next, index)?,
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "the copy is whole after the last pass",
                |_, state: &State| {
                    let mut users = state.users.iter();
                    users.all(|user| user.at != Copying::Done || user.copy == state.disk)
                },
            ),
            // Of a model in which the users come to no end nothing would be shown.
            Property::sometimes("both users are done", |_, state: &State| {
                state.users.iter().all(|user| user.at == Copying::Done)
            }),
        ]
    }
}

fn is_exact(marks: Marks) -> bool {
    let checker = Tracked(marks).checker().threads(2).spawn_bfs().join();
    assert!(checker.discovery("both users are done").is_some());
    println!("{marks:?}: {} states", checker.unique_state_count());
    checker
        .discovery("the copy is whole after the last pass")
        .is_none()
}

#[test]
fn no_order_of_steps_loses_a_change() {
    assert!(is_exact(Marks::AroundIt));
}

#[test]
fn fewer_marks_would_lose_changes() {
    assert!(!is_exact(Marks::Before));
    assert!(!is_exact(Marks::Twice));
    assert!(!is_exact(Marks::AfterAnother));
}
