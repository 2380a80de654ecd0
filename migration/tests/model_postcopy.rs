//! The guest runs there, and some of its memory is still here: post-copy, model-checked after its hand-over.
//!
//! The hand-over itself is that of `model.rs`, and ends with a destination that runs the guest and a source that keeps
//! what has not gone over. From then on both are needed until the destination is whole. The link may break and come
//! back at any moment; either process may crash, which loses the guest if the other still needed it, and only then.
//! Memory is a few pages; what matters of one is where its newest content is.

mod checked;

use std::collections::BTreeSet;

use stateright::{Model, Property};

const PAGES: u8 = 2;
const MOST_BREAKS: u8 = 2;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
enum Message {
    /// The destination's guest waits for a page.
    Request(u8),
    /// A page as it was when the guest was stopped.
    Page(u8),
    /// Which pages the destination lacks, told on a new link: one bit each.
    Lacks(u8),
    /// The destination has every page, and recorded so.
    Whole,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Source {
    /// The guest left; its memory stays for who asks.
    Serves,
    /// Its memory went.
    Released,
    /// Runs the guest again: never right once it ran there.
    Runs,
    /// The process is gone, and the memory with it.
    Crashed,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Destination {
    /// Runs the guest, which waits wherever a page has not come.
    Lacking,
    /// Runs it, with all of its memory.
    Whole,
    Crashed,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Link {
    Up,
    Broken,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    source: Source,
    destination: Destination,
    link: Link,
    /// Pages that have not come, a bit each.
    missing: u8,
    /// Pages that the guest has written since they came.
    written: u8,
    /// What the guest wrote was replaced by what the page was before.
    overwritten: bool,
    /// Pages that the source has pushed on this link.
    pushed: u8,
    network: BTreeSet<Message>,
    breaks: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Action {
    Deliver(Message),
    /// The guest needs a page that is missing.
    Faults(u8),
    /// The guest writes to a page that it has.
    Writes(u8),
    /// The source sends a page that nobody asked for yet.
    Pushes(u8),
    Breaks,
    Reconnects,
    /// The source gives up on a broken link, where a rule lets it.
    SourceTires,
    SourceCrashes,
    DestinationCrashes,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    Ours,
    /// A source lets its memory go as soon as the guest runs there.
    ReleaseAtCommit,
    /// A source lets its memory go when the link breaks.
    ReleaseOnBreak,
    /// A source takes the guest back when the link breaks.
    ResumeOnBreak,
    /// A destination places a page whether it has it or not.
    PlaceAgain,
    /// A destination asks again on a new link only for what it waits for, and the source pushes nothing again.
    ForgetOnBreak,
}

struct Postcopy {
    rules: Rules,
}

fn bit(page: u8) -> u8 {
    1 << page
}

impl Postcopy {
    fn deliver(&self, state: &mut State, message: Message) {
        let serves = state.source == Source::Serves;
        match message {
            Message::Request(page) if serves => {
                state.network.insert(Message::Page(page));
            }
            Message::Page(page) if state.destination != Destination::Crashed => {
                let is_missing = state.missing & bit(page) != 0;
                if !is_missing && self.rules != Rules::PlaceAgain {
                    return;
                }
                state.overwritten |= state.written & bit(page) != 0;
                state.missing &= !bit(page);
                if state.missing == 0 && state.destination == Destination::Lacking {
                    // Recorded before it is told.
                    state.destination = Destination::Whole;
                    state.network.insert(Message::Whole);
                }
            }
            Message::Lacks(pages) if serves => {
                state.pushed = !pages & (bit(PAGES) - 1);
            }
            Message::Whole if serves => state.source = Source::Released,
            // Nobody is there to hear it.
            _ => {}
        }
    }

    fn act(&self, state: &mut State, action: Action) {
        match action {
            Action::Deliver(message) => {
                state.network.remove(&message);
                self.deliver(state, message);
            }
            Action::Faults(page) => {
                state.network.insert(Message::Request(page));
            }
            Action::Writes(page) => state.written |= bit(page),
            Action::Pushes(page) => {
                state.pushed |= bit(page);
                state.network.insert(Message::Page(page));
            }
            Action::Breaks => {
                state.breaks += 1;
                state.link = Link::Broken;
                state.network.clear();
            }
            Action::Reconnects => {
                state.link = Link::Up;
                match state.destination {
                    Destination::Whole => state.network.insert(Message::Whole),
                    _ if self.rules == Rules::ForgetOnBreak => false,
                    _ => state.network.insert(Message::Lacks(state.missing)),
                };
            }
            Action::SourceTires => {
                state.source = match self.rules {
                    Rules::ResumeOnBreak => Source::Runs,
                    _ => Source::Released,
                };
            }
            Action::SourceCrashes => {
                state.source = Source::Crashed;
                state.network.clear();
            }
            Action::DestinationCrashes => {
                state.destination = Destination::Crashed;
                state.network.clear();
            }
        }
    }

    fn is_lost(state: &State) -> bool {
        state.destination == Destination::Crashed
            || (state.source == Source::Crashed && state.destination == Destination::Lacking)
    }
}

impl Model for Postcopy {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            source: match self.rules {
                Rules::ReleaseAtCommit => Source::Released,
                _ => Source::Serves,
            },
            destination: Destination::Lacking,
            link: Link::Up,
            missing: bit(PAGES) - 1,
            written: 0,
            overwritten: false,
            pushed: 0,
            network: BTreeSet::new(),
            breaks: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend(state.network.iter().copied().map(Action::Deliver));
        let is_up = state.link == Link::Up;
        for page in 0..PAGES {
            let is_missing = state.missing & bit(page) != 0;
            match state.destination {
                Destination::Crashed => {}
                _ if !is_missing => actions.push(Action::Writes(page)),
                _ if is_up => actions.push(Action::Faults(page)),
                // It waits.
                _ => {}
            }
            let is_pushed = state.pushed & bit(page) != 0;
            if is_up && state.source == Source::Serves && !is_pushed {
                actions.push(Action::Pushes(page));
            }
        }
        match state.link {
            Link::Up if state.breaks < MOST_BREAKS => actions.push(Action::Breaks),
            Link::Up => {}
            Link::Broken => {
                let both =
                    state.source == Source::Serves && state.destination != Destination::Crashed;
                if both {
                    actions.push(Action::Reconnects);
                    if matches!(self.rules, Rules::ReleaseOnBreak | Rules::ResumeOnBreak) {
                        actions.push(Action::SourceTires);
                    }
                }
            }
        }
        if state.source != Source::Crashed {
            actions.push(Action::SourceCrashes);
        }
        if state.destination != Destination::Crashed {
            actions.push(Action::DestinationCrashes);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.act(&mut state, action);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "a guest that ran there never runs here again",
                |_, s: &State| s.source != Source::Runs,
            ),
            Property::always("what is missing there is still here", |_, s: &State| {
                s.missing == 0 || Self::is_lost(s) || s.source == Source::Serves
            }),
            Property::always("what the guest wrote is never undone", |_, s: &State| {
                !s.overwritten
            }),
            Property::always("whole is whole", |_, s: &State| {
                s.destination != Destination::Whole || s.missing == 0
            }),
            Property::always(
                "a source that is gone costs nothing once the guest is whole",
                |_, s: &State| s.destination != Destination::Whole || !Self::is_lost(s),
            ),
            Property::always("a page that is missing can still come", |_, s: &State| {
                let asks = s.link == Link::Broken
                    || s.network.iter().any(|message| {
                        matches!(message, Message::Lacks(pages) if s.missing & !pages == 0)
                    })
                    || (0..PAGES).all(|page| {
                        s.missing & bit(page) == 0
                            || s.pushed & bit(page) == 0
                            || s.network.contains(&Message::Page(page))
                    });
                Self::is_lost(s) || s.source != Source::Serves || asks
            }),
            Property::sometimes(
                "the guest becomes whole, and the source lets go",
                |_, s: &State| s.destination == Destination::Whole && s.source == Source::Released,
            ),
            Property::sometimes(
                "a link that broke is made again, and all comes",
                |_, s: &State| {
                    s.breaks > 0
                        && s.destination == Destination::Whole
                        && s.source == Source::Released
                },
            ),
            Property::sometimes(
                "a page that was pushed was asked for, too",
                |_, s: &State| {
                    s.network.contains(&Message::Page(0))
                        && s.network.contains(&Message::Request(0))
                },
            ),
        ]
    }
}

#[test]
fn memory_that_is_still_here_is_neither_lost_nor_undone() {
    checked::holds(Postcopy { rules: Rules::Ours }, 300);
}

#[test]
fn the_model_sees_a_broken_rule() {
    for (rules, broken) in [
        (
            Rules::ReleaseAtCommit,
            "what is missing there is still here",
        ),
        (Rules::ReleaseOnBreak, "what is missing there is still here"),
        (
            Rules::ResumeOnBreak,
            "a guest that ran there never runs here again",
        ),
        (Rules::PlaceAgain, "what the guest wrote is never undone"),
        (
            Rules::ForgetOnBreak,
            "a page that is missing can still come",
        ),
    ] {
        checked::shows(Postcopy { rules }, broken);
    }
}
