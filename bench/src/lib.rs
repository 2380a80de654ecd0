//! What migration and start cost on this host, next to QEMU and to what the host can do
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
mod goal;
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
mod options;
mod page;
mod proc;
mod process;
mod progress;
mod qemu;
mod report;
mod role;
mod rounds;
mod run;
mod scenario;
mod start;
mod stats;
mod summary;
mod table;
mod terms;
mod turn;
mod unit;

pub use args::{BenchArgs, ScenarioArg};
pub use error::BenchError;
pub use figures::{ContenderFigures, EngineFigures, ScenarioFigures};
pub use goal::{Bound, Goal};
pub use guest::Workload;
pub use host::HostDescription;
pub use options::{BenchOptions, Format};
pub use qemu::QemuPath;
pub use role::Role;
pub use run::run;
pub use scenario::Scenario;
pub use start::StartFigures;
pub use stats::Samples;
pub use summary::Summary;
pub use unit::Unit;
