//! Contenders take turns: one loop for whatever is measured of whomever.

use std::fmt::Display;

use super::error::BenchError;
use super::order::order;
use super::progress::progress;

/// Who takes turns.
pub(super) trait TakesTurns {
    /// Its name in tables.
    fn name(&self) -> String;

    /// Whether the others go on without it after this error; otherwise nothing is measured.
    fn is_left_out_after(&self, error: &BenchError) -> bool;
}

/// What the turns of one contender gave.
pub(super) struct Record<C, T> {
    /// The contender.
    pub contender: C,
    /// Its turns that succeeded, in the order of the rounds.
    pub turns: Vec<T>,
    /// Why it was left out of further rounds.
    pub gave_up: Option<String>,
}

/// Takes `runs` rounds of turns, in each of which another contender goes first; `tell` has a word for
/// what a turn gave.
///
/// # Errors
/// When a contender fails that the others do not go on without, or the benchmark is to end.
pub(super) fn take_turns<C: TakesTurns, T, W: Display>(
    scenario: impl Display,
    contenders: Vec<C>,
    runs: u32,
    mut turn: impl FnMut(&C) -> Result<T, BenchError>,
    tell: impl Fn(&T) -> W,
) -> Result<Vec<Record<C, T>>, BenchError> {
    let mut records: Vec<_> = contenders
        .into_iter()
        .map(|contender| Record {
            contender,
            turns: Vec::new(),
            gave_up: None,
        })
        .collect();
    for run in 0..runs {
        for index in order(records.len(), run) {
            let record = &mut records[index];
            if record.gave_up.is_some() {
                continue;
            }
            let name = record.contender.name();
            match turn(&record.contender) {
                Ok(gave) => {
                    let (told, round) = (tell(&gave), run + 1);
                    progress(format_args!("{scenario} {round}/{runs}: {name}: {told}"));
                    record.turns.push(gave);
                }
                Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                Err(error) if record.contender.is_left_out_after(&error) => {
                    progress(format_args!("{scenario}: {name} is left out: {error}"));
                    record.gave_up = Some(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    struct Runner {
        name: &'static str,
        is_peer: bool,
    }

    impl TakesTurns for Runner {
        fn name(&self) -> String {
            self.name.to_owned()
        }

        fn is_left_out_after(&self, _: &BenchError) -> bool {
            self.is_peer
        }
    }

    fn runners() -> Vec<Runner> {
        [("own", false), ("good", true), ("bad", true)]
            .map(|(name, is_peer)| Runner { name, is_peer })
            .into()
    }

    fn failed() -> BenchError {
        BenchError::NotConverged(1)
    }

    #[test]
    fn a_peer_that_fails_is_left_out_and_the_others_go_on() {
        let order = RefCell::new(Vec::new());
        let turn = |runner: &Runner| {
            order.borrow_mut().push(runner.name);
            match runner.name {
                "bad" => Err(failed()),
                _ => Ok(1),
            }
        };
        let records = take_turns("test", runners(), 3, turn, |gave| *gave).unwrap();
        assert_eq!(
            *order.borrow(),
            ["own", "good", "bad", "good", "own", "own", "good"]
        );
        let turns: Vec<_> = records.iter().map(|record| record.turns.len()).collect();
        assert_eq!(turns, [3, 3, 0]);
        assert_eq!(records[2].gave_up, Some(failed().to_string()));
    }

    #[test]
    fn who_may_not_fail_and_whoever_is_interrupted_end_it() {
        let fails = |who: &'static str, error: fn() -> BenchError| {
            let turn = move |runner: &Runner| match runner.name == who {
                true => Err(error()),
                false => Ok(1),
            };
            take_turns("test", runners(), 1, turn, |gave| *gave).map(|_| ())
        };
        assert!(matches!(
            fails("own", failed),
            Err(BenchError::NotConverged(1))
        ));
        let interrupted = fails("bad", || BenchError::Interrupted);
        assert!(matches!(interrupted, Err(BenchError::Interrupted)));
    }
}
