//! Finding the disks of all loads, and the memory that these need, before the others take theirs.

use super::disk::Disk;
use super::engine::Load;
use super::options::{LoadOptions, MAX_LOADS, SERIAL, Start, Which};
use super::slot::{CONTROL, Control};
use super::slots::Slots;
use super::stats::{self, Stats};
use super::table::Table;
use crate::clock::{Clock, tsc};
use crate::lines;
use crate::memory::{BootInfo, PAGE};
use crate::ring::{self, Ring};
use crate::shared::{self, CPUS, Fault};
use crate::units::{Identity, Pattern, Script, mix};
use crate::virtio;

/// VIRTIO_BLK_F_..
const READ_ONLY: u32 = 1 << 5;
const FLUSH: u32 = 1 << 9;
const DISCARD: u32 = 1 << 13;
const WRITE_ZEROES: u32 = 1 << 14;

/// Smallest buffer: the region is filled and looked at in pieces of this size.
const BUFFER: u64 = 64 << 10;
const SECTOR: u64 = 512;

/// A disk that is up, and who it is.
struct Found {
    ring: Ring,
    features: u32,
    capacity: u64,
    serial: [u8; SERIAL],
    control: u64,
}

fn refuse(number: usize, kind: &'static str, expected: u64, found: u64) {
    shared::report(Fault {
        kind,
        gpa: 0,
        expected,
        found,
        disk: Some(number),
    });
}

fn take(info: &mut BootInfo, bytes: u64) -> Result<u64, (u64, u64)> {
    let most = info.free.iter().map(|range| range.len()).max().unwrap_or(0);
    if bytes > most {
        return Err((bytes, most));
    }
    Ok(info.take_largest(bytes).0)
}

/// Brings up the disk behind `base` in memory for a ring and control blocks.
fn bring_up(base: u64, memory: u64, clock: &Clock) -> Option<Found> {
    let features = READ_ONLY | FLUSH | DISCARD | WRITE_ZEROES;
    let (mut ring, features) = Ring::new(base, features, memory)?;
    let control = memory + ring::BYTES;
    let serial = Disk::serial_of(&mut ring, Control(control), clock).unwrap_or([0; SERIAL]);
    Some(Found {
        ring,
        features,
        capacity: virtio::config_u64(base, 0) * SECTOR,
        serial,
        control,
    })
}

/// Memory of a ring and of the control blocks behind it.
fn device_bytes() -> u64 {
    ring::BYTES + ((super::options::MAX_DEPTH + 1) * CONTROL).next_multiple_of(PAGE)
}

/// Sets up the loads of `options` with the disks behind `bases`; `add` gets each with its CPU. Which
/// bases are taken, as bits.
pub fn set_up(
    options: &[Option<LoadOptions>; MAX_LOADS],
    bases: &[u64],
    seed: u64,
    info: &mut BootInfo,
    clock: &Clock,
    cpus: usize,
    mut add: impl FnMut(usize, usize, Load),
) -> u64 {
    let mut taken = 0;
    let mut waiting = *options;
    let by_serial = |load: &Option<LoadOptions>| {
        load.is_some_and(|load| matches!(load.which, Which::Serial(_)))
    };
    let mut spare = None;
    for (index, &base) in bases.iter().enumerate() {
        let by_index = |load: &Option<LoadOptions>| {
            load.is_some_and(|load| matches!(load.which, Which::Index(i) if i == index))
        };
        if !waiting.iter().any(|load| by_index(load) || by_serial(load)) {
            continue;
        }
        let memory = match spare.take().map_or_else(|| take(info, device_bytes()), Ok) {
            Ok(memory) => memory,
            Err((wanted, most)) => {
                shared::fault("disk-memory", 0, wanted, most);
                break;
            }
        };
        let found = bring_up(base, memory, clock);
        let wanted = |load: &Option<LoadOptions>, found: &Found| {
            by_index(load)
                || load.is_some_and(
                    |load| matches!(load.which, Which::Serial(serial) if serial == found.serial),
                )
        };
        let place = found
            .as_ref()
            .and_then(|found| waiting.iter().position(|load| wanted(load, found)));
        let (Some(found), Some(number)) = (found, place) else {
            // Nobody's: it may be found again as if nothing had been.
            let _ = virtio::begin(base, 0);
            spare = Some(memory);
            continue;
        };
        taken |= 1 << index;
        let Some(options) = waiting[number].take() else {
            continue;
        };
        let cpu = options
            .cpu
            .unwrap_or(if cpus > 1 { 1 + number % (cpus - 1) } else { 0 });
        if cpu >= cpus {
            refuse(number, "disk-cpu", cpu as u64, cpus as u64);
        } else if let Some(load) = load(number, options, found, seed, info, clock, cpu) {
            add(number, cpu, load);
        }
    }
    for (number, load) in waiting.iter().enumerate() {
        if load.is_some() {
            refuse(number, "device-missing", virtio::BLOCK.into(), 0);
        }
    }
    taken
}

fn identity_of(serial: &[u8; SERIAL], number: usize) -> u64 {
    if serial[0] == 0 {
        return number as u64 + 1;
    }
    serial.iter().fold(0, |sum, &byte| mix(sum, byte.into()))
}

/// The load of `options` on a disk; `None` when it cannot be, which is told as a fault.
// One frame for a load at a time.
#[inline(never)]
fn load(
    number: usize,
    mut options: LoadOptions,
    found: Found,
    seed: u64,
    info: &mut BootInfo,
    clock: &Clock,
    cpu: usize,
) -> Option<Load> {
    let Found {
        ring,
        features,
        capacity,
        serial,
        control,
    } = found;
    let fills = options.start == Start::Fill;
    let needed = [
        (options.flushes(), FLUSH),
        (options.shares.discards > 0, DISCARD),
        (options.shares.zeroes > 0, WRITE_ZEROES),
    ];
    let needed = needed.iter().filter(|(needs, _)| *needs);
    let needed = needed.fold(0, |all, (_, feature)| all | feature);
    let read_only = features & READ_ONLY != 0 && (options.changes() || fills);
    if needed & !features != 0 || read_only {
        refuse(number, "disk-feature", needed.into(), features.into());
        return None;
    }
    let rest = capacity.saturating_sub(options.offset);
    let length = options.length.unwrap_or(rest) / options.unit * options.unit;
    let units = length / options.unit;
    if length > rest || units < options.largest() {
        let end = options
            .offset
            .saturating_add(length.max(options.largest() * options.unit));
        refuse(number, "disk-region", end, capacity);
        return None;
    }
    options.depth = options.depth.min(ring.places().saturating_sub(1));
    if options.depth == 0 {
        refuse(number, "disk-queue", 2, ring.places() as u64);
        return None;
    }
    let stride = (options.largest() * options.unit).max(BUFFER);
    let table_bytes = Table::bytes(units)?.next_multiple_of(PAGE);
    let buffers_bytes = options.depth as u64 * stride;
    let stats_bytes = stats::BYTES.next_multiple_of(PAGE);
    let slots_bytes = Slots::BYTES.next_multiple_of(PAGE);
    let bytes = table_bytes + buffers_bytes + stats_bytes + slots_bytes;
    let memory = match take(info, bytes) {
        Ok(memory) => memory,
        Err((wanted, most)) => {
            refuse(number, "disk-memory", wanted, most);
            return None;
        }
    };
    let seed = options.seed.unwrap_or(seed);
    let identity = Identity {
        disk: identity_of(&serial, number),
        seed,
        run: mix(tsc(), number as u64),
    };
    let script = Script {
        seed,
        units,
        sizes: options.sizes,
        pattern: options.pattern,
        shares: options.shares,
        fill: if fills { stride / options.unit } else { 0 },
        sequence: 0,
        position: 0,
    };
    let disk = Disk {
        number,
        ring,
        table: Table::new(memory, units),
        identity,
        sector: options.offset / SECTOR,
        unit: options.unit,
        control,
        buffers: memory + table_bytes,
        stride,
    };
    introduce(&disk, &options, &script, &serial, cpu);
    let behind = memory + table_bytes + buffers_bytes;
    let stats = Stats::new(behind);
    let slots = Slots::new(behind + stats_bytes);
    Some(Load::new(
        disk, options, *clock, script, stats, slots, &CPUS[cpu],
    ))
}

/// Tells all that a reader of the image needs to know what each change wrote.
fn introduce(
    disk: &Disk,
    options: &LoadOptions,
    script: &Script,
    serial: &[u8; SERIAL],
    cpu: usize,
) {
    let Identity {
        disk: id,
        seed,
        run,
    } = disk.identity;
    let pattern = match script.pattern {
        Pattern::Sequential => "sequential",
        Pattern::Random => "random",
    };
    // Before all others, so that there is room.
    let _ = lines::post(format_args!(
        "disk-ready disk={} serial={} id={id:#x} seed={seed:#x} run={run:#x} sector={} unit={} \
         units={} fill={} pattern={pattern} sizes={} writes={} discards={} zeroes={} reads={} \
         verifies={} depth={} cpu={cpu}",
        disk.number,
        Serial(serial),
        disk.sector,
        disk.unit,
        script.units,
        script.fill,
        Sizes(script.sizes.all()),
        script.shares.writes,
        script.shares.discards,
        script.shares.zeroes,
        options.reads,
        options.verifies,
        options.depth,
    ));
}

/// `8/16`
struct Sizes<'a>(&'a [u64]);

impl core::fmt::Display for Sizes<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for (i, size) in self.0.iter().enumerate() {
            write!(f, "{}{size}", if i > 0 { "/" } else { "" })?;
        }
        Ok(())
    }
}

/// The printable bytes of a serial number; `-` when there are none.
struct Serial<'a>(&'a [u8; SERIAL]);

impl core::fmt::Display for Serial<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let bytes = self.0.iter().copied().take_while(|&byte| byte != 0);
        let mut any = false;
        for byte in bytes.filter(u8::is_ascii_graphic) {
            write!(f, "{}", char::from(byte))?;
            any = true;
        }
        if any { Ok(()) } else { f.write_str("-") }
    }
}
