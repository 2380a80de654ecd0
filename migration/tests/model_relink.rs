//! The link is lost while the guest is copied, and a new one goes on from what is placed: model-checked.
//!
//! Memory is a few pages, of which each write makes another version; one stream carries a frame for each. The link may be
//! lost between any two steps, with frames on their way, which a destination that has not noticed may still place. What the
//! hand-over itself promises is in `model.rs`.

use stateright::{Checker, Model, Property};

const PAGES: usize = 2;
const MOST_WRITES: u8 = 2;
const MOST_LOSSES: u8 = 3;

/// What travels on the stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Frame {
    Page { page: usize, version: u8 },
    PassEnd,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Link {
    Up,
    /// What was on its way may still be placed.
    Lost,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Guest {
    Runs,
    /// Stands still; what is marked then is the last of it.
    Stopped,
    /// The destination has all of it.
    Gone,
}

/// A pass that the source has begun, of which it has not heard that it is placed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Pass {
    /// What it sends: kept until it is placed.
    marks: u8,
    /// How far it is.
    next: usize,
    ended: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    guest: Guest,
    link: Link,
    /// The newest version of each page, and what each side remembers of it for the digest.
    versions: [u8; PAGES],
    sent: [u8; PAGES],
    placed: [u8; PAGES],
    noted: [u8; PAGES],
    /// Written since marks were cleared.
    log: u8,
    /// To be sent by the pass that comes.
    marks: u8,
    pass: Option<Pass>,
    /// With which frame of the pass a page has left, 0 if it has not.
    trail: [u8; PAGES],
    frames_sent: u8,
    /// On the link, in order.
    wire: Vec<Frame>,
    /// Frames of the pass that are placed, and passes of this link and all before.
    frames_placed: u8,
    passes_placed: u8,
    /// What the source has heard of that.
    passes_heard: u8,
    writes: u8,
    losses: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Action {
    Writes(usize),
    Begins,
    /// The source clears the mark of the next page, and reads and sends it.
    Sends,
    Ends,
    /// The destination takes the next frame.
    Places,
    /// The source hears how many passes are placed.
    Hears,
    Stops,
    Loses,
    /// A new link, on which the destination tells what is placed.
    Reconnects,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rules {
    Ours,
    /// A source keeps no marks of what it has sent.
    ForgetsMarks,
    /// A source takes for placed what it has sent.
    TrustsSent,
    /// A source takes counts of the new link for those of the old one.
    KeepsTrail,
    /// A destination says what is placed while the old link's frames are still placed.
    PlacesLate,
    /// Both add to the digest what is sent again.
    AddsAgain,
}

struct Relink {
    rules: Rules,
}

fn bit(page: usize) -> u8 {
    1 << page
}

impl Relink {
    fn note(&self, noted: &mut u8, version: u8) {
        match self.rules {
            Rules::AddsAgain => *noted = noted.wrapping_add(version),
            _ => *noted = version,
        }
    }

    fn place(&self, state: &mut State) {
        match state.wire.remove(0) {
            Frame::Page { page, version } => {
                state.placed[page] = version;
                self.note(&mut state.noted[page], version);
                state.frames_placed += 1;
            }
            Frame::PassEnd => {
                state.frames_placed = 0;
                state.passes_placed += 1;
            }
        }
    }

    fn reconnect(&self, state: &mut State) {
        state.link = Link::Up;
        if self.rules != Rules::PlacesLate {
            // The threads of the old link have ended.
            state.wire.clear();
        }
        let (passes, frames) = (state.passes_placed, state.frames_placed);
        state.frames_placed = 0;
        let pass = state.pass.take();
        if let Some(pass) = pass
            && passes == state.passes_heard
        {
            let is_placed = |page: &usize| {
                let frame = state.trail[*page];
                match self.rules {
                    Rules::TrustsSent => frame > 0,
                    _ => frame > 0 && frame <= frames,
                }
            };
            let placed = (0..PAGES)
                .filter(is_placed)
                .fold(0, |all, page| all | bit(page));
            state.marks = match self.rules {
                Rules::ForgetsMarks => 0,
                _ => pass.marks & !placed,
            };
        }
        state.passes_heard = passes;
        if self.rules != Rules::KeepsTrail {
            state.trail = [0; PAGES];
        }
        state.frames_sent = 0;
    }

    fn act(&self, state: &mut State, action: Action) {
        match action {
            Action::Writes(page) => {
                state.writes += 1;
                state.versions[page] += 1;
                state.log |= bit(page);
            }
            Action::Begins => {
                let marks = state.marks | state.log;
                state.marks = 0;
                state.frames_sent = 0;
                if self.rules != Rules::KeepsTrail {
                    // Those of another pass say nothing of this one.
                    state.trail = [0; PAGES];
                }
                state.pass = Some(Pass {
                    marks,
                    next: 0,
                    ended: false,
                });
            }
            Action::Sends => {
                let Some(pass) = &mut state.pass else { return };
                let page = pass.next;
                pass.next += 1;
                if pass.marks & bit(page) == 0 {
                    return;
                }
                state.log &= !bit(page);
                let version = state.versions[page];
                self.note(&mut state.sent[page], version);
                state.frames_sent += 1;
                state.trail[page] = state.frames_sent;
                state.wire.push(Frame::Page { page, version });
            }
            Action::Ends => {
                if let Some(pass) = &mut state.pass {
                    pass.ended = true;
                }
                state.wire.push(Frame::PassEnd);
            }
            Action::Places => self.place(state),
            Action::Hears => {
                state.passes_heard = state.passes_placed;
                state.pass = None;
                if state.guest == Guest::Stopped {
                    state.guest = Guest::Gone;
                }
            }
            Action::Stops => state.guest = Guest::Stopped,
            Action::Loses => {
                state.losses += 1;
                state.link = Link::Lost;
            }
            Action::Reconnects => self.reconnect(state),
        }
    }
}

impl Model for Relink {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let all = (0..PAGES).fold(0, |all, page| all | bit(page));
        vec![State {
            guest: Guest::Runs,
            link: Link::Up,
            versions: [1; PAGES],
            sent: [0; PAGES],
            placed: [0; PAGES],
            noted: [0; PAGES],
            log: all,
            marks: 0,
            pass: None,
            trail: [0; PAGES],
            frames_sent: 0,
            wire: Vec::new(),
            frames_placed: 0,
            passes_placed: 0,
            passes_heard: 0,
            writes: 0,
            losses: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.guest == Guest::Gone {
            return;
        }
        let (runs, up) = (state.guest == Guest::Runs, state.link == Link::Up);
        if runs && state.writes < MOST_WRITES {
            actions.extend((0..PAGES).map(Action::Writes));
        }
        match &state.pass {
            // With nothing to send it is over, once it is stopped.
            None if up => {
                actions.push(Action::Begins);
                if runs {
                    actions.push(Action::Stops);
                }
            }
            Some(pass) if up && pass.next < PAGES => actions.push(Action::Sends),
            Some(pass) if up && !pass.ended => actions.push(Action::Ends),
            Some(_) if up && state.passes_placed > state.passes_heard => {
                actions.push(Action::Hears);
            }
            _ => {}
        }
        if !state.wire.is_empty() {
            actions.push(Action::Places);
        }
        // A guest that stands still waits for no link: then it fails, as in the model of the hand-over.
        if runs && up && state.losses < MOST_LOSSES {
            actions.push(Action::Loses);
        }
        if !up {
            actions.push(Action::Reconnects);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        self.act(&mut next, action);
        (next != *state).then_some(next)
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.passes_placed < 5
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("what is not placed is marked", |_, state: &State| {
                let kept = state.pass.as_ref().map_or(0, |pass| pass.marks);
                (0..PAGES).all(|page| {
                    state.placed[page] == state.versions[page]
                        || (state.log | state.marks | kept) & bit(page) != 0
                })
            }),
            Property::always("a guest that has gone is whole", |_, state: &State| {
                state.guest != Guest::Gone || state.placed == state.versions
            }),
            Property::always("both sides' digests agree then", |_, state: &State| {
                state.guest != Guest::Gone || state.sent == state.noted
            }),
            Property::sometimes("it gets there after losses", |_, state: &State| {
                state.guest == Guest::Gone && state.losses == MOST_LOSSES
            }),
        ]
    }
}

/// Which properties do not hold.
fn broken_by(rules: Rules) -> Vec<&'static str> {
    let checker = Relink { rules }.checker().threads(2).spawn_bfs().join();
    let found = checker.discoveries();
    let model = Relink { rules };
    let mut broken: Vec<_> = model
        .properties()
        .into_iter()
        .filter(|property| {
            let is_found = found.contains_key(property.name);
            match property.expectation {
                stateright::Expectation::Sometimes => !is_found,
                _ => is_found,
            }
        })
        .map(|property| property.name)
        .collect();
    broken.sort_unstable();
    println!(
        "{rules:?}: {} states, {broken:?}",
        checker.unique_state_count()
    );
    broken
}

#[test]
fn whatever_is_lost_what_is_not_placed_is_marked_and_both_sides_agree() {
    assert_eq!(broken_by(Rules::Ours), [""; 0]);
}

#[test]
fn each_simpler_rule_loses_a_page_or_the_agreement() {
    for rules in [
        Rules::ForgetsMarks,
        Rules::TrustsSent,
        Rules::KeepsTrail,
        Rules::PlacesLate,
        Rules::AddsAgain,
    ] {
        assert!(!broken_by(rules).is_empty(), "{rules:?} breaks nothing");
    }
}
