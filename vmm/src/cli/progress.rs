//! A migration as it is watched: a bar on a terminal, lines elsewhere, JSON for programs.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use control::units::{human_bytes, human_ms};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use migration::progress::{Event, Phase};
use tokio::signal::unix::{Signal, SignalKind, signal};

use control::output::{Output, explain};

/// How often a line is printed where no bar can be drawn.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Draws the events of one migration.
pub(crate) struct Progress {
    output: Output,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl Progress {
    /// Draws to standard error, which leaves standard output to the result.
    pub fn new(output: Output) -> Self {
        let draws = !output.is_json() && io::stderr().is_terminal();
        let bar = draws.then(|| {
            let bar =
                ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr_with_hz(10));
            let style = ProgressStyle::with_template("{prefix:>14} [{bar:32}] {percent:>3}% {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> ");
            bar.set_style(style);
            bar
        });
        Self {
            output,
            bar,
            last_line: None,
        }
    }

    /// Shows one event.
    pub fn show(&mut self, event: &Event) {
        if self.output.is_json() {
            self.output.object(event);
            return;
        }
        match (&self.bar, event) {
            (Some(bar), Event::Phase { phase }) => {
                bar.set_prefix(phase_name(*phase));
                bar.tick();
            }
            (
                Some(bar),
                Event::Progress {
                    phase,
                    sent_bytes,
                    remaining_bytes,
                    ..
                },
            ) => {
                bar.set_prefix(phase_name(*phase));
                bar.set_length((sent_bytes + remaining_bytes).max(1));
                bar.set_position(*sent_bytes);
                bar.set_message(describe_progress(event));
            }
            (Some(bar), Event::Warning { observation }) => {
                bar.suspend(|| eprint!("warning: {}", explain(observation)));
            }
            (Some(bar), Event::Completed(_) | Event::Failed(_) | Event::Cancelled(_)) => {
                bar.finish_and_clear();
            }
            (Some(bar), Event::LinkLost { .. } | Event::Reconnected { .. }) => {
                bar.suspend(|| eprintln!("{}", describe_event(event)));
            }
            (Some(_), Event::Iteration(_)) => {}
            (None, Event::Progress { .. }) => {
                if self.last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
                    self.last_line = Some(Instant::now());
                    self.line(&describe_event(event));
                }
            }
            (None, Event::Warning { observation }) => {
                self.line(&format!("warning: {}", explain(observation).trim_end()));
            }
            (
                None,
                Event::Phase { .. }
                | Event::Iteration(_)
                | Event::LinkLost { .. }
                | Event::Reconnected { .. },
            ) => self.line(&describe_event(event)),
            (None, Event::Completed(_) | Event::Failed(_) | Event::Cancelled(_)) => {}
        }
    }

    /// Says something beside the bar.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    fn line(&self, line: &str) {
        let _ = writeln!(io::stderr(), "{line}");
    }
}

/// Name of a phase, as in JSON.
pub(super) fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Negotiate => "negotiate",
        Phase::Prepare => "prepare",
        Phase::Precopy => "precopy",
        Phase::StopAndCopy => "stop-and-copy",
        Phase::Ready => "ready",
        Phase::Commit => "commit",
        Phase::Finish => "finish",
    }
}

fn describe_progress(event: &Event) -> String {
    let Event::Progress {
        iteration,
        mib_per_s,
        eta_ms,
        forecast_downtime_ms,
        ..
    } = event
    else {
        return String::new();
    };
    // A forecast from no rate would be one of months.
    if *mib_per_s <= 0.0 && *iteration > 0 {
        return format!("pass {iteration}, nothing was sent just now");
    }
    let left = match eta_ms {
        Some(ms) => format!("{} left", human_ms(*ms)),
        None if *iteration <= 1 => "no forecast yet".into(),
        None => "does not converge".into(),
    };
    format!(
        "pass {iteration}, {}/s, {left}, downtime forecast {}",
        human_bytes(mib_per_s * f64::from(1 << 20)),
        human_ms(*forecast_downtime_ms)
    )
}

/// One line about an event.
pub(super) fn describe_event(event: &Event) -> String {
    match event {
        Event::Phase { phase } => format!("phase {}", phase_name(*phase)),
        Event::Iteration(i) => format!(
            "pass {}: {} pages, {} in {} at {}/s, guest dirties {:.0} pages/s",
            i.n,
            i.pages,
            human_bytes(i.bytes as f64),
            human_ms(i.ms),
            human_bytes(i.mib_per_s * f64::from(1 << 20)),
            i.dirty_pages_per_s
        ),
        Event::Progress {
            phase,
            sent_bytes,
            remaining_bytes,
            ..
        } => format!(
            "{}: {} sent, {} to go, {}",
            phase_name(*phase),
            human_bytes(*sent_bytes as f64),
            human_bytes(*remaining_bytes as f64),
            describe_progress(event)
        ),
        Event::Warning { observation } => format!("warning: {observation}"),
        Event::LinkLost { observation } => {
            format!("the link is lost, a new one is tried: {observation}")
        }
        Event::Reconnected { reconnects, ms } => {
            format!(
                "link made anew after {}, number {reconnects}",
                human_ms(*ms)
            )
        }
        Event::Completed(report) | Event::Failed(report) | Event::Cancelled(report) => {
            report.status.clone()
        }
    }
}

/// SIGINT and SIGTERM, from when it is made.
pub(crate) struct Interrupts(Signal, Signal);

/// Begins to hear SIGINT and SIGTERM instead of being ended by them.
pub(crate) fn await_interrupt() -> io::Result<Interrupts> {
    Ok(Interrupts(
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    ))
}

impl Interrupts {
    /// The next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_is_told_without_a_forecast() {
        let told = |mib_per_s| {
            describe_event(&Event::Progress {
                phase: Phase::Precopy,
                iteration: 1,
                sent_bytes: 1 << 20,
                remaining_bytes: 1 << 20,
                mib_per_s,
                dirty_pages_per_s: 0.0,
                eta_ms: Some(1e10),
                forecast_downtime_ms: 1e10,
            })
        };
        assert_eq!(
            told(0.0),
            "precopy: 1.00 MiB sent, 1.00 MiB to go, pass 1, nothing was sent just now"
        );
        assert!(
            told(1.0).contains("left, downtime forecast"),
            "{}",
            told(1.0)
        );
    }
}
