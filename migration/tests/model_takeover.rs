//! Who serves a disk when its guest has gone before its content: the process that takes its image over, model-checked.
//!
//! The guest's VM writes its image as long as the guest is here, and owns it until it lets go of it. Beside it waits whoever is to
//! serve the image, with a record; the destination has a map that says that it lacks everything. The VM, the server and whoever
//! asked for the move may be killed at any moment; the server is started again by its user. What of the link the commit is lost
//! on is in `model.rs`: here the destination runs the guest, or never will, once the commit is sent.

mod checked;

use stateright::{Model, Property};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Handover {
    /// The image is marked.
    Begun,
    CommitSent,
    Gone,
    Kept,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Vm {
    Runs,
    /// Stopped, with its image.
    Still,
    /// It has let go of the image, or has ended.
    LetGo,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Server {
    /// It waits for the image.
    Waits,
    /// It has the image, and answers.
    Serves,
    Killed,
    /// It has ended by itself.
    Ended,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum There {
    /// The machine is built.
    Waits,
    Runs,
    Never,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    vm: Vm,
    handover: Option<Handover>,
    /// What the guest wrote last, here.
    image: u8,
    server: Server,
    record: bool,
    /// Whether whoever asked for the move is there, and what it has heard.
    asker: bool,
    there: There,
    /// What the destination has fetched.
    fetched: Option<u8>,
    /// Another guest was started from the image.
    used: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Action {
    GuestWrites,
    Marks,
    Stops,
    /// Before the commit, for whatever reason.
    Fails,
    SendsCommit,
    /// The destination decides, by its record.
    Runs,
    NeverRuns,
    HearsRan,
    HearsNeverRan,
    LetsGo,
    VmIsKilled,
    AskerIsKilled,
    /// It tells the server that the guest stays.
    AskerTells,
    ServerIsKilled,
    ServerStartsAgain,
    ServerLooks,
    Fetches,
    /// `vmm run` with the image.
    IsRunAgain,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    Ours,
    /// A server answers before it has the image.
    AnswersBefore,
    /// A server that gets the image ends unless the source has recorded that the guest is gone.
    EndsInDoubt,
    /// A server ends when whoever started it is killed.
    EndsWithAsker,
    /// A server does not look whether the guest has gone.
    ServesWhoever,
    /// A destination asks as soon as it is built.
    AsksAtOnce,
}

struct Takeover {
    rules: Rules,
}

impl Takeover {
    fn is_given(state: &State) -> bool {
        matches!(state.handover, Some(Handover::CommitSent | Handover::Gone))
    }

    /// What a server does with what it finds.
    fn look(&self, state: &mut State) {
        if state.vm == Vm::LetGo && !state.used {
            let serves = match self.rules {
                Rules::EndsInDoubt => state.handover == Some(Handover::Gone),
                Rules::ServesWhoever => true,
                _ => Self::is_given(state),
            };
            (state.server, state.record) = match serves {
                true => (Server::Serves, true),
                false => (Server::Ended, false),
            };
        } else if state.handover == Some(Handover::Kept) {
            (state.server, state.record) = (Server::Ended, false);
        }
    }

    fn act(&self, state: &mut State, action: Action) {
        match action {
            Action::GuestWrites => state.image = (state.image + 1).min(2),
            Action::Marks => state.handover = Some(Handover::Begun),
            Action::Stops => state.vm = Vm::Still,
            Action::Fails => {
                state.vm = Vm::Runs;
                state.handover = Some(Handover::Kept);
                state.there = There::Never;
            }
            Action::SendsCommit => state.handover = Some(Handover::CommitSent),
            Action::Runs => state.there = There::Runs,
            Action::NeverRuns => state.there = There::Never,
            Action::HearsRan => state.handover = Some(Handover::Gone),
            Action::HearsNeverRan => {
                state.vm = Vm::Runs;
                state.handover = Some(Handover::Kept);
            }
            Action::LetsGo | Action::VmIsKilled => state.vm = Vm::LetGo,
            Action::AskerIsKilled => {
                state.asker = false;
                if self.rules == Rules::EndsWithAsker && state.server == Server::Waits {
                    (state.server, state.record) = (Server::Ended, false);
                }
            }
            Action::AskerTells => (state.server, state.record) = (Server::Ended, false),
            Action::ServerIsKilled => state.server = Server::Killed,
            Action::ServerStartsAgain | Action::ServerLooks => self.look(state),
            Action::Fetches => state.fetched = Some(state.image),
            Action::IsRunAgain => {
                state.used = true;
                state.image = 3;
            }
        }
    }
}

impl Model for Takeover {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            vm: Vm::Runs,
            handover: None,
            image: 0,
            server: Server::Waits,
            record: true,
            asker: true,
            there: There::Waits,
            fetched: None,
            used: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        use Handover::{Begun, CommitSent, Gone};
        match (state.vm, state.handover) {
            (Vm::Runs, None) => actions.extend([Action::GuestWrites, Action::Marks]),
            (Vm::Runs, Some(Begun)) => {
                actions.extend([Action::GuestWrites, Action::Stops, Action::Fails]);
            }
            (Vm::Runs, _) => actions.push(Action::GuestWrites),
            (Vm::Still, Some(Begun)) => actions.extend([Action::SendsCommit, Action::Fails]),
            (Vm::Still, Some(CommitSent)) => match state.there {
                There::Waits => {}
                There::Runs => actions.push(Action::HearsRan),
                There::Never => actions.push(Action::HearsNeverRan),
            },
            (Vm::Still, Some(Gone)) => actions.push(Action::LetsGo),
            (Vm::Still | Vm::LetGo, _) => {}
        }
        if state.vm != Vm::LetGo {
            actions.push(Action::VmIsKilled);
        }
        if state.there == There::Waits {
            if matches!(state.handover, Some(CommitSent | Gone)) {
                actions.push(Action::Runs);
            }
            if state.handover != Some(Gone) {
                actions.push(Action::NeverRuns);
            }
        }
        if state.asker {
            actions.push(Action::AskerIsKilled);
            let stays = state.handover == Some(Handover::Kept);
            if stays && state.server == Server::Waits {
                actions.push(Action::AskerTells);
            }
        }
        match state.server {
            Server::Waits => actions.extend([Action::ServerLooks, Action::ServerIsKilled]),
            Server::Serves => actions.push(Action::ServerIsKilled),
            Server::Killed if state.record => actions.push(Action::ServerStartsAgain),
            Server::Killed | Server::Ended => {}
        }
        let answers = match self.rules {
            Rules::AnswersBefore => matches!(state.server, Server::Waits | Server::Serves),
            _ => state.server == Server::Serves,
        };
        let asks = match self.rules {
            Rules::AsksAtOnce | Rules::AnswersBefore => state.there != There::Never,
            _ => state.there == There::Runs,
        };
        if answers && asks && state.fetched.is_none() {
            actions.push(Action::Fetches);
        }
        // Refused where the journal says that the guest was given away; the claim of who serves it keeps everybody out.
        let is_free = state.vm == Vm::LetGo && state.server != Server::Serves && !state.used;
        if is_free && !Self::is_given(state) {
            actions.push(Action::IsRunAgain);
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
                "what is fetched is what was written last",
                |_, s: &State| s.fetched.is_none_or(|fetched| fetched == s.image),
            ),
            Property::always("who runs there can be served", |_, s: &State| {
                s.there != There::Runs || s.record
            }),
            Property::always(
                "nobody is asked for a guest that is here",
                |_, s: &State| s.fetched.is_none() || s.there == There::Runs,
            ),
            Property::always(
                "an image that is served is nobody's guest's",
                |_, s: &State| {
                    s.server != Server::Serves || (s.vm == Vm::LetGo && Self::is_given(s))
                },
            ),
            Property::always(
                "a guest that stays keeps no server once it was told",
                |_, s: &State| s.server != Server::Ended || !s.record,
            ),
            Property::sometimes("a guest goes, and is served", |_, s: &State| {
                s.fetched.is_some()
            }),
            Property::sometimes("also when its VM was killed in doubt", |_, s: &State| {
                s.fetched.is_some() && s.handover == Some(Handover::CommitSent)
            }),
            Property::sometimes("also without who asked for it", |_, s: &State| {
                s.fetched.is_some() && !s.asker
            }),
            Property::sometimes("a guest stays, and its server has gone", |_, s: &State| {
                s.handover == Some(Handover::Kept) && s.server == Server::Ended && !s.asker
            }),
            Property::sometimes("a killed guest runs again here", |_, s: &State| s.used),
        ]
    }
}

#[test]
fn an_image_is_served_by_who_takes_it_over_and_by_nobody_else() {
    checked::holds(Takeover { rules: Rules::Ours }, 200);
}

#[test]
fn the_model_sees_a_broken_rule() {
    for (rules, broken) in [
        (
            Rules::AnswersBefore,
            "what is fetched is what was written last",
        ),
        (Rules::EndsInDoubt, "who runs there can be served"),
        (Rules::EndsWithAsker, "who runs there can be served"),
        (
            Rules::ServesWhoever,
            "an image that is served is nobody's guest's",
        ),
        (
            Rules::AsksAtOnce,
            "nobody is asked for a guest that is here",
        ),
    ] {
        checked::shows(Takeover { rules }, broken);
    }
}
