//! `vmm bench`: what migration and start cost on this host, next to QEMU and to what the host can do
//! at most.
//!
//! One run compares everything on one machine: the contenders take turns, memory is warmed up alike
//! before each timed run, medians are reported. Goals are printed with whether they are reached; a
//! figure that misses one is no error. See `docs/benchmarks.md`.

mod args;
mod chart;
mod contender;
mod cpu;
mod engine;
mod error;
mod figures;
mod goals;
mod guest;
mod host;
mod hosts;
mod interrupt;
mod lifeline;
mod limit;
mod link;
mod mapping;
mod moved;
mod namespace;
mod page;
mod proc;
mod process;
mod qemu;
mod rounds;
mod scenario;
mod start;
mod stats;
mod summary;
mod table;

use std::fmt;
use std::io::Write;
use std::path::PathBuf;

pub use args::{BenchArgs, ScenarioArg};
pub use contender::Role;
pub use error::BenchError;
pub use figures::{ContenderFigures, EngineFigures, ScenarioFigures};
pub use goals::{Bound, Goal};
pub use guest::Workload;
pub use host::HostDescription;
pub use qemu::QemuPath;
pub use scenario::Scenario;
pub use start::StartFigures;
pub use stats::Samples;
pub use summary::Summary;
pub use table::Unit;

use contender::Contender;
use hosts::Hosts;
use mapping::Pages;
use migration::source::default_streams;
use qemu::{Found, Variant};
use scenario::Plan;

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
    /// Bytes of data in the large guests; whole mebibytes, at least two.
    pub memory_bytes: u64,
    /// Connections of this engine and of the plain copy, 1 to 16; `None` is what the engine
    /// chooses.
    pub streams: Option<u8>,
    /// How the figures are printed.
    pub format: Format,
    /// What is measured.
    pub scenarios: Vec<Scenario>,
    /// QEMUs to compare with beside those that are found; `None` is without any.
    pub qemu: Option<Vec<QemuPath>>,
    /// A Markdown page that the figures are recorded in, with pictures beside it.
    pub page: Option<PathBuf>,
    /// The `vmm` to measure; `None` is this program.
    pub program: Option<PathBuf>,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            runs: 5,
            memory_bytes: 1 << 30,
            streams: None,
            format: Format::Table,
            scenarios: Scenario::ALL.to_vec(),
            qemu: Some(Vec::new()),
            page: None,
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
        if let Some(streams) = self.streams.filter(|streams| !(1..=16).contains(streams)) {
            return wrong("--streams", "1 to 16", streams.to_string());
        }
        let bytes = self.memory_bytes;
        if !bytes.is_multiple_of(1 << 20) || !(2 << 20..=1 << 40).contains(&bytes) {
            return wrong(
                "--memory",
                "whole MiB from 2MiB to 1TiB",
                format!("{bytes} bytes"),
            );
        }
        Ok(())
    }

    /// Connections of the plain copy: as many as the engine has.
    fn limit_streams(&self) -> u8 {
        self.streams.unwrap_or_else(default_streams)
    }

    fn needed_memory(&self) -> u64 {
        let needed = self.scenarios.iter().map(|scenario| {
            scenario
                .plan(self.memory_bytes)
                .map_or_else(start::needed_memory, |plan| plan.needed_memory())
        });
        needed.max().unwrap_or(0)
    }

    /// Who takes part in a scenario.
    fn contenders(&self, plan: &Plan, found: &Found) -> Vec<Contender> {
        let engine = |pages| Contender::Engine {
            streams: self.streams,
            pages,
        };
        let mut contenders = vec![engine(Pages::Cold)];
        if !plan.compared {
            return contenders;
        }
        if plan.further_variants {
            contenders.push(engine(Pages::Populated));
        }
        contenders.extend(
            [Pages::Cold, Pages::Populated].map(|pages| Contender::Limit {
                streams: self.limit_streams(),
                pages,
            }),
        );
        let further: &[Variant] = if plan.further_variants {
            &Variant::FURTHER
        } else {
            &[]
        };
        for qemu in &found.qemus {
            for variant in Variant::STANDARD.iter().chain(further) {
                contenders.push(Contender::Qemu {
                    qemu: qemu.clone(),
                    variant: *variant,
                });
            }
        }
        contenders
    }
}

/// Measures and prints to `out`. Progress goes to the standard error. All that it started is ended
/// when it returns, also after an error or Ctrl-C, which it notices from then on for the life of
/// this process; and when the calling thread ends without returning.
///
/// # Errors
/// When something could not be measured; never because of a figure.
pub fn run(options: &BenchOptions, out: &mut dyn Write) -> Result<Summary, BenchError> {
    options.check()?;
    let wanted = options.needed_memory();
    let available = proc::available_memory()?;
    if wanted > available {
        return Err(BenchError::Memory { wanted, available });
    }
    if let Some(page) = &options.page {
        page::check(page)?;
    }
    let program = match &options.program {
        Some(program) => program.clone(),
        None => std::env::current_exe().map_err(BenchError::Program)?,
    };
    interrupt::watch()?;
    let found = match &options.qemu {
        Some(named) => Found::look(named, &program)?,
        None => Found::default(),
    };
    let hosts = Hosts::new(program)?;
    let mut summary = Summary::new(options);
    summary.peers = found.qemus.iter().map(ToString::to_string).collect();
    summary.absent.clone_from(&found.absent);
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
        let section = match scenario.plan(options.memory_bytes) {
            Some(plan) => {
                let contenders = options.contenders(&plan, &found);
                let figures = rounds::measure(&hosts, &plan, contenders, options.runs)?;
                summary.goals.extend(goals::of(&figures));
                let section = summary.section(&figures);
                summary.scenarios.push(figures);
                section
            }
            None => {
                summary.start = start::measure(&hosts)?;
                let goals = summary.start.iter().flat_map(StartFigures::goals);
                summary.goals.extend(goals);
                summary.start_section()
            }
        };
        print(Format::Table, &format!("\n{section}"))?;
    }
    print(Format::Table, &format!("\n{}", summary.goals_section()))?;
    let json = serde_json::to_string(&summary).map_err(|e| BenchError::Write(e.into()))?;
    print(Format::Json, &format!("{json}\n"))?;
    if let Some(page) = &options.page {
        page::write(page, &summary)?;
    }
    Ok(summary)
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
                streams: Some(17),
                ..good.clone()
            },
            BenchOptions {
                memory_bytes: 4096,
                ..good.clone()
            },
        ] {
            let error = run(&wrong, &mut Vec::new()).unwrap_err();
            assert_eq!(error.id(), "usage.option", "{error}");
        }
        let huge = BenchOptions {
            memory_bytes: 1 << 40,
            ..good
        };
        let error = run(&huge, &mut Vec::new()).unwrap_err();
        assert_eq!(error.id(), "host.memory", "{error}");
    }
}
