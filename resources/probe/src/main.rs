//! The probe guest: see docs/probe.md.
#![no_std]
#![no_main]

mod clock;
mod content;
mod disk;
mod extras;
mod gate;
mod lapic;
mod ledger;
mod lines;
mod load;
mod memory;
mod net;
mod options;
mod packet;
mod places;
mod power;
mod ring;
mod runtime;
mod serial;
mod shared;
mod tcp;
mod timer;
mod units;
mod virtio;
mod worker;

use core::sync::atomic::Ordering;

use clock::{Clock, peek, tsc};
use content::Fill;
use disk::Disk;
use extras::{Console, Rng};
use memory::{BootInfo, MAX_RANGES, PAGE, Range};
use net::Net;
use options::{Block, Crash, Options};
use places::Places;
use serial::Serial;
use shared::{CPUS, FAULTS, Fault, GO, MAX_CPUS, next_fault, sum, take_gap};
use timer::Timer;
use worker::{Plan, Worker};

/// How long requests in flight may take at the end.
const LAST_REQUESTS_US: u64 = 5_000_000;

static mut PLAN: Option<Plan> = None;

/// Where every CPU arrives from boot.s.
#[unsafe(no_mangle)]
extern "C" fn cpu_main(index: usize) -> ! {
    lapic::enable();
    if index == 0 {
        boot_cpu();
    }
    CPUS[index].alive.store(true, Ordering::Release);
    while !GO.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    // SAFETY: written before GO, never after.
    let Some(plan) = (unsafe { (&raw const PLAN).read() }) else {
        gate::triple_fault()
    };
    if plan.clock.kvmclock {
        clock::enable(index);
    }
    let mut worker = Worker::new(plan, index);
    CPUS[index].ready.store(true, Ordering::Release);
    loop {
        worker.pass();
        let loaded = load::poll(index);
        worker.wait(loaded);
    }
}

/// Reads the command line into `buffer`.
fn cmdline(address: u64, buffer: &mut [u8; 2048]) -> &str {
    let mut len = 0;
    while address != 0 && len < buffer.len() {
        let byte = peek::<u8>(address + len as u64);
        if byte == 0 {
            break;
        }
        buffer[len] = byte;
        len += 1;
    }
    core::str::from_utf8(&buffer[..len]).unwrap_or("")
}

/// Puts aside table, ledger and filled memory, in this order.
fn plan(info: &mut BootInfo, options: &Options, clock: Clock, cpus: u64) -> Plan {
    let wanted = options
        .ledger
        .unwrap_or(0)
        .max(options.dirty_set)
        .div_ceil(PAGE);
    let most = info.free.iter().map(Range::len).max().unwrap_or(0) / PAGE;
    let slack = 2 * cpus + 2;
    // Each 1024 pages of ledger need a page of table.
    let pages = wanted.min(most.saturating_sub(slack) * 1024 / 1025);
    if pages < wanted {
        shared::fault("ledger-size", 0, wanted * PAGE, pages * PAGE);
    }
    let (mut table, mut ledger) = (0, 0);
    if pages > 0 {
        let (start, _) = info.take_largest((pages.div_ceil(1024) + slack + pages) * PAGE);
        table = start;
        ledger = start + (pages.div_ceil(1024) + slack) * PAGE;
    }
    let mut filled = [Range::default(); MAX_RANGES];
    let mut left = match options.fill {
        Fill::None => 0,
        _ => options.fill_size.unwrap_or(u64::MAX) & !(PAGE - 1),
    };
    for (target, free) in filled.iter_mut().zip(&info.free) {
        let bytes = free.len().min(left);
        *target = Range {
            start: free.start,
            end: free.start + bytes,
        };
        left -= bytes;
    }
    Plan {
        clock,
        cpus,
        fill: options.fill,
        seed: options.seed,
        filled,
        ledger,
        ledger_pages: pages,
        table,
        working_pages: options.dirty_set.div_ceil(PAGE).min(pages),
        rate: options.rate(),
        dirty_random: options.dirty_random,
        dirty_cpl0: options.dirty_cpl0,
        halt: options.halt,
    }
}

#[derive(Default)]
struct Devices {
    disk: Option<Disk>,
    net: Option<Net>,
    rng: Option<Rng>,
    console: Option<Console>,
}

/// Sets up the loads of disks; where devices are that are nobody's yet.
// Its frame is large, and would stay on the stack for ever within that of `boot_cpu`.
#[inline(never)]
fn set_up_loads(options: &Options, info: &mut BootInfo, clock: &Clock, cpus: usize) -> Places {
    let mut places = Places::of(options);
    if options.loads.iter().all(Option::is_none) {
        return places;
    }
    let disks = places.disks();
    let taken = load::set_up(&options.loads, disks.all(), options.seed, info, clock, cpus);
    for (i, &disk) in disks.all().iter().enumerate() {
        if taken & 1 << i != 0 {
            places.take(disk);
        }
    }
    places
}

fn find_devices(options: &Options, clock: &Clock, places: &Places) -> Devices {
    let mut devices = Devices::default();
    let wants_disk = options.block != Block::Off;
    if !(wants_disk || options.net.is_some() || options.rng || options.console) {
        return devices;
    }
    for &base in places.all() {
        match virtio::probe(base) {
            Some(virtio::BLOCK) if wants_disk && devices.disk.is_none() => {
                devices.disk = Disk::new(base, options, clock);
            }
            Some(virtio::NET) if devices.net.is_none() => {
                devices.net = options
                    .net
                    .and_then(|address| Net::new(base, address, clock));
            }
            Some(virtio::RNG) if options.rng && devices.rng.is_none() => {
                devices.rng = Rng::new(base);
            }
            Some(virtio::CONSOLE) if options.console && devices.console.is_none() => {
                devices.console = Console::new(base);
            }
            _ => {}
        }
    }
    let missing = |id: u32| shared::fault("device-missing", 0, id.into(), 0);
    if wants_disk && devices.disk.is_none() {
        missing(virtio::BLOCK);
    }
    if options.net.is_some() && devices.net.is_none() {
        missing(virtio::NET);
    }
    if options.rng && devices.rng.is_none() {
        missing(virtio::RNG);
    }
    if options.console && devices.console.is_none() {
        missing(virtio::CONSOLE);
    }
    devices
}

fn boot_cpu() -> ! {
    let start = tsc();
    let mut out = Serial::new();
    out.line(format_args!("hello version=1"));
    out.flush();
    power::mask_legacy_interrupts();
    let mut info = BootInfo::read();
    let mut buffer = [0; 2048];
    let line = cmdline(info.cmdline, &mut buffer);
    let options = Options::parse(line, &mut out);
    let clock = Clock::find(start, options.tsc_khz);
    if options.crash != Crash::No {
        crash(options.crash, &clock, &mut out);
    }
    let cpus = start_cpus(&info, &options, &clock);
    info.map_high();
    let places = set_up_loads(&options, &mut info, &clock, cpus);
    let plan = plan(&mut info, &options, clock, cpus as u64);
    // SAFETY: the other CPUs read it after GO.
    unsafe { (&raw mut PLAN).write(Some(plan)) };
    GO.store(true, Ordering::Release);
    let worker = Worker::new(plan, 0);
    let mut devices = find_devices(&options, &clock, &places);
    for cpu in &CPUS[1..cpus] {
        while !cpu.ready.load(Ordering::Acquire) {
            core::hint::spin_loop();
        }
    }
    let fill_mib = plan.filled.iter().map(Range::len).sum::<u64>() >> 20;
    if devices.console.is_some() {
        out.copy_to_console();
    }
    out.line(format_args!(
        "ready version=1 cpus={cpus} ram_mib={} fill={} fill_mib={fill_mib} ledger_mib={} \
         dirty_rate={} tsc_khz={} kvmclock={} up_ms={}",
        info.ram >> 20,
        plan.fill.name(),
        plan.ledger_pages * PAGE >> 20,
        plan.rate,
        clock.tsc_khz,
        u8::from(clock.kvmclock),
        clock.us(tsc() - start) / 1000,
    ));
    out.flush();
    if let Some(net) = &devices.net {
        net.introduce(&mut out);
    }
    run(&clock, &options, worker, &mut devices, &mut out)
}

fn crash(how: Crash, clock: &Clock, out: &mut Serial) -> ! {
    let reason = if how == Crash::Triple {
        "crash-triple"
    } else {
        "crash-reset"
    };
    out.line(format_args!("bye reason={reason}"));
    out.flush();
    if how == Crash::Triple {
        gate::triple_fault();
    }
    power::reset(clock)
}

fn start_cpus(info: &BootInfo, options: &Options, clock: &Clock) -> usize {
    let own = (lapic::read(0x20) >> 24) as u8;
    let mut ids = [0; MAX_CPUS];
    let mut offered = info.apic_ids(own, &mut ids);
    if options.cpus > 0 {
        for (i, id) in ids.iter_mut().enumerate() {
            *id = i as u8;
        }
        offered = options.cpus;
    }
    let mut cpus = 1;
    for &id in &ids[1..offered] {
        if lapic::start_cpu(clock, cpus, id) {
            cpus += 1;
        } else {
            shared::fault("cpu", 0, id.into(), 0);
            break;
        }
    }
    cpus
}

/// Gaps as ticks report them, in cycles.
#[derive(Default)]
struct Gaps {
    largest: u64,
    print: u64,
}

fn run(
    clock: &Clock,
    options: &Options,
    mut worker: Worker,
    devices: &mut Devices,
    out: &mut Serial,
) -> ! {
    let period = clock.cycles_of_us(options.tick_ms * 1000);
    let input_period = clock.cycles_of_us(options.tick_ms.min(10) * 1000);
    let (mut next_tick, mut next_input) = (tsc() + period, 0);
    let mut gaps = Gaps::default();
    let (mut n, mut last_mono, mut printed) = (0, clock.mono_ns(), false);
    let mut timer = options
        .timer
        .map(|mode| Timer::start(mode, options.timer_us, clock));
    let clock_period = options.clock_ms.map(|ms| clock.cycles_of_us(ms * 1000));
    let mut next_clock = 0;
    // The time spent on booting is no gap.
    take_gap();
    worker.restart_gap();
    loop {
        let gap = worker.pass();
        if printed {
            gaps.print = gaps.print.max(gap);
        }
        printed = out.pump();
        if let Some(disk) = &mut devices.disk {
            disk.poll(out);
        }
        let loaded = load::poll(0);
        if let Some(net) = &mut devices.net {
            net.poll();
        }
        if devices.rng.as_ref().is_some_and(|rng| rng.poll(out)) {
            devices.rng = None;
        }
        if let Some(console) = &mut devices.console {
            console.poll(out);
        }
        let now = tsc();
        let mut tick = now >= next_tick;
        if tick {
            next_tick += period;
            if next_tick <= now {
                next_tick = now + period;
            }
        }
        if let Some(timer) = &mut timer {
            timer.poll(clock);
        }
        // With nothing before it in the queue, so that the line is out soon after it was made.
        if let Some(period) = clock_period
            && now >= next_clock
            && !out.pending()
        {
            next_clock = now + period;
            print_clock(clock, timer.as_ref(), out);
        }
        let mut reason = None;
        if tick && power::button_pressed() {
            reason = Some("power-button");
        }
        if now >= next_input {
            next_input = now + input_period;
            last_mono = clock.mono_ns();
            match serial::input() {
                Some(b's') => tick = true,
                Some(b'q') => reason = Some("asked"),
                Some(b'r') => crash(Crash::Reset, clock, out),
                Some(b't') => crash(Crash::Triple, clock, out),
                Some(b'v') => load::verify(),
                Some(b'g') => {
                    take_gap();
                    gaps = Gaps::default();
                }
                _ => {}
            }
        }
        print_queued(out);
        if tick && out.has_room() {
            n += 1;
            print_tick(n, clock, devices, &mut gaps, last_mono, out);
            if let Some(net) = &mut devices.net {
                net.ticks = n;
                net.print(n, out);
            }
        }
        if options.exit_ticks.is_some_and(|ticks| n >= ticks)
            || options
                .exit_after_us
                .is_some_and(|us| clock.us(now - clock.start) >= us)
        {
            reason = reason.or(Some("exit_after"));
        }
        if let Some(reason) = reason {
            end_loads(clock, out);
            out.line(format_args!("bye reason={reason}"));
            out.flush();
            power::off(clock);
        }
        if !out.pending() {
            worker.wait(loaded || devices.disk.is_some() || devices.net.is_some());
        }
    }
}

/// Prints faults, and lines of all CPUs, as far as there is room.
fn print_queued(out: &mut Serial) {
    while out.has_room()
        && let Some(found) = next_fault()
    {
        let Fault {
            kind,
            gpa,
            expected,
            found,
            disk,
        } = found;
        let fields =
            format_args!("fault kind={kind} gpa={gpa:#x} expected={expected:#x} found={found:#x}");
        match disk {
            Some(disk) => out.line(format_args!("{fields} disk={disk}")),
            None => out.line(fields),
        }
    }
    while out.has_room() && lines::send(|line| out.line(format_args!("{line}"))) {}
}

/// Has the loads end and tell what they did, unless their disks stand still.
fn end_loads(clock: &Clock, out: &mut Serial) {
    load::stop();
    let from = tsc();
    let patience = clock.cycles_of_us(LAST_REQUESTS_US);
    while !load::ended() && tsc() - from < patience {
        load::poll(0);
        print_queued(out);
        out.pump();
    }
    print_queued(out);
}

fn print_clock(clock: &Clock, timer: Option<&Timer>, out: &mut Serial) {
    let (fired, early, late) = timer.map_or((0, 0, 0), |timer| {
        (timer.fired(), timer.early, timer.latest_ns / 1000)
    });
    let mono = clock.mono_ns();
    out.line(format_args!(
        "clock mono_ns={mono} tsc={} wall_ns={} stops={} fired={fired} early={early} late_us={late}",
        tsc(),
        clock.wall_ns(mono),
        clock::STOPS.load(Ordering::Relaxed),
    ));
}

fn print_tick(
    n: u64,
    clock: &Clock,
    devices: &Devices,
    gaps: &mut Gaps,
    mono: u64,
    out: &mut Serial,
) {
    let gap = take_gap();
    gaps.largest = gaps.largest.max(gap);
    let print = core::mem::take(&mut gaps.print);
    let (written, verified) = devices
        .disk
        .as_ref()
        .map_or((0, 0), |disk| (disk.written, disk.verified));
    let written = written + sum(|cpu| &cpu.units_written);
    let verified = verified + sum(|cpu| &cpu.units_verified);
    // SAFETY: set before the other CPUs began.
    let pages = unsafe { (&raw const PLAN).read() }.map_or(0, |plan| plan.ledger_pages);
    out.line(format_args!(
        "tick n={n} up_ms={} gap_us={} max_gap_us={} print_us={} dirtied={} ledger_pages={pages} \
         ledger_verified={} fill_verified={} blocks_written={written} blocks_verified={verified} \
         faults={} mono_ns={mono}",
        clock.us(tsc() - clock.start) / 1000,
        clock.us(gap),
        clock.us(gaps.largest),
        clock.us(print),
        sum(|cpu| &cpu.dirtied),
        sum(|cpu| &cpu.ledger_verified),
        sum(|cpu| &cpu.fill_verified),
        FAULTS.load(Ordering::Relaxed),
    ));
}
