//! Why a benchmark could not be measured.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use migration::observation::Observation;
use thiserror::Error;

use control::units::human_bytes;

/// Why a benchmark ended without figures. A figure that misses its goal is no error.
#[derive(Debug, Error)]
pub enum BenchError {
    /// An option is out of its range.
    #[error("{name} must be {range}, not {value}")]
    Option {
        /// The option.
        name: &'static str,
        /// What it may be.
        range: &'static str,
        /// What it was.
        value: String,
    },
    /// The host cannot hold the guests and copies that a run needs at once.
    #[error("the benchmark needs {} of free memory and this host has {}", human_bytes(*.wanted as f64), human_bytes(*.available as f64))]
    Memory {
        /// Bytes needed.
        wanted: u64,
        /// Bytes that are available.
        available: u64,
    },
    /// The folder of disk images has not the room for them.
    #[error("the benchmark needs {} of free space in {} and there is {}: name another folder with --images", human_bytes(*.wanted as f64), .folder.display(), human_bytes(*.available as f64))]
    Space {
        /// The folder.
        folder: PathBuf,
        /// Bytes needed.
        wanted: u64,
        /// Bytes that are available.
        available: u64,
    },
    /// Ctrl-C, or a request to end.
    #[error("interrupted")]
    Interrupted,
    /// The handler that notices Ctrl-C cannot be set.
    #[error("cannot watch for signal {0}")]
    Signal(i32, #[source] io::Error),
    /// The path of this program is not known.
    #[error("cannot find the path of this program")]
    Program(#[source] io::Error),
    /// The temporary folder of the two hosts cannot be made.
    #[error("cannot make the folder {0}")]
    Folder(PathBuf, #[source] io::Error),
    /// A runtime directory cannot be used.
    #[error("cannot use the runtime directory of a host: {0}")]
    RuntimeDir(Observation),
    /// A process cannot be started or waited for.
    #[error("cannot {action} `{command}`")]
    Process {
        /// What was tried.
        action: &'static str,
        /// The command.
        command: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A process ended that should have gone on, or ended with a failure.
    #[error("`{command}` ended with {status}{}{stderr}", if .stderr.is_empty() { "" } else { ": " })]
    Ended {
        /// The command.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed on its standard error.
        stderr: String,
    },
    /// Something that a process should do did not happen in time.
    #[error("waited {seconds} s in vain for {wanted} of `{command}`")]
    Deadline {
        /// The command.
        command: String,
        /// What was waited for.
        wanted: String,
        /// For how long.
        seconds: u64,
    },
    /// A command printed something else than it should.
    #[error("`{command}` did not print {wanted}")]
    Output {
        /// The command.
        command: String,
        /// What was expected.
        wanted: &'static str,
    },
    /// A migration did not complete.
    #[error("the migration ended as {status}{}{explanation}", if .explanation.is_empty() { "" } else { ": " })]
    Migration {
        /// Its status.
        status: String,
        /// Why, down to the root cause.
        explanation: String,
    },
    /// A migration did not come to its end in time: the guest dirties its memory faster than it
    /// moves.
    #[error("the migration did not end within {0} s")]
    NotConverged(u64),
    /// What a VM's control socket answers.
    #[error("the control socket of a VM: {0}")]
    Api(Observation),
    /// The event loop that talks to control sockets cannot be had.
    #[error("cannot start the event loop")]
    EventLoop(#[source] io::Error),
    /// A network namespace cannot be entered or left.
    #[error("cannot enter or leave a network namespace")]
    Namespace(#[source] io::Error),
    /// A QEMU cannot be used as its user named it.
    #[error("{} is no QEMU that starts: {why}", .program.display())]
    NoQemu {
        /// The program.
        program: PathBuf,
        /// What it says.
        why: String,
    },
    /// The conversation with a QEMU failed.
    #[error("`{command}` cannot be asked to {action}")]
    Qmp {
        /// The QEMU.
        command: String,
        /// What was tried.
        action: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A QEMU refused a command, or answered it with something else than it should.
    #[error("`{command}` answers {action}: {answer}")]
    QmpAnswer {
        /// The QEMU.
        command: String,
        /// The command of its monitor.
        action: String,
        /// Its answer.
        answer: String,
    },
    /// The guest cannot be given a key.
    #[error("cannot send a key to the guest {0}")]
    Console(String, #[source] io::Error),
    /// The guest found that its memory or its disk is not as it left it: figures of such a run mean nothing.
    #[error("the guest {name} found {faults} faults in its memory or its disk")]
    Guest {
        /// Its name.
        name: String,
        /// Faults that it counted.
        faults: u64,
    },
    /// A file of `/proc` cannot be read or understood.
    #[error("cannot read /proc")]
    Proc(#[from] procfs_core::ProcError),
    /// The file of a disk cannot be made or used.
    #[error("cannot make or use the disk {}", .0.display())]
    Disk(PathBuf, #[source] io::Error),
    /// Memory for the plain copy or the warm-up cannot be had.
    #[error("cannot map {} of memory", human_bytes(*.0 as f64))]
    Map(u64, #[source] io::Error),
    /// The plain copy between sockets failed.
    #[error("the plain copy over sockets failed to {0}")]
    Copy(&'static str, #[source] io::Error),
    /// The page of a recorded run cannot be read or written.
    #[error("cannot write the page {}", .0.display())]
    Page(PathBuf, #[source] io::Error),
    /// The report cannot be written.
    #[error("cannot write the report")]
    Write(#[source] io::Error),
}

impl BenchError {
    /// The stable identifier of the condition, whose area decides the exit code.
    pub fn id(&self) -> &'static str {
        match self {
            Self::Option { .. } => "usage.option",
            Self::Interrupted => "bench.interrupted",
            Self::Memory { .. } => "host.memory",
            Self::Space { .. } => "host.space",
            // What a started command lacks, this one lacks too.
            Self::Ended { status, .. } if status.code() == Some(5) => "host.resources",
            _ => "bench.failed",
        }
    }
}
