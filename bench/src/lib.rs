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
mod disk_iops;
mod disk_moves;
mod disk_tracking;
mod disks;
mod engine;
mod error;
mod figures;
mod folder;
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
mod moves;
mod namespace;
mod options;
mod order;
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
mod watch;

pub use args::{BenchArgs, ScenarioArg};
pub use disk_iops::{Cell, CellFigures, DiskContenderFigures, DiskIopsFigures, DiskOp, DiskRole};
pub use disk_moves::{DiskMoveFigures, DiskScenario, MoverFigures, MoverRole};
pub use disk_tracking::TrackingFigures;
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
