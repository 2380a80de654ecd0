//! Every order in which the steps of fetches, of a write of a whole block, of one of a part and of a read can happen, with
//! the very code that decides who may do what ([`Blocks`]) and a block of two halves.

use std::sync::Arc;

use super::bits::{BLOCK, Bits};
use super::blocks::{Awaited, Blocks, Cover, Covered, Outcome, Run};

/// What the halves hold.
const LEFT_BEHIND: u8 = 0;
const ORIGIN: u8 = 1;
const WHOLE: u8 = 2;
const PART: u8 = 3;

/// Whether something comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    Well,
    /// The first time it fails, after it has left half of it behind.
    BadlyAtFirst,
}

enum At {
    /// It may begin.
    Ready,
    /// It is told when it may begin again.
    Waits,
    Asked(Run),
    /// It writes the half of this number next.
    Places(Run, usize),
    Covers(Covered, usize),
    /// It writes to a block that is present.
    Writes,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    /// Asks for what nobody asked for, once.
    Background(Ends),
    /// Asks for what requests wait for.
    Demands(Ends),
    WritesWhole(Ends),
    WritesPart,
    Reads,
}

struct Actor {
    does: Does,
    at: At,
    fails: bool,
}

struct Scene {
    blocks: Blocks,
    actors: Vec<Actor>,
    halves: [u8; 2],
    /// Somebody was told to fetch.
    asked: bool,
    whole_ended: bool,
}

impl Scene {
    fn new(all: &[Does]) -> Self {
        let actor = |does: &Does| {
            let ends = match does {
                Does::Background(ends) | Does::Demands(ends) | Does::WritesWhole(ends) => *ends,
                Does::WritesPart | Does::Reads => Ends::Well,
            };
            Actor {
                does: *does,
                at: At::Ready,
                fails: ends == Ends::BadlyAtFirst,
            }
        };
        Self {
            blocks: Blocks::new(BLOCK, Arc::new(Bits::new(1))),
            actors: all.iter().map(actor).collect(),
            halves: [LEFT_BEHIND; 2],
            asked: false,
            whole_ended: false,
        }
    }

    fn can_go_on(&self, index: usize) -> bool {
        let actor = &self.actors[index];
        match (&actor.at, actor.does) {
            (At::Ready, Does::Demands(_)) => self.asked,
            (At::Waits | At::Done, _) => false,
            _ => true,
        }
    }

    fn told(&mut self, awaited: Awaited) {
        if awaited == Awaited::Yes {
            for actor in &mut self.actors {
                if matches!(actor.at, At::Waits) {
                    actor.at = At::Ready;
                }
            }
        }
    }

    fn step(&mut self, index: usize) {
        let at = std::mem::replace(&mut self.actors[index].at, At::Done);
        let does = self.actors[index].does;
        let is_demand = matches!(does, Does::Demands(_));
        let next = match at {
            At::Ready => self.begin(does),
            At::Asked(run) if std::mem::take(&mut self.actors[index].fails) => {
                let awaited = self.blocks.give_up(&run);
                self.told(awaited);
                if is_demand { At::Ready } else { At::Done }
            }
            At::Asked(run) => match self.blocks.begin_placing(&run).as_slice() {
                [] if is_demand => At::Ready,
                [] => At::Done,
                mine => {
                    assert_eq!(mine.first(), Some(&(0..1)));
                    At::Places(run, 0)
                }
            },
            At::Places(run, half @ 0..2) => {
                self.assert_alone();
                self.halves[half] = ORIGIN;
                At::Places(run, half + 1)
            }
            At::Places(run, _) => {
                let awaited = self.blocks.end_placing(run.blocks, Outcome::Written);
                self.told(awaited);
                if is_demand { At::Ready } else { At::Done }
            }
            At::Covers(covered, 1) if std::mem::take(&mut self.actors[index].fails) => {
                let awaited = self.blocks.end_cover(covered, Outcome::Failed);
                self.told(awaited);
                At::Ready
            }
            At::Covers(covered, half @ 0..2) => {
                self.assert_alone();
                self.halves[half] = WHOLE;
                At::Covers(covered, half + 1)
            }
            At::Covers(covered, _) => {
                let awaited = self.blocks.end_cover(covered, Outcome::Written);
                self.told(awaited);
                self.whole_ended = true;
                At::Done
            }
            At::Writes => {
                match does {
                    Does::WritesPart => self.halves[1] = PART,
                    _ => self.halves = [WHOLE; 2],
                }
                self.whole_ended |= matches!(does, Does::WritesWhole(_));
                At::Done
            }
            At::Waits | At::Done => unreachable!("it cannot go on"),
        };
        self.actors[index].at = next;
    }

    fn begin(&mut self, does: Does) -> At {
        match does {
            Does::Background(_) => self
                .blocks
                .next_background(8, &|_| false)
                .map_or(At::Done, At::Asked),
            Does::Demands(_) => {
                self.asked = false;
                self.blocks
                    .next_demand(&|_| false)
                    .map_or(At::Ready, At::Asked)
            }
            Does::WritesWhole(_) => self.change(0..BLOCK),
            Does::WritesPart => self.change(BLOCK / 2..BLOCK),
            Does::Reads => {
                if let Some(asked) = self.blocks.want(&(0..512)) {
                    self.asked |= asked;
                    return At::Waits;
                }
                assert_ne!(self.halves[0], LEFT_BEHIND, "read of what is not here");
                if self.whole_ended {
                    assert_eq!(self.halves[0], WHOLE, "older than what was written");
                }
                At::Done
            }
        }
    }

    fn change(&mut self, range: std::ops::Range<u64>) -> At {
        if self.blocks.are_present(&range) {
            return At::Writes;
        }
        match self.blocks.cover(&range, &mut self.asked) {
            Cover::Waits => At::Waits,
            Cover::Taken(covered) if covered == Covered::default() => At::Writes,
            Cover::Taken(covered) => At::Covers(covered, 0),
        }
    }

    /// A block that is not present is written by one alone.
    fn assert_alone(&self) {
        let writes = |actor: &&Actor| matches!(actor.at, At::Places(..) | At::Covers(..));
        // The one that takes this step is not among them.
        assert_eq!(
            self.actors.iter().filter(writes).count(),
            0,
            "two write at once"
        );
        assert!(!self.blocks.are_present(&(0..BLOCK)), "it was here already");
    }

    fn assert_end(&self) {
        let does = |does: fn(&Does) -> bool| self.actors.iter().any(|actor| does(&actor.does));
        for actor in &self.actors {
            let is_idle = matches!(actor.does, Does::Demands(_)) && matches!(actor.at, At::Ready);
            assert!(
                is_idle || matches!(actor.at, At::Done),
                "{:?} waits for ever",
                actor.does
            );
        }
        let whole = does(|does| matches!(does, Does::WritesWhole(_)));
        let part = does(|does| *does == Does::WritesPart);
        assert_eq!(self.halves[0], if whole { WHOLE } else { ORIGIN });
        match (whole, part) {
            (true, true) => assert!([WHOLE, PART].contains(&self.halves[1])),
            (true, false) => assert_eq!(self.halves[1], WHOLE),
            (false, true) => assert_eq!(self.halves[1], PART),
            (false, false) => assert_eq!(self.halves[1], ORIGIN),
        }
        assert_eq!(self.blocks.missing(), 0);
    }
}

/// Takes the steps of `order`, and then all others in every order; how many orders there were.
fn explore(all: &[Does], order: &mut Vec<usize>) -> usize {
    let mut scene = Scene::new(all);
    for index in &*order {
        scene.step(*index);
    }
    let able: Vec<_> = (0..all.len())
        .filter(|index| scene.can_go_on(*index))
        .collect();
    if able.is_empty() {
        scene.assert_end();
        return 1;
    }
    able.into_iter()
        .map(|index| {
            order.push(index);
            let orders = explore(all, order);
            order.pop();
            orders
        })
        .sum()
}

#[test]
fn what_was_written_here_wins_in_every_order() {
    use Does::{Background, Demands, Reads, WritesPart, WritesWhole};
    use Ends::{BadlyAtFirst, Well};
    for all in [
        &[Background(Well), WritesWhole(Well), Reads, Demands(Well)][..],
        &[Background(BadlyAtFirst), Reads, Demands(Well)],
        &[Background(Well), WritesPart, Demands(Well)],
        &[Demands(BadlyAtFirst), WritesPart, Reads],
        &[WritesWhole(BadlyAtFirst), Background(Well), Demands(Well)],
        &[WritesWhole(Well), WritesPart, Demands(Well)],
        &[WritesWhole(BadlyAtFirst), Reads, Demands(BadlyAtFirst)],
    ] {
        let orders = explore(all, &mut Vec::new());
        assert!(orders > 10, "{all:?}: {orders}");
    }
}
