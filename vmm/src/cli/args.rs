//! What can be written on the command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use control::instance::VmState;
use control::runtime_dir::Log;
use control::units::{ByteSize, Rate, Span};
use machine::config::{
    CpuModel, DiskArg, IncomingDisk, NetArg, PageBacking, RunOptions, StaleDisks,
    parse_net_override,
};
use migration::progress::LimitChange;
use migration::request::MigrateRequest;

use super::disk::DiskArgs;
use super::limits::{parse_limits, parse_migration_limits};
use crate::logging::{LogFormat, LogOptions};
use crate::sandbox::Sandbox;

/// Heading of the options that every command has.
const EVERYWHERE: &str = "Options of every command";

/// Runs virtual machines on KVM and moves them between hosts while they run.
///
/// Exit codes: 0 done; 1 failed, the guest runs where it ran; 2 usage; 3 the guest is paused until its
/// destination says whether it runs there; 4 cancelled; 5 this host lacks something.
#[derive(Debug, Parser)]
#[command(
    name = "vmm",
    version,
    propagate_version = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// Log to standard error; more with -vv and -vvv. VMM_LOG filters by module.
    #[arg(short, long, global = true, help_heading = EVERYWHERE,
        action = clap::ArgAction::Count)]
    verbose: u8,
    /// How log lines look.
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "FORMAT",
        default_value = "text")]
    log_format: LogFormat,
    /// Print JSON, one object a line.
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub(super) json: bool,
    /// This process was started by `--detach` and announces on standard output.
    #[arg(long, hide = true)]
    pub(super) detached_child: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    pub(super) fn log_options(&self) -> LogOptions {
        LogOptions {
            verbose: self.verbose,
            format: self.log_format,
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a guest; without a kernel, the embedded probe guest.
    ///
    /// In the foreground the serial console is standard input and output; Ctrl-] presses the power
    /// button, twice ends the guest. SIGTERM and SIGINT do the same.
    Run(Box<RunArgs>),
    /// Take in one migrating guest.
    Receive(ReceiveArgs),
    /// Move a running guest, or steer a migration that runs.
    ///
    /// Ctrl-C cancels the migration, never the guest.
    Migrate(MigrateArgs),
    /// List the jobs of a VM, those that run and the newest of those that ended, or steer one.
    Jobs(JobsArgs),
    /// List the VMs of this host.
    List {
        /// Also those that have ended.
        #[arg(long)]
        all: bool,
    },
    /// Tell what a VM is doing, or how it ended.
    Status {
        /// Name of the VM.
        name: String,
    },
    /// Attach to the serial console; Ctrl-] detaches.
    Console {
        /// Name of the VM.
        name: String,
    },
    /// Stop the guest's vCPUs; what it holds in memory stays.
    Pause {
        /// Name of the VM.
        name: String,
    },
    /// Let a paused VM run.
    Resume {
        /// Name of the VM.
        name: String,
    },
    /// Press the power button and wait until the guest has powered off.
    ///
    /// A guest that does not power off within a minute goes on.
    Stop {
        /// Name of the VM.
        name: String,
        /// End the guest now.
        #[arg(long)]
        force: bool,
    },
    /// Wait until a VM has ended, or is in a state.
    Wait {
        /// Name of the VM.
        name: String,
        /// Wait for this state instead of the end.
        #[arg(long, value_name = "STATE", value_parser = parse_state)]
        state: Option<VmState>,
        /// Give up after this time.
        #[arg(long, value_name = "TIME")]
        timeout: Option<Span>,
    },
    /// Print what a guest has printed on its console, also after its VM has ended.
    Logs(LogsArgs),
    /// Remove what is kept of a VM that has ended: how it did, and its logs.
    ///
    /// It goes by itself when the name is used again, or when there are many newer ones.
    Forget {
        /// Name of the VM.
        name: String,
    },
    /// Look at, check, make and resize disk images, without a VM; move the disks of one that runs.
    Disk(DiskArgs),
    /// A guest, a live migration and its report, on this machine.
    Demo(DemoArgs),
    /// Measure migration and start on this host, next to what the host can do at most.
    #[command(disable_help_flag = true)]
    Bench {
        /// Options of the benchmark; `vmm bench -h` lists them.
        #[arg(
            value_name = "OPTIONS",
            trailing_var_arg = true,
            allow_hyphen_values = true
        )]
        args: Vec<OsString>,
    },
    /// Print a completion script.
    #[command(hide = true)]
    Completions {
        /// Shell that reads it.
        shell: clap_complete::Shell,
    },
    /// Write man pages.
    #[command(hide = true)]
    Man {
        /// Folder that they go to.
        dir: PathBuf,
    },
}

/// Options of `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Name of the VM.
    pub(super) name: String,
    /// What the guest has printed; the default.
    #[arg(long)]
    console: bool,
    /// What the process of the VM logs, instead.
    #[arg(long, conflicts_with = "console")]
    vmm: bool,
    /// Go on until the VM has ended.
    #[arg(long, short)]
    pub(super) follow: bool,
}

impl LogsArgs {
    pub(super) fn log(&self) -> Log {
        if self.vmm { Log::Process } else { Log::Console }
    }
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Name of the VM; vm-1, vm-2, … where absent.
    name: Option<String>,
    /// Kernel: bzImage, or ELF with a PVH entry.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// vCPUs, 1 to 16 [default: 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    cpus: Option<u8>,
    /// RAM, as in 512MiB [default: 256MiB].
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Pages that back the RAM: 4k, or thp for huge ones where the host has them [default: thp].
    #[arg(long, value_name = "KIND")]
    pages: Option<PageBacking>,
    /// CPU that the guest sees: host, x86-64-v1 to x86-64-v4, or a model's file, FILE.toml
    /// [default: host].
    #[arg(long, value_name = "MODEL")]
    cpu: Option<CpuModel>,
    /// A disk: PATH[,format=raw|qcow2][,readonly][,cache=writeback|none][,id=ID]; may be repeated.
    #[arg(long = "disk", value_name = "DISK")]
    disks: Vec<DiskArg>,
    /// Folder in which files below a disk's image may lie, besides the image's own; may be repeated.
    #[arg(long, value_name = "DIR")]
    allow_backing: Vec<PathBuf>,
    /// Use disks whose guest has gone to another host, or may have.
    #[arg(long)]
    use_stale: bool,
    /// A network interface: tap=IF[,mac=MAC][,queues=N][,id=ID]; may be repeated.
    #[arg(long = "net", value_name = "NET")]
    nets: Vec<NetArg>,
    /// Read what is not said here from a TOML file.
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    #[command(flatten)]
    pub(super) confinement: Confinement,
    /// Return when the guest runs, and leave it running.
    #[arg(long)]
    pub(super) detach: bool,
}

/// How far the process of a VM is confined.
#[derive(Debug, Args)]
pub struct Confinement {
    /// Which system calls, files and ports the VM's process keeps: on, strict (a call that is not
    /// listed ends the process, and the guest) or off.
    #[arg(
        long,
        value_name = "MODE",
        env = "VMM_SANDBOX",
        hide_env_values = true,
        hide_possible_values = true,
        default_value = "on"
    )]
    pub(super) sandbox: Sandbox,
}

impl RunArgs {
    pub(super) fn into_options(self) -> RunOptions {
        let Self {
            name,
            kernel,
            initrd,
            cmdline,
            cpus,
            memory,
            pages,
            cpu,
            disks,
            allow_backing,
            use_stale,
            nets,
            config: _,
            confinement: _,
            detach: _,
        } = self;
        let memory = memory.map(|size| size.0);
        RunOptions {
            name,
            kernel,
            initrd,
            cmdline,
            cpus,
            memory,
            pages,
            cpu,
            disks,
            allow_backing,
            stale_disks: match use_stale {
                true => StaleDisks::Used,
                false => StaleDisks::Refused,
            },
            nets,
        }
    }
}

/// Options of `receive`.
#[derive(Debug, Args)]
pub struct ReceiveArgs {
    /// HOST:PORT (port 0 takes a free one), unix:PATH or fd:N.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) listen: String,
    /// Name of the VM on this host; where absent, incoming-1, incoming-2, … until the guest comes in
    /// with its own.
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Where the disk with this id is on this host: ID=PATH where both hosts share it, ID=PATH,create where it travels
    /// and its image is made, ID=PATH,existing where that is written over; ,cache=none: past this host's page cache; may
    /// be repeated.
    #[arg(long = "disk", value_name = "ID=PATH")]
    pub(super) disks: Vec<IncomingDisk>,
    /// Folder for the images of disks that travel and are not named.
    #[arg(long, value_name = "FOLDER")]
    pub(super) disk_dir: Option<PathBuf>,
    /// Folder in which files below a disk's image may lie, besides the image's own; may be repeated.
    #[arg(long, value_name = "DIR")]
    pub(super) allow_backing: Vec<PathBuf>,
    /// Tap on this host of the network interface with this id at the source: ID=TAP; may be repeated.
    /// One that is not named is on the tap of the same name here.
    #[arg(long = "net", value_name = "ID=TAP", value_parser = parse_net_override)]
    pub(super) nets: Vec<(String, String)>,
    /// Memory to have ready, in huge pages, before the guest comes: its RAM then arrives faster. What
    /// it does not need is freed; what it needs more is allocated as it comes.
    #[arg(long, value_name = "SIZE")]
    pub(super) reserve: Option<ByteSize>,
    /// Most that comes in, as in 200MiB/s, whatever the source would send.
    #[arg(long, value_name = "RATE", default_value_t = Rate::default())]
    pub(super) max_inbound: Rate,
    #[command(flatten)]
    pub(super) confinement: Confinement,
    /// Return when it listens.
    #[arg(long)]
    pub(super) detach: bool,
}

/// Options that steer a migration instead of beginning one.
const STEERING: [&str; 3] = ["cancel", "resolve", "set"];

/// Options of `migrate`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true)
    .args(["to", "cancel", "resolve", "set"]))]
pub struct MigrateArgs {
    /// Name of the VM.
    pub(super) name: String,
    #[command(flatten)]
    pub(super) request: Option<MigrateRequest>,
    /// Where disks that move on demand are served when the guest has gone: HOST:PORT or unix:PATH, as the destination reaches it; port
    /// 0 is any [default: any port at the address of this host that the destination sees].
    #[arg(long, value_name = "ADDR", requires = "disks", conflicts_with_all = STEERING)]
    pub(super) serve_at: Option<String>,
    /// How memory moves: precopy.
    #[arg(long, value_name = "MODE", default_value = "precopy", value_parser = parse_mode,
        conflicts_with_all = STEERING)]
    mode: PrecopyOnly,
    /// Cancel the migration that runs.
    #[arg(long, conflicts_with = "request")]
    pub(super) cancel: bool,
    /// Ask the destination at once whether it ran the guest, when that is not known.
    #[arg(long, conflicts_with = "request")]
    pub(super) resolve: bool,
    /// Change limits of the migration that runs: downtime-limit=TIME,bandwidth=RATE,writes=RATE; or ID,writes=RATE, of what the
    /// guest may write to the mirrored disk ID.
    #[arg(long, value_name = "LIMITS", value_parser = parse_migration_limits, conflicts_with = "request")]
    pub(super) set: Option<LimitChange>,
}

/// Options of `jobs`.
#[derive(Debug, Args)]
pub struct JobsArgs {
    /// Name of the VM.
    pub(super) name: String,
    /// Only this job.
    pub(super) id: Option<String>,
    /// Cancel it.
    #[arg(long, requires = "id")]
    pub(super) cancel: bool,
    /// Have it wait until it is told to go on; not a migration.
    #[arg(long, requires = "id", conflicts_with_all = ["cancel", "set"])]
    pub(super) pause: bool,
    /// Let it go on.
    #[arg(long, requires = "id", conflicts_with_all = ["cancel", "set", "pause"])]
    pub(super) resume: bool,
    /// Change its limits: downtime-limit=TIME,bandwidth=RATE,writes=RATE.
    #[arg(long, value_name = "LIMITS", value_parser = parse_limits, requires = "id",
        conflicts_with = "cancel")]
    pub(super) set: Option<LimitChange>,
    /// Tell how far it is until it is over; the exit code tells how it ended. Ctrl-C ends the telling, not the job.
    #[arg(long, requires = "id", conflicts_with_all = ["cancel", "set", "pause", "resume"])]
    pub(super) follow: bool,
}

/// Options of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Only write the probe guest, which boots on other VMMs too, to a file.
    #[arg(long, value_name = "FILE")]
    pub(crate) export_guest: Option<PathBuf>,
    /// RAM of the guest.
    #[arg(long, value_name = "SIZE", default_value = "512MiB")]
    pub(crate) memory: ByteSize,
    /// Give the guest a disk that only its first host has, which moves with it.
    #[arg(long)]
    pub(crate) disks: bool,
}

/// The one way in which memory moves; asking for another is an error, not a wish.
#[derive(Debug, Clone, Copy)]
struct PrecopyOnly;

fn parse_mode(text: &str) -> Result<PrecopyOnly, String> {
    match text {
        "precopy" => Ok(PrecopyOnly),
        _ => Err(format!("mode {text:?} is not supported: only precopy is")),
    }
}

fn parse_state(text: &str) -> Result<VmState, String> {
    serde_json::from_value(text.into()).map_err(|_| {
        "states are incoming, running, paused, handing-over, handover-unknown, migrated, stopped and \
         failed"
            .into()
    })
}

#[cfg(test)]
mod tests;
