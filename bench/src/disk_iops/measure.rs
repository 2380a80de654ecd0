//! The contenders take turns on one file.

use std::process::Stdio;
use std::time::Duration;

use control::runtime_dir::Log;
use control::units::{ByteSize, human_ms};

use super::super::disks::{DiskFormat, DiskImage, ImageFolder};
use super::super::engine::DiskCache;
use super::super::error::BenchError;
use super::super::guest::{ANSWER, GUEST_OVERHEAD, Guest, Workload};
use super::super::hosts::Hosts;
use super::super::qemu::{self, DiskVariant, Found, Qemu};
use super::super::rounds::{TakesTurns, take_turns};
use super::cell::Cell;
use super::figures::{CellFigures, DiskContenderFigures, DiskIopsFigures, DiskRole, DiskTurn};

const NAME: &str = DiskIopsFigures::NAME;
/// Bytes of the disk.
const BYTES: u64 = 256 << 20;
/// Space that images need at once.
pub(crate) const NEEDED_SPACE: u64 = 2 * BYTES;
/// Bytes of a request.
const REQUEST: u64 = 4096;
/// The interval that counts: the one before it warms up.
const COUNTS: usize = 1;
/// The guest's name.
const VM: &str = "disk";

/// A guest that does nothing else.
const GUEST: Workload = Workload {
    cpus: 1,
    memory_bytes: 2 * GUEST_OVERHEAD,
    random_bytes: 0,
    dirty_bytes: 0,
    dirty_pages_per_s: 0,
};

/// Memory that a run needs at once: the guest, and the pages of the file.
pub(crate) fn needed_memory() -> u64 {
    GUEST.memory_bytes + BYTES
}

/// Who is measured.
enum Contender {
    Engine(DiskCache),
    Qemu { qemu: Qemu, variant: DiskVariant },
}

impl Contender {
    fn all(found: &Found, format: DiskFormat) -> impl Iterator<Item = Self> {
        let peers = found.qemus.iter().flat_map(|qemu| {
            DiskVariant::ALL.map(|variant| Self::Qemu {
                qemu: qemu.clone(),
                variant,
            })
        });
        let caches: &[DiskCache] = match format {
            DiskFormat::Raw => &[DiskCache::Host, DiskCache::None],
            // It goes through the page cache only.
            DiskFormat::Qcow2 => &[DiskCache::Host],
        };
        let engines = caches.iter().map(|cache| Self::Engine(*cache));
        engines.chain(peers)
    }

    fn role(&self) -> DiskRole {
        match self {
            Self::Engine(DiskCache::Host) => DiskRole::Engine,
            Self::Engine(DiskCache::None) => DiskRole::DirectEngine,
            Self::Qemu { variant, .. } if variant.is_anchor() => DiskRole::Peer,
            Self::Qemu { .. } => DiskRole::FurtherPeer,
        }
    }

    /// One timed turn.
    fn turn(
        &self,
        hosts: &Hosts,
        image: &DiskImage,
        (cell, interval_ms): (Cell, u64),
    ) -> Result<DiskTurn, BenchError> {
        let line = cell.command_line(interval_ms);
        let mut guest = match self {
            Self::Engine(cache) => start(hosts, image, *cache, &line)?,
            Self::Qemu { qemu, variant } => {
                let disk = (image.path(), image.format.word());
                qemu::start_on_disk(hosts, qemu, *variant, &GUEST, disk, &line)?
            }
        };
        let patience = ANSWER + Duration::from_millis(interval_ms) * 2;
        let stats = guest.disk_interval(cell.op.word(), COUNTS, patience)?;
        let ms = |ns: u64| ns as f64 / 1e6;
        Ok(DiskTurn {
            iops: stats.iops as f64,
            p50_ms: ms(stats.p50_ns),
            p99_ms: ms(stats.p99_ns),
        })
    }
}

impl TakesTurns for Contender {
    fn name(&self) -> String {
        match self {
            Self::Engine(DiskCache::Host) => "vmm".to_owned(),
            Self::Engine(DiskCache::None) => "vmm, cache=none".to_owned(),
            Self::Qemu { qemu, variant } => format!("QEMU {} {variant}", qemu.version),
        }
    }

    fn is_left_out_after(&self, _: &BenchError) -> bool {
        !matches!(self, Self::Engine(_))
    }
}

/// Starts a guest of this engine on the disk.
fn start(
    hosts: &Hosts,
    image: &DiskImage,
    cache: DiskCache,
    line: &str,
) -> Result<Guest, BenchError> {
    let memory = ByteSize(GUEST.memory_bytes).to_string();
    let (path, format) = (image.path().display(), image.format.word());
    let disk = format!("{path},format={format}{}", cache.option());
    let arguments = [
        "run",
        VM,
        "--memory",
        &memory,
        "--disk",
        &disk,
        "--cmdline",
        line,
    ];
    // There may be none before it.
    let _ = hosts.source.runtime.forget(VM);
    let process = hosts.start(&hosts.source, &arguments, Stdio::null())?;
    let runtime = hosts.source.runtime.clone();
    let log = runtime.log_path(VM, Log::Console);
    let console = Box::new(move || runtime.connect_console(VM));
    Ok(Guest::new(process, VM, log, console))
}

/// Measures `rounds` of every cell: so many, in which requests are counted for so many milliseconds.
///
/// # Errors
/// When this engine could not be measured. A peer that fails is left out of the further rounds of a
/// cell, and why is told.
pub(crate) fn measure(
    hosts: &Hosts,
    images: &ImageFolder,
    found: &Found,
    rounds: (u32, u64),
) -> Result<Vec<DiskIopsFigures>, BenchError> {
    [DiskFormat::Raw, DiskFormat::Qcow2]
        .into_iter()
        .map(|format| {
            let image = DiskImage::make(images.path(format.word()), format, BYTES, BYTES)?;
            let cells = Cell::ALL.map(|cell| measure_cell(hosts, found, &image, cell, rounds));
            Ok(DiskIopsFigures {
                format: format.word(),
                disk_bytes: BYTES,
                request_bytes: REQUEST,
                cells: cells.into_iter().collect::<Result<_, _>>()?,
            })
        })
        .collect()
}

fn measure_cell(
    hosts: &Hosts,
    found: &Found,
    image: &DiskImage,
    cell: Cell,
    (runs, interval_ms): (u32, u64),
) -> Result<CellFigures, BenchError> {
    let records = take_turns(
        format_args!("{NAME} {cell}"),
        Contender::all(found, image.format).collect(),
        runs,
        |contender| contender.turn(hosts, image, (cell, interval_ms)),
        |turn| format!("{:.0} a second, p99 {}", turn.iops, human_ms(turn.p99_ms)),
    )?;
    let figures = records.into_iter().map(|record| {
        let (name, role) = (record.contender.name(), record.contender.role());
        DiskContenderFigures::new(name, role, &record.turns, record.gave_up)
    });
    Ok(CellFigures::new(cell, figures.collect()))
}
