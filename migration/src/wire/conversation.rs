//! What has passed on a control connection so far, and what may come next.

use super::kind::{KINDS, Kind, Times};
use crate::error::Error;
use crate::observation::Side;
use crate::progress::Phase;

/// The course of a control connection, by the table of [`Kind`]s.
#[derive(Debug)]
pub(crate) struct Conversation {
    us: Side,
    peer: Side,
    phase: Phase,
    passed: [u32; KINDS],
    /// Passes that the source has begun.
    passes: u32,
}

impl Conversation {
    /// A migration in which nothing was said, as `us` has it with the other side.
    pub fn new(us: Side) -> Self {
        Self {
            us,
            peer: match us {
                Side::Source => Side::Destination,
                _ => Side::Source,
            },
            phase: Phase::Negotiate,
            passed: [0; KINDS],
            passes: 0,
        }
    }

    /// What a source asks of a destination that did not answer: all was said but what became of the guest.
    pub fn of_question() -> Self {
        let mut this = Self::new(Side::Source);
        for kind in [Kind::Welcome, Kind::Ready] {
            this.pass(kind);
        }
        this
    }

    /// On a new link everything up to the pages was said before, and `placed` passes are placed.
    pub fn goes_on(&mut self, placed: u32) {
        for kind in [
            Kind::Welcome,
            Kind::Negotiate,
            Kind::Negotiated,
            Kind::Prepare,
            Kind::Prepared,
            Kind::Extents,
        ] {
            self.pass(kind);
        }
        self.passed[Kind::PassPlaced.index()] = placed;
        self.pass_begins(placed);
    }

    pub fn us(&self) -> Side {
        self.us
    }

    /// Whether a frame of `kind` has passed.
    pub fn has(&self, kind: Kind) -> bool {
        self.passed[kind.index()] > 0
    }

    /// How many passes were said to be placed.
    pub fn placed(&self) -> u32 {
        self.passed[Kind::PassPlaced.index()]
    }

    /// The source begins `pass`.
    pub fn pass_begins(&mut self, pass: u32) {
        self.passes = self.passes.max(pass);
    }

    /// A frame of ours is about to go out: from now on its answer may come.
    pub fn say(&mut self, kind: Kind) {
        debug_assert!(
            kind.is_from(self.us) && kind.after().is_none_or(|after| self.has(after)),
            "{} is said in phase {}",
            kind.name(),
            self.phase.name()
        );
        self.pass(kind);
    }

    /// A frame of the peer's begins.
    ///
    /// # Errors
    /// [`Error::Protocol`] when it may not come now.
    pub fn hear(&mut self, kind: Kind) -> Result<(), Error> {
        let may_come = kind.is_from(self.peer) && kind.after().is_none_or(|after| self.has(after));
        if !may_come {
            return Err(self.refuse(kind, "out of turn"));
        }
        let most = match kind.times() {
            Times::AtMost(most) => most,
            Times::EachPass => self.passes,
            Times::Any => u32::MAX,
        };
        if self.passed[kind.index()] >= most {
            return Err(self.refuse(kind, "once too often"));
        }
        self.pass(kind);
        Ok(())
    }

    fn pass(&mut self, kind: Kind) {
        let passed = &mut self.passed[kind.index()];
        *passed = passed.saturating_add(1);
        if let Some(phase) = kind.begins() {
            self.phase = phase;
        }
    }

    fn refuse(&self, kind: Kind, how: &str) -> Error {
        Error::Protocol(format!(
            "the {} sent {} (kind {}) {how} in phase {}",
            self.peer.name(),
            kind.name(),
            kind.number(),
            self.phase.name()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every frame of a migration, in order, with who sends it.
    const COURSE: [(Side, Kind); 13] = {
        use Kind::*;
        use Side::{Destination as D, Source as S};
        [
            (D, Welcome),
            (S, Negotiate),
            (D, Negotiated),
            (S, Prepare),
            (D, Prepared),
            (S, Extents),
            (D, PassPlaced),
            (S, State),
            (S, LastPass),
            (D, Ready),
            (S, Commit),
            (D, Committed),
            (S, Finish),
        ]
    };

    fn every_kind() -> impl Iterator<Item = Kind> {
        (1..).map_while(Kind::of_number)
    }

    /// As `us` has it after the first `count` frames.
    fn after(us: Side, count: usize) -> Conversation {
        let mut conversation = Conversation::new(us);
        conversation.pass_begins(1);
        for &(from, kind) in &COURSE[..count] {
            if from == us {
                conversation.say(kind);
            } else {
                conversation.hear(kind).unwrap();
            }
        }
        conversation
    }

    #[test]
    fn nothing_but_the_keep_alive_and_questions_comes_for_ever() {
        for us in [Side::Source, Side::Destination] {
            for count in 0..=COURSE.len() {
                for kind in every_kind() {
                    let mut conversation = after(us, count);
                    let came = (0..100)
                        .take_while(|_| conversation.hear(kind).is_ok())
                        .count();
                    let most = match kind {
                        // As many as the largest disks take.
                        Kind::BlocksLeft => 100,
                        Kind::Ping | Kind::Pong | Kind::BlockDigests => 100,
                        Kind::Forwarded => 8,
                        _ => 1,
                    };
                    assert!(came <= most, "{} after {count}: {came}", kind.name());
                }
            }
        }
    }

    #[test]
    fn no_frame_of_a_side_comes_from_the_other() {
        for (from, kind) in COURSE {
            for count in 0..=COURSE.len() {
                assert!(after(from, count).hear(kind).is_err(), "{}", kind.name());
            }
        }
    }

    #[test]
    fn no_frame_comes_before_what_it_answers() {
        for (at, &(from, kind)) in COURSE.iter().enumerate() {
            let us = after(from, 0).peer;
            let answers = COURSE.iter().position(|&(_, k)| Some(k) == kind.after());
            for count in 0..=answers.map_or(0, |answers| answers) {
                let refused = after(us, count).hear(kind).is_err();
                assert_eq!(refused, answers.is_some(), "{} after {count}", kind.name());
            }
            assert!(after(us, at).hear(kind).is_ok(), "{}", kind.name());
        }
    }

    #[test]
    fn a_refusal_names_kind_side_and_phase() {
        let error = after(Side::Destination, 5).hear(Kind::Commit).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the peer broke the protocol: the source sent commit (kind 11) out of turn in phase precopy"
        );
        let error = after(Side::Source, 7).hear(Kind::PassPlaced).unwrap_err();
        assert!(error.to_string().contains("destination sent pass-placed"));
    }

    #[test]
    fn passes_are_placed_once_they_have_begun() {
        let mut conversation = after(Side::Source, 6);
        conversation.hear(Kind::PassPlaced).unwrap();
        assert!(conversation.hear(Kind::PassPlaced).is_err());
        conversation.pass_begins(3);
        conversation.hear(Kind::PassPlaced).unwrap();
        conversation.hear(Kind::PassPlaced).unwrap();
        assert!(conversation.hear(Kind::PassPlaced).is_err());
    }

    #[test]
    fn on_a_new_link_it_goes_on_where_pages_come() {
        let may_come = |us, placed| {
            let goes_on = || {
                let mut conversation = Conversation::new(us);
                conversation.goes_on(placed);
                conversation
            };
            let kinds = every_kind().filter(move |&kind| goes_on().hear(kind).is_ok());
            kinds.map(Kind::name).collect::<Vec<_>>()
        };
        for placed in [0, 7] {
            assert_eq!(
                may_come(Side::Destination, placed),
                [
                    "state",
                    "failure",
                    "ping",
                    "pong",
                    "plan-end",
                    "block-digests"
                ]
            );
            assert_eq!(may_come(Side::Source, placed), ["failure", "ping", "pong"]);
        }
        let mut conversation = Conversation::new(Side::Source);
        conversation.goes_on(7);
        conversation.pass_begins(8);
        conversation.hear(Kind::PassPlaced).unwrap();
        assert!(conversation.hear(Kind::PassPlaced).is_err());
    }

    #[test]
    fn a_question_is_only_answered() {
        let allowed: Vec<_> = every_kind()
            .filter(|&kind| Conversation::of_question().hear(kind).is_ok())
            .collect();
        use Kind::{Failure, Ping, Pong, Resolution};
        assert_eq!(allowed, [Failure, Ping, Pong, Resolution]);
    }
}
