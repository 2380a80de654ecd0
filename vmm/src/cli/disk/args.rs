//! What can be written after `vmm disk`.

use std::path::PathBuf;

use block::image::Format;
use block::image::qcow2::create::CLUSTER_BITS;
use clap::{Args, Subcommand, ValueEnum};
use control::disk_move::{
    DOWNTIME_LIMIT, DiskMoveHow, DiskMoveMode, DiskPull, OnNotConverging, OnTargetError,
};
use control::on_demand::PullPriority;
use control::units::{ByteSize, Rate, Span};
use migration::source_loss::OnSourceLoss;

use super::super::limits::{DiskLimits, parse_disk_limits};
use crate::sandbox::Sandbox;

/// Options of `disk`.
#[derive(Debug, Args)]
pub struct DiskArgs {
    /// What to do.
    #[command(subcommand)]
    pub(super) command: DiskCommand,
}

/// What to do with an image.
#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// Tell what an image is: format, sizes, features, what lies below it, whether it is in use.
    Info(InfoArgs),
    /// Check whether a qcow2 image is whole; changes nothing. Exit code 1 if it is not.
    Check(CheckArgs),
    /// Make a new image, which takes no space yet; what is there is never overwritten.
    Create(CreateArgs),
    /// Give an image that nobody uses another size.
    Resize(ResizeArgs),
    /// Move a disk of a running VM to another image on this host; the guest goes on meanwhile.
    ///
    /// Ctrl-C cancels the move, never the guest. The old image is kept, and marked as one whose disk has moved away.
    Move(MoveArgs),
    /// Make an image whole whose guest ended while its disk came on demand from the image that it was moved from.
    ///
    /// May be interrupted at any moment, and run again.
    Pull(PullArgs),
    /// Serve an image to the host that a guest has moved to before all of its disk had; goes on after a crash by the same
    /// command.
    ///
    /// It ends by itself when that host is whole. The image is only read, and kept.
    Serve(ServeArgs),
    /// List moves of a VM's disks, on this host and with their guest, those that run and the newest of those that ended; or steer
    /// one on this host.
    Jobs(DiskJobsArgs),
}

/// Options of `disk pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// The image that no guest uses; or VM and disk, as NAME:ID, of a guest that runs. A file of such a name is meant by ./NAME:ID.
    #[arg(value_name = "PATH|NAME:ID")]
    pub(super) what: PathBuf,
    /// Of a guest that runs: what its requests do for what is missing while whoever serves that is lost: pause, error, or
    /// error:TIME, after which they fail [default: as it is].
    #[arg(long, value_name = "WHAT", conflicts_with_all = ["from", "at"])]
    pub(super) on_source_loss: Option<OnSourceLoss>,
    /// Of a guest that runs: how what it does not ask for is had: background, high (as if it waited for that) or off
    /// [default: background, unless something else is changed].
    #[arg(long, value_name = "HOW", conflicts_with_all = ["from", "at"])]
    pub(super) priority: Option<PullPriority>,
    /// Make the image, of a disk that another host serves: a copy of the record that `vmm disk serve` names there, which has
    /// the secret.
    #[arg(long, value_name = "RECORD")]
    pub(super) from: Option<PathBuf>,
    /// Make the image and its map, and bring nothing: `vmm run` starts a guest with it, and has all come meanwhile.
    #[arg(long, requires = "from")]
    pub(super) begin: bool,
    /// Where that is served: HOST:PORT or unix:PATH [default: as recorded].
    #[arg(long, value_name = "ADDR")]
    pub(super) at: Option<String>,
    /// Connect to another host although what is on the disk, and the secret, can be read on the wire.
    #[arg(long)]
    pub(super) insecure: bool,
    /// Format of an image that is made: raw or qcow2 [default: that of the image that is served].
    #[arg(long, value_name = "FORMAT", requires = "from")]
    pub(super) format: Option<Format>,
}

/// Options of `disk move`.
#[derive(Debug, Args)]
pub struct MoveArgs {
    /// VM and disk, as NAME:ID; with --all the VM alone.
    #[arg(value_name = "NAME:ID")]
    pub(super) disk: String,
    /// The new image; with --all the folder of the new images, which keep their names.
    #[arg(long, value_name = "PATH")]
    pub(super) to: PathBuf,
    /// All disks of the VM, one after the other.
    #[arg(long, conflicts_with = "existing")]
    pub(super) all: bool,
    /// Format of the new image: raw or qcow2 [default: that of the old one].
    #[arg(long, value_name = "FORMAT")]
    pub(super) format: Option<Format>,
    /// Write over an image that is there, of the same size.
    #[arg(long)]
    pub(super) existing: bool,
    /// What becomes of the old image when the disk has moved: keep or delete.
    #[arg(long, value_name = "WHAT", default_value = "keep")]
    pub(super) after: After,
    /// Most that is copied in a second, as in 200MiB/s.
    #[arg(long, value_name = "RATE", default_value_t = Rate::default())]
    pub(super) bandwidth: Rate,
    /// Most that the guest may write to the disk in a second while it is mirrored, as in 100MiB/s.
    #[arg(long, value_name = "RATE", default_value_t = Rate::default())]
    pub(super) writes: Rate,
    /// Longest that the guest's requests to the disk may wait when it goes over to the new image.
    #[arg(long, value_name = "TIME", default_value_t = Span(DOWNTIME_LIMIT))]
    pub(super) downtime_limit: Span,
    /// How it is moved: precopy, mirror (which ends however much is written meanwhile), snapshot (the guest goes on in an
    /// overlay while the image is copied), or on-demand (it goes over at once, and its content comes afterwards).
    #[arg(long, value_name = "MODE", default_value_t = DiskMoveMode::default())]
    pub(super) mode: DiskMoveMode,
    /// What is done with a disk that is written faster than precopy copies it: mirror goes on from there, fail leaves it where it
    /// is [default: fail].
    #[arg(long, value_name = "WHAT")]
    pub(super) on_not_converging: Option<OnNotConverging>,
    /// What is done when the new image of a mirror cannot be written: drop gives the move up, stop pauses it; the guest goes
    /// on [default: drop].
    #[arg(long, value_name = "WHAT")]
    pub(super) on_target_error: Option<OnTargetError>,
    /// With --mode on-demand: whether what the guest does not ask for comes too, background or off (until the job is told
    /// to go on) [default: background].
    #[arg(long, value_name = "WHAT")]
    pub(super) pull: Option<DiskPull>,
    /// Where the overlays of mode snapshot lie: beside the old image (source) or the new one (destination)
    /// [default: destination].
    #[arg(long, value_name = "SIDE")]
    pub(super) overlay: Option<OverlaySide>,
    /// Stay in the overlay of mode snapshot, over the new image, and bring nothing together.
    #[arg(long)]
    pub(super) keep_chain: bool,
}

impl MoveArgs {
    /// How the disk is to be moved.
    pub(super) fn how(&self) -> DiskMoveHow {
        DiskMoveHow {
            mode: self.mode,
            on_not_converging: self.on_not_converging,
            on_target_error: self.on_target_error,
            writes: self.writes,
        }
    }
}

/// Where overlays lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum OverlaySide {
    /// Beside the image that the disk has.
    Source,
    /// Beside the image that it moves to.
    #[default]
    Destination,
}

/// Options of `disk serve`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("doing").required(true).args(["listen", "list", "forget"]))]
pub struct ServeArgs {
    /// Image file or block device.
    #[arg(required_unless_present = "list")]
    pub(super) path: Option<PathBuf>,
    /// Where to listen: HOST:PORT or unix:PATH.
    #[arg(long, value_name = "ADDR")]
    pub(super) listen: Option<String>,
    /// Identity of the disk, as its client names it [default: disk0].
    #[arg(long, value_name = "ID", default_value = "disk0")]
    pub(super) id: String,
    /// raw or qcow2.
    #[arg(long, value_name = "FORMAT", default_value = "raw")]
    pub(super) format: Format,
    /// Folder in which files below the image may lie, besides its own; may be repeated.
    #[arg(long, value_name = "DIR")]
    pub(super) allow_backing: Vec<PathBuf>,
    /// Who depends on the image, for `--list`.
    #[arg(long = "for", value_name = "WHO")]
    pub(super) client: Option<String>,
    /// Most that is sent in a second of what no guest waits for.
    #[arg(long, value_name = "RATE", default_value_t = Rate::default())]
    pub(super) bandwidth: Rate,
    /// How far the process is confined: on, strict or off.
    #[arg(long, value_name = "HOW", default_value = "on", env = "VMM_SANDBOX")]
    pub(super) sandbox: Sandbox,
    /// The image is a guest's, which is about to go: as `vmm migrate` starts this, and talks to it.
    #[arg(long, hide = true, requires = "listen")]
    pub(super) when_guest_has_gone: bool,
    /// Tell which images are served, for whom, and how much is missing there.
    #[arg(long, conflicts_with = "path")]
    pub(super) list: bool,
    /// Forget an image that no process serves: whoever lacks anything of it never gets it.
    #[arg(long)]
    pub(super) forget: bool,
}

/// What becomes of the image that a disk had before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum After {
    /// It stays.
    Keep,
    /// It is removed.
    Delete,
}

/// Options of `disk jobs`.
#[derive(Debug, Args)]
pub struct DiskJobsArgs {
    /// Name of the VM.
    pub(super) name: String,
    /// Change limits of the move that runs, or of that of disk ID: [ID,]bandwidth=RATE,downtime-limit=TIME,writes=RATE.
    /// A disk that moves with its guest has writes=RATE alone.
    #[arg(long, value_name = "LIMITS", value_parser = parse_disk_limits, group = "what")]
    pub(super) set: Option<DiskLimits>,
    /// Cancel a job.
    #[arg(long, value_name = "JOB", group = "what")]
    pub(super) cancel: Option<String>,
    /// Have a job wait until it is told to go on.
    #[arg(long, value_name = "JOB", group = "what")]
    pub(super) pause: Option<String>,
    /// Let a job go on.
    #[arg(long, value_name = "JOB", group = "what")]
    pub(super) resume: Option<String>,
    /// The job whose limits change; it or the disk is needed where more than one runs.
    #[arg(long, value_name = "JOB", requires = "set")]
    pub(super) job: Option<String>,
}

/// Options of `disk info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// Image file or block device.
    pub(super) path: PathBuf,
    /// raw or qcow2; where absent, as it begins.
    #[arg(long, value_name = "FORMAT")]
    pub(super) format: Option<Format>,
    /// Folder in which files below the image may lie, besides its own; may be repeated.
    #[arg(long, value_name = "DIR")]
    pub(super) allow_backing: Vec<PathBuf>,
}

/// Options of `disk check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Image file.
    pub(super) path: PathBuf,
}

/// Options of `disk create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Image file.
    pub(super) path: PathBuf,
    /// Size of the disk, as in 20GiB.
    #[arg(long, value_name = "SIZE")]
    pub(super) size: ByteSize,
    /// raw or qcow2.
    #[arg(long, value_name = "FORMAT", default_value = "raw")]
    pub(super) format: Format,
    /// Bytes of a cluster of a qcow2 image, 4KiB to 2MiB [default: 64KiB].
    #[arg(long, value_name = "SIZE", value_parser = cluster_bits)]
    pub(super) cluster_size: Option<u32>,
    /// File below a qcow2 image, which is only read; a relative path is seen from the new image's folder.
    #[arg(long, value_name = "FILE", requires = "backing_format")]
    pub(super) backing: Option<PathBuf>,
    /// Format of the file below: raw or qcow2.
    #[arg(long, value_name = "FORMAT", requires = "backing")]
    pub(super) backing_format: Option<Format>,
}

/// Options of `disk resize`.
#[derive(Debug, Args)]
pub struct ResizeArgs {
    /// Image file.
    pub(super) path: PathBuf,
    /// New size of the disk, as in 20GiB.
    #[arg(long, value_name = "SIZE")]
    pub(super) size: ByteSize,
    /// It may lose its end.
    #[arg(long)]
    pub(super) shrink: bool,
    /// raw or qcow2; where absent raw, if it does not begin as another format does.
    #[arg(long, value_name = "FORMAT")]
    pub(super) format: Option<Format>,
    /// Folder in which files below the image may lie, besides its own; may be repeated.
    #[arg(long, value_name = "DIR")]
    pub(super) allow_backing: Vec<PathBuf>,
}

fn cluster_bits(text: &str) -> Result<u32, String> {
    let ByteSize(size) = text.parse::<ByteSize>().map_err(|e| e.to_string())?;
    let bits = size.trailing_zeros();
    if size.is_power_of_two() && CLUSTER_BITS.contains(&bits) {
        return Ok(bits);
    }
    Err("a cluster is 4KiB, 8KiB, 16KiB, and so on up to 2MiB".into())
}
