//! What has not come of a disk is pulled: its presence map, its server and the release of its image, model-checked.
//!
//! A disk of a few blocks at a client that has them, lacks them, or has written to them itself; its content, and the map of it,
//! are durable as far as a flush has made them so. Its server has an image that does not change, and a record. Either may
//! crash at any moment and come again, the link may break at any moment, and messages of a link that broke are lost.

mod checked;

use std::collections::BTreeSet;

use stateright::{Model, Property};

const BLOCKS: u8 = 2;
const MOST_CRASHES: u8 = 2;
const MOST_BREAKS: u8 = 2;

fn bit(block: u8) -> u8 {
    1 << block
}

const ALL: u8 = (1 << BLOCKS) - 1;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
enum Message {
    Map(u8),
    Request(u8),
    Answer(u8),
    Finished,
    Released,
}

/// Content of the client's disk: what is in memory goes with a crash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Disk {
    /// Blocks that are here.
    present: u8,
    /// Blocks whose content is here, from the server or the guest.
    content: u8,
    /// Blocks that the guest has written.
    written: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    now: Disk,
    durable: Disk,
    client_is_up: bool,
    /// Blocks that were asked for on this link.
    asked: u8,
    /// Of the guest's writes, those that it was told are durable.
    acknowledged: u8,
    /// Something was written that the guest's write has been lost to, or a block without content was read.
    broken: Option<&'static str>,
    server_is_up: bool,
    /// The image is there and claimed.
    image: bool,
    record_released: bool,
    /// What the server takes the client to lack.
    lacks: u8,
    link_is_up: bool,
    network: BTreeSet<Message>,
    crashes: u8,
    breaks: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Action {
    Deliver(Message),
    /// The guest, or the background, needs a block that is absent.
    Asks(u8),
    /// The guest writes a whole block, whether it is here or not.
    Writes(u8),
    Flushes,
    Finishes,
    Breaks,
    Connects,
    ClientCrashes,
    ClientStarts,
    ServerCrashes,
    ServerStarts,
    /// A server that has a record of the release lets go of the image.
    Releases,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    Ours,
    /// What comes is written whether the block is here or not.
    PlaceAgain,
    /// The map is durable before the content is.
    MapFirst,
    /// A client says that it is whole before that is durable.
    FinishBeforeFlush,
    /// A server lets go when it takes its client to lack nothing.
    ReleaseWhenAnswered,
    /// What was asked for on a link that broke stays asked for.
    AskedStays,
}

struct Pull {
    rules: Rules,
}

impl Pull {
    fn place(&self, state: &mut State, block: u8) {
        let is_here = state.now.present & bit(block) != 0;
        state.asked &= !bit(block);
        if is_here && self.rules != Rules::PlaceAgain {
            return;
        }
        if state.now.written & bit(block) != 0 {
            state.broken = Some("a write was replaced by what was there before");
        }
        state.now.content |= bit(block);
        state.now.present |= bit(block);
    }

    fn lose_link(&self, state: &mut State) {
        state.link_is_up = false;
        state.network.clear();
        if self.rules != Rules::AskedStays {
            state.asked = 0;
        }
    }

    fn deliver(&self, state: &mut State, message: Message) {
        match message {
            Message::Map(present) => state.lacks = ALL & !present,
            Message::Request(block) => {
                assert!(state.image, "a server that is asked has the image");
                state.lacks &= !bit(block);
                state.network.insert(Message::Answer(block));
            }
            Message::Answer(block) => self.place(state, block),
            Message::Finished => {
                state.record_released = true;
                state.lacks = 0;
                state.network.insert(Message::Released);
            }
            Message::Released => {}
        }
    }

    fn act(&self, state: &mut State, action: Action) {
        match action {
            Action::Deliver(message) => {
                state.network.remove(&message);
                self.deliver(state, message);
            }
            Action::Asks(block) => {
                state.asked |= bit(block);
                state.network.insert(Message::Request(block));
            }
            Action::Writes(block) => {
                state.now.content |= bit(block);
                state.now.written |= bit(block);
                state.now.present |= bit(block);
                if self.rules == Rules::MapFirst {
                    state.durable.present = state.now.present;
                }
            }
            Action::Flushes => {
                state.durable = state.now;
                state.acknowledged = state.now.written;
            }
            Action::Finishes => {
                state.network.insert(Message::Finished);
            }
            Action::Breaks => {
                state.breaks += 1;
                self.lose_link(state);
            }
            Action::Connects => {
                state.link_is_up = true;
                state.network.insert(Message::Map(state.now.present));
            }
            Action::ClientCrashes => {
                state.crashes += 1;
                state.client_is_up = false;
                self.lose_link(state);
            }
            Action::ClientStarts => {
                state.client_is_up = true;
                state.now = state.durable;
                state.asked = 0;
            }
            Action::ServerCrashes => {
                state.crashes += 1;
                state.server_is_up = false;
                self.lose_link(state);
            }
            Action::ServerStarts => {
                state.server_is_up = true;
                state.lacks = ALL;
            }
            Action::Releases => state.image = false,
        }
    }

    fn client_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let linked = state.link_is_up && state.server_is_up;
        for block in 0..BLOCKS {
            let is_absent = state.now.present & bit(block) == 0;
            if linked && is_absent && state.asked & bit(block) == 0 {
                actions.push(Action::Asks(block));
            }
            actions.push(Action::Writes(block));
        }
        if state.now != state.durable {
            actions.push(Action::Flushes);
        }
        let whole = match self.rules {
            Rules::FinishBeforeFlush => state.now.present,
            _ => state.durable.present,
        };
        if linked && whole == ALL {
            actions.push(Action::Finishes);
        }
    }
}

impl Model for Pull {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            now: Disk::default(),
            durable: Disk::default(),
            client_is_up: true,
            asked: 0,
            acknowledged: 0,
            broken: None,
            server_is_up: true,
            image: true,
            record_released: false,
            lacks: ALL,
            link_is_up: false,
            network: BTreeSet::new(),
            crashes: 0,
            breaks: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let both = state.client_is_up && state.server_is_up && state.image;
        if state.link_is_up {
            actions.extend(state.network.iter().copied().map(Action::Deliver));
            if state.breaks < MOST_BREAKS {
                actions.push(Action::Breaks);
            }
        } else if both {
            actions.push(Action::Connects);
        }
        match state.client_is_up {
            true => {
                self.client_actions(state, actions);
                if state.crashes < MOST_CRASHES {
                    actions.push(Action::ClientCrashes);
                }
            }
            false => actions.push(Action::ClientStarts),
        }
        let may_release = match self.rules {
            Rules::ReleaseWhenAnswered => state.lacks == 0,
            _ => state.record_released,
        };
        match state.server_is_up {
            // With its links, in the end.
            true if may_release && !state.link_is_up => actions.push(Action::Releases),
            true if state.crashes < MOST_CRASHES => actions.push(Action::ServerCrashes),
            true => {}
            false => actions.push(Action::ServerStarts),
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.act(&mut state, action);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("what the guest wrote is never replaced", |_, s: &State| {
                s.broken.is_none()
            }),
            Property::always("what is present has its content", |_, s: &State| {
                let holds = |disk: Disk| disk.present & !disk.content == 0;
                holds(s.now) && holds(s.durable)
            }),
            Property::always("what the guest was told is durable is", |_, s: &State| {
                let here = match s.client_is_up {
                    true => s.now,
                    false => s.durable,
                };
                s.acknowledged & !here.written == 0
            }),
            Property::always(
                "the image stays until all of it is elsewhere",
                |_, s: &State| s.image || s.durable.present == ALL,
            ),
            Property::always("what is absent can be asked for", |_, s: &State| {
                let absent = ALL & !s.now.present;
                let waits = (0..BLOCKS).all(|block| {
                    s.asked & absent & bit(block) == 0
                        || s.network.contains(&Message::Request(block))
                        || s.network.contains(&Message::Answer(block))
                });
                !s.client_is_up || waits
            }),
            Property::sometimes("all comes, and the image is let go", |_, s: &State| {
                !s.image && s.now.written == 0
            }),
            Property::sometimes("all comes though both have crashed", |_, s: &State| {
                s.crashes == MOST_CRASHES && s.breaks > 0 && !s.image
            }),
            Property::sometimes(
                "an answer comes for a block that was written meanwhile",
                |_, s: &State| {
                    s.network.contains(&Message::Answer(0)) && s.now.written & bit(0) != 0
                },
            ),
        ]
    }
}

#[test]
fn what_is_pulled_is_neither_lost_nor_undone() {
    checked::holds(Pull { rules: Rules::Ours }, 1000);
}

#[test]
fn the_model_sees_a_broken_rule() {
    for (rules, broken) in [
        (Rules::PlaceAgain, "what the guest wrote is never replaced"),
        (Rules::MapFirst, "what is present has its content"),
        (
            Rules::FinishBeforeFlush,
            "the image stays until all of it is elsewhere",
        ),
        (
            Rules::ReleaseWhenAnswered,
            "the image stays until all of it is elsewhere",
        ),
        (Rules::AskedStays, "what is absent can be asked for"),
    ] {
        checked::shows(Pull { rules }, broken);
    }
}
