//! A disk that moves again before it is whole: A to B to C, whom each block is asked of, and when each source is released,
//! model-checked.
//!
//! Two blocks: A has both; the guest at B may write one of them. B fetches from A as long as its guest is here, and is a client of A;
//! C has a chain of two sources, B and A. B's VM, the servers of B and A, and C may be killed at any moment. Who may run the guest in
//! which order of messages is in `model.rs`, who serves B's image in `model_takeover.rs`: here the destination runs it, or never
//! will, once the commit is sent, and whoever serves B's image does so when B's VM has let go of it.

mod checked;

use stateright::{Model, Property};

const ALL: u8 = 0b11;
/// The block that the guest writes at B.
const WRITTEN: usize = 1;

/// What is in a block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Content {
    /// As A has it.
    First,
    /// As the guest wrote it at B.
    Second,
    /// Of an image that lacks it.
    Nothing,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Handover {
    Begun,
    CommitSent,
    Gone,
    Kept,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Vm {
    Runs,
    Still,
    /// It has let go of the image, or has ended.
    LetGo,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum There {
    Waits,
    Runs,
    Never,
}

/// A host that serves an image.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Server {
    is_up: bool,
    /// By whom, as it has recorded.
    released: Option<Client>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Client {
    B,
    C,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    /// What the guest would have to read of the block that it may have written.
    written: Content,
    /// Blocks that B has, in memory and durably.
    b_has: u8,
    b_keeps: u8,
    b_vm: Vm,
    handover: Option<Handover>,
    /// Whether C was told of A, too.
    chain_has_a: bool,
    /// B's guest was run again from its image.
    used: bool,
    a: Server,
    b: Server,
    there: There,
    /// What C has, in memory; and which blocks durably.
    c_has: [Option<Content>; 2],
    c_keeps: u8,
    /// Whether B has said what it has, as C knows, and what it lacks as C knows it, in memory and durably.
    c_was_told: bool,
    c_knows_lacks: u8,
    c_keeps_lacks: u8,
    /// Whether it is durable, too, that these are all.
    c_keeps_told: bool,
    crashes: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Action {
    GuestWrites,
    BFetches(usize),
    BKeeps,
    BFinishes,
    Begins,
    Stops,
    Fails,
    SendsCommit,
    Runs,
    NeverRuns,
    HearsRan,
    HearsNeverRan,
    LetsGo,
    BIsKilled,
    IsRunAgain,
    AIsKilled,
    AStarts,
    BServerIsKilled,
    BServerStarts,
    CAsksWhatBHas,
    CKeepsLack(usize),
    CKeepsThatItWasTold,
    CFetchesFromB(usize),
    CFetchesFromA(usize),
    CKeeps,
    CFinishesB,
    CFinishesA,
    CIsKilled,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    Ours,
    /// B tells A that it is whole also while its guest leaves.
    FinishesWhileLeaving,
    /// C asks A for what B has not said that it has.
    AsksNextAtOnce,
    /// A server answers for what its image lacks, and is not asked what it has.
    ServesAll,
    /// C has B released when it has what B has, and may forget that it lacks nothing of it.
    ReleasesBeforeItIsKept,
    /// C has A released when it has what came from there.
    ReleasesWhatItForgets,
    /// C may record that B has said all before all of that is durable.
    KeepsTheEndFirst,
    /// An image that holds a part of a disk is run, whoever was given its guest.
    RunsAnyPart,
}

struct Chain {
    rules: Rules,
}

fn bit(block: usize) -> u8 {
    1 << block
}

impl State {
    fn is_leaving(&self) -> bool {
        matches!(
            self.handover,
            Some(Handover::Begun | Handover::CommitSent | Handover::Gone)
        )
    }

    fn is_given(&self) -> bool {
        matches!(self.handover, Some(Handover::CommitSent | Handover::Gone))
    }

    /// What the guest has to find.
    fn truth(&self, block: usize) -> Content {
        match block {
            WRITTEN => self.written,
            _ => Content::First,
        }
    }

    fn b_serves(&self) -> bool {
        let gone = self.b_vm == Vm::LetGo && self.is_given() && !self.used;
        gone && self.b.is_up && self.b.released.is_none()
    }

    fn a_serves(&self) -> bool {
        self.a.is_up && self.a.released.is_none()
    }

    /// What B lacks, as C knows it now.
    fn lacks(&self) -> u8 {
        self.c_knows_lacks | self.c_keeps_lacks
    }

    fn c_in_memory(&self) -> u8 {
        let present = |block: &usize| self.c_has[*block].is_some();
        (0..2).filter(present).map(bit).sum()
    }
}

impl Chain {
    fn may_finish_b(&self, state: &State) -> bool {
        let lacks = match self.rules {
            Rules::ReleasesBeforeItIsKept => state.lacks(),
            _ => state.c_keeps_lacks,
        };
        state.c_keeps | lacks == ALL
    }

    fn may_finish_a(&self, state: &State) -> bool {
        let here = match self.rules {
            Rules::ReleasesWhatItForgets => state.c_in_memory(),
            _ => state.c_keeps,
        };
        // All else is B's for certain.
        let of_b = match state.c_was_told {
            true => ALL & !state.lacks(),
            false => 0,
        };
        state.chain_has_a && here | of_b == ALL
    }

    fn of_c(&self, state: &State, actions: &mut Vec<Action>) {
        use Action::{
            CAsksWhatBHas, CFetchesFromA, CFetchesFromB, CFinishesA, CFinishesB, CIsKilled, CKeeps,
            CKeepsLack, CKeepsThatItWasTold,
        };
        if state.b_serves() {
            actions.push(CAsksWhatBHas);
        }
        for block in 0..2 {
            let lacks = state.lacks() & bit(block) != 0;
            if state.c_knows_lacks & bit(block) != 0 {
                actions.push(CKeepsLack(block));
            }
            if state.c_has[block].is_some() {
                continue;
            }
            let is_bs = match self.rules {
                Rules::ServesAll => true,
                _ => state.c_was_told && !lacks,
            };
            if is_bs && state.b_serves() {
                actions.push(CFetchesFromB(block));
            }
            let is_as = lacks || self.rules == Rules::AsksNextAtOnce;
            if is_as && state.chain_has_a && state.a_serves() {
                actions.push(CFetchesFromA(block));
            }
        }
        let all_are_kept = match self.rules {
            Rules::KeepsTheEndFirst => true,
            _ => state.c_keeps_lacks & state.c_knows_lacks == state.c_knows_lacks,
        };
        if state.c_was_told && all_are_kept {
            actions.push(CKeepsThatItWasTold);
        }
        actions.push(CKeeps);
        if state.b_serves() && self.may_finish_b(state) {
            actions.push(CFinishesB);
        }
        if state.a_serves() && self.may_finish_a(state) {
            actions.push(CFinishesA);
        }
        if state.crashes < 2 {
            actions.push(CIsKilled);
        }
    }

    fn of_b(&self, state: &State, actions: &mut Vec<Action>) {
        use Handover::{Begun, CommitSent, Gone, Kept};
        if state.b_vm != Vm::LetGo {
            for block in 0..2 {
                if state.b_has & bit(block) == 0 && state.a_serves() {
                    actions.push(Action::BFetches(block));
                }
            }
            actions.extend([Action::BKeeps, Action::BIsKilled]);
            let may = !state.is_leaving() || self.rules == Rules::FinishesWhileLeaving;
            if may && state.b_keeps == ALL && state.a_serves() {
                actions.push(Action::BFinishes);
            }
        }
        match (state.b_vm, state.handover) {
            (Vm::Runs, None) => actions.extend([Action::GuestWrites, Action::Begins]),
            (Vm::Runs, Some(Begun)) => {
                actions.extend([Action::GuestWrites, Action::Stops, Action::Fails]);
            }
            (Vm::Still, Some(Begun)) => actions.extend([Action::SendsCommit, Action::Fails]),
            (Vm::Still, Some(CommitSent)) => match state.there {
                There::Waits => {}
                There::Runs => actions.push(Action::HearsRan),
                There::Never => actions.push(Action::HearsNeverRan),
            },
            (Vm::Still, Some(Gone)) => actions.push(Action::LetsGo),
            (Vm::Runs, Some(Kept)) => actions.push(Action::GuestWrites),
            _ => {}
        }
        let is_in_part = state.b_keeps != ALL && self.rules == Rules::RunsAnyPart;
        let is_free = state.b_vm == Vm::LetGo && !state.used;
        if is_free && (!state.is_given() || is_in_part) {
            actions.push(Action::IsRunAgain);
        }
    }
}

impl Model for Chain {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let server = Server {
            is_up: true,
            released: None,
        };
        vec![State {
            written: Content::First,
            b_has: 0,
            b_keeps: 0,
            b_vm: Vm::Runs,
            handover: None,
            chain_has_a: false,
            used: false,
            a: server,
            b: server,
            there: There::Waits,
            c_has: [None; 2],
            c_keeps: 0,
            c_was_told: false,
            c_knows_lacks: 0,
            c_keeps_lacks: 0,
            c_keeps_told: false,
            crashes: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.of_b(state, actions);
        if state.there == There::Waits {
            if state.is_given() {
                actions.push(Action::Runs);
            }
            if state.handover != Some(Handover::Gone) {
                actions.push(Action::NeverRuns);
            }
        }
        if state.there == There::Runs {
            self.of_c(state, actions);
        }
        for (is_up, killed, starts) in [
            (state.a.is_up, Action::AIsKilled, Action::AStarts),
            (
                state.b.is_up,
                Action::BServerIsKilled,
                Action::BServerStarts,
            ),
        ] {
            match is_up {
                true if state.crashes < 2 => actions.push(killed),
                true => {}
                false => actions.push(starts),
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            // Each write is flushed at once.
            Action::GuestWrites => {
                state.written = Content::Second;
                state.b_has |= bit(WRITTEN);
                state.b_keeps |= bit(WRITTEN);
            }
            Action::BFetches(block) => state.b_has |= bit(block),
            Action::BKeeps => state.b_keeps = state.b_has,
            Action::BFinishes => state.a.released = Some(Client::B),
            Action::Begins => {
                state.handover = Some(Handover::Begun);
                state.chain_has_a = state.a.released.is_none();
            }
            Action::Stops => state.b_vm = Vm::Still,
            Action::Fails | Action::HearsNeverRan => {
                state.b_vm = Vm::Runs;
                state.handover = Some(Handover::Kept);
                state.there = There::Never;
            }
            Action::SendsCommit => state.handover = Some(Handover::CommitSent),
            Action::Runs => state.there = There::Runs,
            Action::NeverRuns => state.there = There::Never,
            Action::HearsRan => state.handover = Some(Handover::Gone),
            Action::LetsGo => {
                state.b_keeps = state.b_has;
                state.b_vm = Vm::LetGo;
            }
            Action::BIsKilled => {
                state.b_has = state.b_keeps;
                state.b_vm = Vm::LetGo;
            }
            Action::IsRunAgain => state.used = true,
            Action::AIsKilled => (state.a.is_up, state.crashes) = (false, state.crashes + 1),
            Action::AStarts => state.a.is_up = true,
            Action::BServerIsKilled => (state.b.is_up, state.crashes) = (false, state.crashes + 1),
            Action::BServerStarts => state.b.is_up = true,
            Action::CAsksWhatBHas => {
                state.c_was_told = true;
                state.c_knows_lacks = ALL & !state.b_keeps;
            }
            Action::CKeepsLack(block) => state.c_keeps_lacks |= bit(block),
            Action::CKeepsThatItWasTold => state.c_keeps_told = true,
            Action::CFetchesFromB(block) => {
                let has = state.b_keeps & bit(block) != 0;
                state.c_has[block] = Some(match has {
                    true => state.truth(block),
                    false => Content::Nothing,
                });
            }
            Action::CFetchesFromA(block) => state.c_has[block] = Some(Content::First),
            Action::CKeeps => state.c_keeps = state.c_in_memory(),
            Action::CFinishesB => state.b.released = Some(Client::C),
            Action::CFinishesA => state.a.released = Some(Client::C),
            Action::CIsKilled => {
                state.crashes += 1;
                for block in 0..2 {
                    if state.c_keeps & bit(block) == 0 {
                        state.c_has[block] = None;
                    }
                }
                state.c_was_told = state.c_keeps_told;
                state.c_knows_lacks = 0;
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("C has what the guest wrote last", |_, s: &State| {
                (0..2).all(|block| s.c_has[block].is_none_or(|found| found == s.truth(block)))
            }),
            Property::always("what C may lose can be had", |_, s: &State| {
                let can = |block: usize| {
                    let b_has = s.b_keeps & bit(block) != 0 && s.b.released.is_none();
                    let a_has = s.chain_has_a && s.a.released.is_none();
                    let b_lacks = s.b_keeps & bit(block) == 0;
                    // Of one that has been released nobody can ask any more what it had.
                    let is_known = s.b.released.is_none() || s.c_keeps_lacks & bit(block) != 0;
                    s.c_keeps & bit(block) != 0 || b_has || (b_lacks && is_known && a_has)
                };
                s.there != There::Runs || s.b_vm != Vm::LetGo || (0..2).all(can)
            }),
            Property::always("what B may lose can be had", |_, s: &State| {
                s.there == There::Runs || s.b_keeps == ALL || s.a.released.is_none()
            }),
            Property::always("one host is a client of a source", |_, s: &State| {
                !(s.chain_has_a && s.is_leaving() && s.a.released == Some(Client::B))
            }),
            Property::always("the guest runs once", |_, s: &State| {
                !(s.used && s.there == There::Runs)
            }),
            Property::sometimes("both are released, and C is whole", |_, s: &State| {
                let by_c = Some(Client::C);
                s.a.released == by_c
                    && s.b.released == by_c
                    && s.c_keeps == ALL
                    && s.written == Content::Second
            }),
            Property::sometimes("B is released before A", |_, s: &State| {
                s.b.released.is_some() && s.a.released.is_none() && s.c_keeps != ALL
            }),
            Property::sometimes("A is released before B", |_, s: &State| {
                s.a.released == Some(Client::C) && s.b.released.is_none() && s.c_keeps != ALL
            }),
            Property::sometimes("C goes on with A while B is away", |_, s: &State| {
                !s.b.is_up && s.crashes == 2 && s.c_knows_lacks == 0 && s.c_was_told
            }),
            Property::sometimes("B has the guest again", |_, s: &State| {
                s.used || s.handover == Some(Handover::Kept)
            }),
        ]
    }
}

#[test]
fn each_block_comes_from_who_has_it_and_who_is_needed_is_not_released() {
    checked::holds(Chain { rules: Rules::Ours }, 5_000);
}

#[test]
fn the_model_sees_a_broken_rule() {
    for (rules, broken) in [
        (
            Rules::FinishesWhileLeaving,
            "one host is a client of a source",
        ),
        (Rules::AsksNextAtOnce, "C has what the guest wrote last"),
        (Rules::ServesAll, "C has what the guest wrote last"),
        (Rules::ReleasesBeforeItIsKept, "what C may lose can be had"),
        (Rules::ReleasesWhatItForgets, "what C may lose can be had"),
        (Rules::KeepsTheEndFirst, "what C may lose can be had"),
        (Rules::RunsAnyPart, "the guest runs once"),
    ] {
        checked::shows(Chain { rules }, broken);
    }
}
