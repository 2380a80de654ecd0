//! Whether to go on copying, switch over or give up: a pure function of what was observed.

use std::time::Duration;

use crate::progress::{Limits, TimeoutAction};
use crate::vm::RunState;

/// What is known after a pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observed {
    /// Passes done.
    pub iteration: u32,
    /// Bytes of pages that are dirty now.
    pub remaining_bytes: u64,
    /// Bytes of guest memory that reach the destination per second; the limit on bandwidth is
    /// applied here, not by the caller.
    pub bandwidth: f64,
    /// Bytes that the guest dirties per second.
    pub dirty_rate: f64,
    /// What a switch-over costs beside the last pages: stop, state, load, decision, round trips.
    pub overhead: Duration,
    /// Since the request.
    pub elapsed: Duration,
    /// Whether there is a guest that would be down.
    pub run_state: RunState,
}

/// The total time allowed and what then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// Total time; `None` is unlimited.
    pub timeout: Option<Duration>,
    /// What to do when it has passed.
    pub action: TimeoutAction,
}

/// How copying goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// The downtime does not fit yet, and will.
    Converging,
    /// It fits already, but a short pass more makes it much shorter.
    Improving,
    /// The guest dirties memory faster than it can be sent.
    Stuck,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Another pass.
    Iterate(Outlook),
    /// Stop the guest and finish.
    SwitchOver,
    /// The time is over and the migration is to be given up.
    GiveUp,
}

/// What the user is told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forecast {
    /// Downtime if the guest were stopped now.
    pub downtime: Duration,
    /// Time until it can be stopped within the limit; `None` when it does not converge.
    pub time_left: Option<Duration>,
}

/// A last transfer shorter than this is not worth another pass.
const SHORT_TRANSFER: Duration = Duration::from_millis(4);
/// Passes after which a downtime that fits is taken as it is.
const IMPROVE_UNTIL: u32 = 6;
/// Longest forecast.
const MAX_SECONDS: f64 = 1e7;

fn bandwidth(observed: &Observed, limits: &Limits) -> f64 {
    let limit = limits.bandwidth.map_or(f64::INFINITY, |limit| limit as f64);
    observed.bandwidth.min(limit).max(1.0)
}

fn seconds(value: f64) -> Duration {
    Duration::from_secs_f64(value.clamp(0.0, MAX_SECONDS))
}

/// Time and downtime left.
pub fn forecast(observed: &Observed, limits: &Limits) -> Forecast {
    let bandwidth = bandwidth(observed, limits);
    let remaining = observed.remaining_bytes as f64;
    let transfer = remaining / bandwidth;
    let downtime = seconds(transfer).saturating_add(observed.overhead);
    let budget = limits
        .downtime
        .saturating_sub(observed.overhead)
        .as_secs_f64();
    let ratio = observed.dirty_rate / bandwidth;
    let time_left = if downtime <= limits.downtime {
        Some(downtime)
    } else if ratio < 1.0 && budget > 0.0 {
        // Each pass leaves `ratio` of what it sent: a geometric series until the budget holds it.
        let until = (remaining - budget * bandwidth).max(0.0) / (bandwidth * (1.0 - ratio));
        Some(seconds(until).saturating_add(limits.downtime))
    } else {
        None
    };
    Forecast {
        downtime,
        time_left,
    }
}

/// Decides what comes after a pass.
pub fn decide(observed: &Observed, limits: &Limits, deadline: Deadline) -> Decision {
    let forecast = forecast(observed, limits);
    let ratio = observed.dirty_rate / bandwidth(observed, limits);
    // A guest that its user has paused is not down for longer; another pass would not help it.
    let stands = observed.run_state == RunState::Paused && observed.remaining_bytes == 0;
    if forecast.downtime <= limits.downtime || stands {
        let transfer = forecast.downtime.saturating_sub(observed.overhead);
        let late = deadline.timeout.is_some_and(|timeout| {
            observed.elapsed.saturating_add(transfer.saturating_mul(2)) >= timeout
        });
        if transfer > SHORT_TRANSFER && ratio < 0.5 && observed.iteration < IMPROVE_UNTIL && !late {
            return Decision::Iterate(Outlook::Improving);
        }
        return Decision::SwitchOver;
    }
    if deadline
        .timeout
        .is_some_and(|timeout| observed.elapsed >= timeout)
    {
        match deadline.action {
            TimeoutAction::Cancel => return Decision::GiveUp,
            TimeoutAction::Stop => return Decision::SwitchOver,
            // Passes go on as before, of disks that are mirrored or of which nothing is sent any more.
            TimeoutAction::Mirror | TimeoutAction::OnDemand => {}
        }
    }
    Decision::Iterate(match forecast.time_left {
        Some(_) => Outlook::Converging,
        None => Outlook::Stuck,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn observed() -> Observed {
        Observed {
            iteration: 2,
            remaining_bytes: 10 * MIB,
            bandwidth: 1000.0 * MIB as f64,
            dirty_rate: 100.0 * MIB as f64,
            overhead: Duration::from_millis(5),
            elapsed: Duration::from_secs(2),
            run_state: RunState::Running,
        }
    }

    const NO_DEADLINE: Deadline = Deadline {
        timeout: None,
        action: TimeoutAction::Cancel,
    };

    #[test]
    fn decisions_follow_the_table() {
        use Decision::{GiveUp, Iterate, SwitchOver};
        use Outlook::{Converging, Improving, Stuck};
        let after = |seconds, action| Deadline {
            timeout: Some(Duration::from_secs(seconds)),
            action,
        };
        let base = observed();
        let hot = 2000.0 * MIB as f64;
        let big = 1000 * MIB;
        let cases = [
            ("fits, much to gain", base, NO_DEADLINE, Iterate(Improving)),
            (
                "fits, gained enough",
                Observed {
                    iteration: 6,
                    ..base
                },
                NO_DEADLINE,
                SwitchOver,
            ),
            (
                "fits, nothing to gain",
                Observed {
                    dirty_rate: hot,
                    ..base
                },
                NO_DEADLINE,
                SwitchOver,
            ),
            (
                "little left",
                Observed {
                    remaining_bytes: MIB,
                    ..base
                },
                NO_DEADLINE,
                SwitchOver,
            ),
            (
                "nothing left",
                Observed {
                    remaining_bytes: 0,
                    ..base
                },
                NO_DEADLINE,
                SwitchOver,
            ),
            (
                "nothing left, overhead beyond the limit",
                Observed {
                    remaining_bytes: 0,
                    overhead: Duration::from_secs(1),
                    ..base
                },
                NO_DEADLINE,
                Iterate(Stuck),
            ),
            (
                "nothing left, overhead beyond the limit, late, stop",
                Observed {
                    remaining_bytes: 0,
                    overhead: Duration::from_secs(1),
                    ..base
                },
                after(2, TimeoutAction::Stop),
                SwitchOver,
            ),
            (
                "nothing left, overhead beyond the limit, but it stands still anyway",
                Observed {
                    remaining_bytes: 0,
                    overhead: Duration::from_secs(1),
                    run_state: RunState::Paused,
                    ..base
                },
                NO_DEADLINE,
                SwitchOver,
            ),
            (
                "too much left",
                Observed {
                    remaining_bytes: big,
                    ..base
                },
                NO_DEADLINE,
                Iterate(Converging),
            ),
            (
                "too hot",
                Observed {
                    remaining_bytes: big,
                    dirty_rate: hot,
                    ..base
                },
                NO_DEADLINE,
                Iterate(Stuck),
            ),
            (
                "too hot, late, cancel",
                Observed {
                    remaining_bytes: big,
                    dirty_rate: hot,
                    ..base
                },
                after(2, TimeoutAction::Cancel),
                GiveUp,
            ),
            (
                "too hot, late, stop",
                Observed {
                    remaining_bytes: big,
                    dirty_rate: hot,
                    ..base
                },
                after(2, TimeoutAction::Stop),
                SwitchOver,
            ),
            (
                "too hot, late, mirror",
                Observed {
                    remaining_bytes: big,
                    dirty_rate: hot,
                    ..base
                },
                after(2, TimeoutAction::Mirror),
                Iterate(Stuck),
            ),
            (
                "fits and late",
                base,
                after(2, TimeoutAction::Cancel),
                SwitchOver,
            ),
            (
                "no bandwidth seen",
                Observed {
                    bandwidth: 0.0,
                    ..base
                },
                NO_DEADLINE,
                Iterate(Stuck),
            ),
        ];
        for (name, observed, deadline, expected) in cases {
            assert_eq!(
                decide(&observed, &Limits::default(), deadline),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn a_bandwidth_limit_counts_as_bandwidth() {
        let limits = Limits {
            bandwidth: Some(10 * MIB),
            ..Limits::default()
        };
        let forecast = forecast(&observed(), &limits);
        assert_eq!(forecast.downtime, Duration::from_millis(1005));
        assert_eq!(forecast.time_left, None);
    }

    #[test]
    fn forecast_sums_the_passes_left() {
        let observed = Observed {
            remaining_bytes: 1000 * MIB,
            dirty_rate: 500.0 * MIB as f64,
            ..observed()
        };
        let forecast = forecast(&observed, &Limits::default());
        let left = forecast.time_left.unwrap().as_secs_f64();
        assert!((left - (0.705 / 0.5 + 0.3)).abs() < 1e-6, "{left}");
    }

    #[test]
    fn no_input_panics() {
        for bandwidth in [0.0, f64::INFINITY, f64::NAN, -1.0] {
            for dirty_rate in [0.0, f64::INFINITY, f64::NAN] {
                for remaining_bytes in [0, u64::MAX] {
                    let observed = Observed {
                        remaining_bytes,
                        bandwidth,
                        dirty_rate,
                        overhead: Duration::MAX,
                        elapsed: Duration::MAX,
                        iteration: u32::MAX,
                        run_state: RunState::Running,
                    };
                    decide(&observed, &Limits::default(), NO_DEADLINE);
                }
            }
        }
    }
}
