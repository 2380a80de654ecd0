//! `vmm bench`: what migration and start cost on this host, next to what the host can do at most.
//!
//! One run compares everything on one machine: the contenders take turns, memory is warmed up alike
//! before each timed run, medians are reported. Goals are printed with whether they are reached; a
//! figure that misses one is no error. See `docs/benchmarks.md`.

mod args;
mod error;
mod goals;
mod guest;
mod host;
mod hosts;
mod idle;
mod interrupt;
mod limit;
mod mapping;
mod migrate;
mod proc;
mod process;
mod start;
mod stats;
mod summary;
mod table;
mod zero;

use std::fmt;
use std::io::Write;
use std::path::PathBuf;

pub use args::{BenchArgs, OnlyArg};
pub use error::BenchError;
pub use goals::{Bound, Goal};
pub use host::HostDescription;
pub use idle::IdleFigures;
pub use start::StartFigures;
pub use stats::Samples;
pub use summary::Summary;
pub use table::Unit;
pub use zero::ZeroFigures;

use hosts::Hosts;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// A spinning guest with random memory, against the plain copy of the same bytes.
    Idle,
    /// A large guest that touched little of its memory.
    Zero,
    /// Starting a guest, and the memory of the VMM.
    Start,
}

impl Scenario {
    /// All, in the order of the report.
    pub const ALL: [Self; 3] = [Self::Idle, Self::Zero, Self::Start];

    fn needed_memory(self, options: &BenchOptions) -> u64 {
        match self {
            Self::Idle => idle::needed_memory(options.random_bytes),
            Self::Zero => zero::needed_memory(),
            Self::Start => start::needed_memory(),
        }
    }
}

/// How the figures are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Tables, each as soon as it is measured.
    Table,
    /// One JSON object on one line, at the end.
    Json,
}

/// What is measured and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BenchOptions {
    /// Runs of each measurement, of which the median counts; 1 to 1000.
    pub runs: u32,
    /// Bytes of random memory in the idle guest; whole mebibytes, at least one.
    pub random_bytes: u64,
    /// Connections of a migration and of the plain copy, 1 to 16.
    pub streams: u8,
    /// How the figures are printed.
    pub format: Format,
    /// What is measured.
    pub scenarios: Vec<Scenario>,
    /// The `vmm` to measure; `None` is this program.
    pub program: Option<PathBuf>,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            runs: 5,
            random_bytes: 1 << 30,
            streams: 4,
            format: Format::Table,
            scenarios: Scenario::ALL.to_vec(),
            program: None,
        }
    }
}

impl BenchOptions {
    fn check(&self) -> Result<(), BenchError> {
        let wrong = |name, range, value: String| Err(BenchError::Option { name, range, value });
        if !(1..=1000).contains(&self.runs) {
            return wrong("--runs", "1 to 1000", self.runs.to_string());
        }
        if !(1..=16).contains(&self.streams) {
            return wrong("--streams", "1 to 16", self.streams.to_string());
        }
        let bytes = self.random_bytes;
        if !bytes.is_multiple_of(1 << 20) || !(1 << 20..=1 << 40).contains(&bytes) {
            return wrong(
                "--memory",
                "whole MiB from 1MiB to 1TiB",
                format!("{bytes} bytes"),
            );
        }
        Ok(())
    }
}

/// Measures and prints to `out`. Progress goes to the standard error. All that it started is ended
/// when it returns, also after an error or Ctrl-C, which it notices from then on for the life of
/// this process.
///
/// # Errors
/// When something could not be measured; never because of a figure.
pub fn run(options: &BenchOptions, out: &mut dyn Write) -> Result<Summary, BenchError> {
    options.check()?;
    let wanted = options
        .scenarios
        .iter()
        .map(|s| s.needed_memory(options))
        .max()
        .unwrap_or(0);
    let available = proc::available_memory()?;
    if wanted > available {
        return Err(BenchError::Memory { wanted, available });
    }
    let program = match &options.program {
        Some(program) => program.clone(),
        None => std::env::current_exe().map_err(BenchError::Program)?,
    };
    interrupt::watch()?;
    let hosts = Hosts::new(program)?;
    let mut summary = Summary::new(options);
    let mut print = |format, text: &str| {
        if options.format == format {
            out.write_all(text.as_bytes())
                .and_then(|()| out.flush())
                .map_err(BenchError::Write)?;
        }
        Ok::<_, BenchError>(())
    };
    print(Format::Table, &summary.heading())?;
    for scenario in &options.scenarios {
        measure(*scenario, options, &hosts, &mut summary)?;
        print(Format::Table, &format!("\n{}", summary.section(*scenario)))?;
    }
    print(Format::Table, &format!("\n{}", summary.goals_table()))?;
    let json = serde_json::to_string(&summary).map_err(|e| BenchError::Write(e.into()))?;
    print(Format::Json, &format!("{json}\n"))?;
    Ok(summary)
}

fn measure(
    scenario: Scenario,
    options: &BenchOptions,
    hosts: &Hosts,
    summary: &mut Summary,
) -> Result<(), BenchError> {
    match scenario {
        Scenario::Idle => {
            let BenchOptions {
                runs,
                random_bytes,
                streams,
                ..
            } = options;
            summary.idle = idle::measure(hosts, *runs, *random_bytes, *streams)?;
            summary
                .goals
                .extend(summary.idle.iter().flat_map(IdleFigures::goals));
        }
        Scenario::Zero => {
            summary.zero = zero::measure(hosts, options.runs, options.streams)?;
            summary
                .goals
                .extend(summary.zero.iter().flat_map(ZeroFigures::goals));
        }
        Scenario::Start => {
            summary.start = start::measure(hosts)?;
            summary
                .goals
                .extend(summary.start.iter().flat_map(StartFigures::goals));
        }
    }
    Ok(())
}

/// Says on the standard error what is being measured.
fn progress(what: fmt::Arguments<'_>) {
    // Whoever closed it does not want to know.
    let _ = writeln!(std::io::stderr(), "{what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_out_of_range_are_refused_before_anything_is_started() {
        let good = BenchOptions {
            program: Some("/nonexistent".into()),
            ..Default::default()
        };
        for wrong in [
            BenchOptions {
                runs: 0,
                ..good.clone()
            },
            BenchOptions {
                streams: 17,
                ..good.clone()
            },
            BenchOptions {
                random_bytes: 4096,
                ..good.clone()
            },
        ] {
            let error = run(&wrong, &mut Vec::new()).unwrap_err();
            assert_eq!(error.id(), "usage.option", "{error}");
        }
        let huge = BenchOptions {
            random_bytes: 1 << 40,
            ..good
        };
        let error = run(&huge, &mut Vec::new()).unwrap_err();
        assert_eq!(error.id(), "host.memory", "{error}");
    }
}
