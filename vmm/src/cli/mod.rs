//! The command line.
//!
//! [`main`] is the whole program but for the machine itself, which it reaches through a
//! [`Launcher`].

mod args;
mod bench;
mod console;
mod detach;
mod disk;
mod dispatch;
mod event_loop;
mod followed;
mod generate;
mod job_row;
mod jobs;
mod launcher;
mod left_images;
mod limits;
mod list;
mod logs;
mod migrate;
mod names;
mod outcome;
mod overlays;
mod process;
mod progress;
mod receive;
mod report;
mod run;
mod servers;
mod storage_reach;
mod terminal;
mod vm;
mod vm_process;
mod wait;
mod wording;

pub(crate) use args::DemoArgs;
pub use args::{Cli, Command};
pub use dispatch::main;
pub(crate) use event_loop::block_on;
pub use launcher::Launcher;
pub(crate) use progress::{Interrupts, Progress, await_interrupt};
pub(crate) use report::downtime_parts;
pub(crate) use terminal::{Keys, hand_on};
