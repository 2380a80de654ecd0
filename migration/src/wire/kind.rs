//! The kinds of control frames: who may send each of them, when, how often, and how long it may be.
//!
//! Both sides hold to the one table here. It bounds what a peer can make the other side keep: whatever does
//! not stand in it is refused by its header, before any of its body is read.

use super::MAX_STATE;
use super::digests::{HEAD_LEN, MAX_QUESTION};
use super::left::MAX_LEFT;
use crate::observation::Side;
use crate::progress::Phase;

const SMALL: usize = 4 << 10;
const MEDIUM: usize = 256 << 10;
const LARGE: usize = 4 << 20;

/// Most bytes of forwarded packets, in one frame.
pub const MAX_FORWARDED: usize = LARGE;
/// Most bytes of samples of disks, which come with the last pass.
pub const MAX_SAMPLES: usize = MEDIUM / 2;
/// Most frames that say which blocks of disks are left: of as many and as large disks as travel at most.
const MOST_LEFT: u32 = 1 << 18;
/// Most frames of forwarded packets.
const MOST_FORWARDED: u32 = 8;

/// A kind of control frames. Numbers from 32 on are kept for post-copy, from 48 on for groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Go on.
    Welcome = 1,
    /// What is to come.
    Negotiate,
    /// This host can build and run the machine.
    Negotiated,
    /// Build it.
    Prepare,
    /// It is built.
    Prepared,
    /// Where memory holds data.
    Extents,
    /// All pages of a pass are in place.
    PassPlaced,
    /// After this pass no page follows.
    LastPass,
    /// State of the paused machine.
    State,
    /// Everything is loaded.
    Ready,
    /// The decision is recorded, run the guest.
    Commit,
    /// The guest runs.
    Committed,
    /// The source has let go.
    Finish,
    /// It ends here, for this reason.
    Failure,
    /// Are you there?
    Ping,
    /// The answer to a ping.
    Pong,
    /// What became of the guest.
    Resolution,
    /// Only a plan, good-bye.
    PlanEnd,
    /// Packets that came for the guest after it was stopped.
    Forwarded,
    /// Are these blocks there?
    BlockDigests,
    /// Which of them are.
    BlocksPresent,
    /// Which blocks of a disk stay with its source.
    BlocksLeft,
}

/// How many kinds there are.
pub(crate) const KINDS: usize = RULES.len();

/// Who sends frames of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    Source,
    Destination,
    Both,
}

/// How often frames of a kind may come in one conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Times {
    AtMost(u32),
    /// For each pass that the source has begun.
    EachPass,
    /// Nothing is kept of it, or as much as whoever takes it says.
    Any,
}

const ONCE: Times = Times::AtMost(1);

struct Rule {
    kind: Kind,
    name: &'static str,
    from: Sender,
    /// The frame that must have passed before, from either side.
    after: Option<Kind>,
    times: Times,
    /// Longest body, in bytes.
    longest: usize,
    /// The phase that begins with it.
    begins: Option<Phase>,
}

const fn rule(
    kind: Kind,
    name: &'static str,
    from: Sender,
    after: Option<Kind>,
    times: Times,
    longest: usize,
    begins: Option<Phase>,
) -> Rule {
    Rule {
        kind,
        name,
        from,
        after,
        times,
        longest,
        begins,
    }
}

/// By number, from 1.
#[rustfmt::skip]
const RULES: [Rule; 22] = {
    use Sender::{Both, Destination as D, Source as S};
    use Kind::*;
    use Times::{Any, AtMost, EachPass};
    [
        rule(Welcome,    "welcome",     D, None,             ONCE,              SMALL,     Some(Phase::Negotiate)),
        rule(Negotiate,  "negotiate",   S, Some(Welcome),    ONCE,              LARGE,     None),
        rule(Negotiated, "negotiated",  D, Some(Negotiate),  ONCE,              MEDIUM,    None),
        rule(Prepare,    "prepare",     S, Some(Negotiated), ONCE,              0,         Some(Phase::Prepare)),
        rule(Prepared,   "prepared",    D, Some(Prepare),    ONCE,              SMALL,     Some(Phase::Precopy)),
        rule(Extents,    "extents",     S, Some(Prepared),   ONCE,              LARGE,     None),
        rule(PassPlaced, "pass-placed", D, Some(Prepared),   EachPass,          SMALL,     None),
        rule(LastPass,   "last-pass",   S, Some(State),      ONCE,              MEDIUM,    None),
        rule(State,      "state",       S, Some(Prepared),   ONCE,              MAX_STATE, Some(Phase::StopAndCopy)),
        rule(Ready,      "ready",       D, Some(LastPass),   ONCE,              SMALL,     Some(Phase::Ready)),
        rule(Commit,     "commit",      S, Some(Ready),      ONCE,              0,         Some(Phase::Commit)),
        rule(Committed,  "committed",   D, Some(Commit),     ONCE,              MEDIUM,    Some(Phase::Finish)),
        rule(Finish,     "finish",      S, Some(Committed),  ONCE,              0,         None),
        rule(Failure,    "failure",     Both, None,          ONCE,              MEDIUM,    None),
        rule(Ping,       "ping",        Both, None,          Any,               SMALL,     None),
        rule(Pong,       "pong",        Both, None,          Any,               SMALL,     None),
        rule(Resolution, "resolution",  D, Some(Ready),      ONCE,              SMALL,     None),
        rule(PlanEnd,    "plan-end",    S, Some(Negotiated), ONCE,              0,         None),
        rule(Forwarded,  "forwarded",   S, Some(Committed),  AtMost(MOST_FORWARDED), MAX_FORWARDED, None),
        rule(BlockDigests,  "block-digests",  S, Some(Prepared),     Any,    MAX_QUESTION, None),
        rule(BlocksPresent, "blocks-present", D, Some(BlockDigests), Any,    HEAD_LEN,  None),
        rule(BlocksLeft,    "blocks-left",    S, Some(State),        AtMost(MOST_LEFT), MAX_LEFT, None),
    ]
};

impl Kind {
    /// The kind with this number, if there is one.
    pub fn of_number(number: u16) -> Option<Self> {
        let rule = RULES.get(usize::from(number).checked_sub(1)?)?;
        Some(rule.kind)
    }

    /// Its number on the wire.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// Its place in tables of [`KINDS`] entries.
    pub(crate) fn index(self) -> usize {
        usize::from(self.number()) - 1
    }

    fn rule(self) -> &'static Rule {
        &RULES[self.index()]
    }

    /// What it is called in messages.
    pub fn name(self) -> &'static str {
        self.rule().name
    }

    /// Longest body, in bytes.
    pub fn longest(self) -> usize {
        self.rule().longest
    }

    pub(crate) fn is_from(self, side: Side) -> bool {
        match self.rule().from {
            Sender::Source => side == Side::Source,
            Sender::Destination => side == Side::Destination,
            Sender::Both => true,
        }
    }

    pub(crate) fn after(self) -> Option<Self> {
        self.rule().after
    }

    pub(crate) fn times(self) -> Times {
        self.rule().times
    }

    pub(crate) fn begins(self) -> Option<Phase> {
        self.rule().begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_numbers() {
        for (index, rule) in RULES.iter().enumerate() {
            assert_eq!(rule.kind.index(), index, "{}", rule.name);
        }
        assert_eq!(Kind::of_number(0), None);
        assert_eq!(Kind::of_number(KINDS as u16 + 1), None);
    }
}
