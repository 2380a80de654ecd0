//! One timed migration by QEMU.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use machine::probe::PROBE_GUEST;
use serde_json::{Value, json};

use super::super::cpu::CpuWindow;
use super::super::disks::MovingDisk;
use super::super::error::BenchError;
use super::super::guest::{Guest, Workload};
use super::super::hosts::Hosts;
use super::super::mapping;
use super::super::moved::Move;
use super::super::terms::Terms;
use super::super::watch::Watch;
use super::command_line::{KERNEL, arguments, escaped, guest};
use super::mirror;
use super::program::Qemu;
use super::qmp::Qmp;
use super::variant::Variant;

/// More than any link carries: no limit.
const UNLIMITED: u64 = 1 << 44;
/// Longest that the source may take to end once it was told to.
const SOURCE_END: Duration = Duration::from_secs(30);

/// A QEMU with a guest, or one that waits for a guest.
struct Machine {
    guest: Guest,
    qmp: Qmp,
    vcpus: Vec<u32>,
}

/// Starts a guest, migrates it, and measures that.
pub(crate) fn run(
    hosts: &Hosts,
    workload: &Workload,
    terms: &Terms<'_>,
    qemu: &Qemu,
    variant: Variant,
) -> Result<Move, BenchError> {
    let kernel = hosts.file(KERNEL, PROBE_GUEST)?;
    let disks = terms.disks;
    let start = |waits| {
        let guest = (workload, disks, kernel.as_path());
        Machine::start(hosts, qemu, guest, variant, waits)
    };
    let mut source = terms.link.at_source(|| start(false))?;
    source.guest.wait_ready(workload)?;
    for disk in disks {
        let new = File::create_new(&disk.destination).and_then(|new| new.set_len(disk.bytes));
        new.map_err(|e| BenchError::Disk(disk.destination.clone(), e))?;
    }
    let asked = Instant::now();
    let mut destination = terms.link.at_destination(|| start(true))?;
    let limit = variant.downtime_limit_ms.unwrap_or(terms.downtime_limit_ms);
    for machine in [&mut source, &mut destination] {
        machine.set_up(variant, limit, terms)?;
    }
    let to = destination.listen(terms.link.destination_address())?;
    let server = (terms.link.destination_address(), terms.link.free_port()?);
    if !disks.is_empty() {
        mirror::serve(&mut destination.qmp, disks, server)?;
    }
    let prepare_ms = asked.elapsed().as_secs_f64() * 1000.0;
    disks.iter().try_for_each(MovingDisk::cool)?;
    mapping::warm(terms.warmth)?;
    let before = source.guest.forget_gaps()?;
    let open =
        |machine: &Machine| CpuWindow::open(machine.guest.process.proc(), machine.vcpus.clone());
    let (mut source_cpu, destination_cpu) = (open(&source)?, open(&destination)?);

    let watch = Watch::begin(&mut source.guest, terms.link, !disks.is_empty())?;
    let began = Instant::now();
    let deadline = began + terms.patience;
    let late = || BenchError::NotConverged(terms.patience.as_secs());
    if !disks.is_empty()
        && !mirror::begin(&mut source.qmp, disks, variant.copy_mode, server, deadline)?
    {
        return Err(late());
    }
    source.qmp.execute("migrate", json!({ "uri": to }))?;
    if !disks.is_empty() {
        source.status(&["pre-switchover"], deadline, terms)?;
        if !mirror::finish(&mut source.qmp, disks, deadline)? {
            return Err(late());
        }
        let go_on = json!({ "state": "pre-switchover" });
        source.qmp.execute("migrate-continue", go_on)?;
    }
    let done = source.status(&["completed"], deadline, terms)?;
    if !disks.is_empty() {
        destination.qmp.execute("nbd-server-stop", json!({}))?;
        destination.qmp.execute("cont", json!({}))?;
    }
    let runs = destination.runs(deadline, terms)?;
    let arrival = destination.guest.wait_arrived()?;
    let beside = watch.end(&source.guest, &mut destination.guest, terms.link)?;
    source_cpu.note_vcpus();
    let wire_bytes = source.transferred()?;
    source.qmp.execute("quit", json!({}))?;
    source.guest.process.wait_ended(SOURCE_END)?;
    let ms = |when: Instant| when.saturating_duration_since(began).as_secs_f64() * 1000.0;
    Ok(Move {
        prepare_ms,
        total_ms: ms(done.max(runs)),
        first_tick_ms: ms(arrival.first_tick_at),
        source_cpu_s: source_cpu.close()?,
        destination_cpu_s: destination_cpu.close()?,
        guest_gap_ms: destination.guest.largest_gap_ms()?,
        wire_bytes,
        dirtied_pages_per_s: arrival.dirtied_pages_per_s(&before),
        beside,
        engine: None,
    })
}

impl Machine {
    fn start(
        hosts: &Hosts,
        qemu: &Qemu,
        (workload, disks, kernel): (&Workload, &[MovingDisk], &Path),
        variant: Variant,
        waits: bool,
    ) -> Result<Self, BenchError> {
        let (monitor, log) = (hosts.path("qmp"), hosts.path("log"));
        let serial = hosts.path("serial");
        let mut command = qemu.command();
        command
            .args(arguments(workload, variant, waits))
            .args(guest(kernel, &workload.command_line(disks), &serial, &log))
            .args(mirror::disks(disks, waits))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", escaped(&monitor)));
        let role = if waits { "destination" } else { "source" };
        let shown = format!("QEMU {} ({variant}), {role}", qemu.version);
        let mut process = hosts.run(command, shown, Stdio::null())?;
        let mut qmp = Qmp::connect(&mut process, &monitor)?;
        let vcpus = vcpu_threads(&mut qmp)?;
        let console = Box::new(move || UnixStream::connect(&serial));
        Ok(Self {
            guest: Guest::new(process, "moved by QEMU", log, console),
            qmp,
            vcpus,
        })
    }

    fn set_up(
        &mut self,
        variant: Variant,
        downtime_limit_ms: u64,
        terms: &Terms<'_>,
    ) -> Result<(), BenchError> {
        let capability = |name| json!({ "capability": name, "state": true });
        let mut capabilities = vec![capability("events")];
        if !terms.disks.is_empty() {
            // The mirrors end between the guest's last write and its first one there.
            capabilities.push(capability("pause-before-switchover"));
        }
        let mut parameters = json!({
            "max-bandwidth": terms.link.own_limit().unwrap_or(UNLIMITED),
            "downtime-limit": downtime_limit_ms,
        });
        if let Some(channels) = variant.channels {
            capabilities.push(capability("multifd"));
            parameters["multifd-channels"] = channels.into();
        }
        self.qmp.execute(
            "migrate-set-capabilities",
            json!({ "capabilities": capabilities }),
        )?;
        self.qmp
            .execute("migrate-set-parameters", parameters)
            .map(drop)
    }

    /// Has the destination listen; where.
    fn listen(&mut self, address: &str) -> Result<String, BenchError> {
        let uri = format!("tcp:{address}:0");
        self.qmp
            .execute("migrate-incoming", json!({ "uri": uri }))?;
        let answer = self.qmp.execute("query-migrate", json!({}))?;
        answer
            .pointer("/socket-address/0/port")
            .and_then(Value::as_str)
            .map(|port| format!("tcp:{address}:{port}"))
            .ok_or_else(|| self.qmp.unexpected("query-migrate", &answer))
    }

    /// Waits until the source says that its migration is one of `wanted`; when it did.
    fn status(
        &mut self,
        wanted: &[&str],
        deadline: Instant,
        terms: &Terms<'_>,
    ) -> Result<Instant, BenchError> {
        let ended = self.qmp.wait_event(deadline, |event| {
            let ends = ["completed", "failed", "cancelled"];
            event
                .status
                .filter(|_| event.name == "MIGRATION")
                .filter(|status| ends.contains(status) || wanted.contains(status))
                .map(str::to_owned)
        })?;
        match ended {
            Some((when, status)) if wanted.contains(&status.as_str()) => Ok(when),
            Some((_, status)) => {
                let answer = self.qmp.execute("query-migrate", json!({}))?;
                let why = answer.get("error-desc").and_then(Value::as_str);
                Err(BenchError::Migration {
                    status,
                    explanation: why.unwrap_or_default().to_owned(),
                })
            }
            None => Err(BenchError::NotConverged(terms.patience.as_secs())),
        }
    }

    /// Waits until the destination says that the guest runs; when it did.
    fn runs(&mut self, deadline: Instant, terms: &Terms<'_>) -> Result<Instant, BenchError> {
        let resumed = |event: &super::qmp::Event<'_>| (event.name == "RESUME").then_some(());
        let (when, ()) = self
            .qmp
            .wait_event(deadline, resumed)?
            .ok_or(BenchError::NotConverged(terms.patience.as_secs()))?;
        Ok(when)
    }

    /// Bytes that left the source.
    fn transferred(&mut self) -> Result<u64, BenchError> {
        let answer = self.qmp.execute("query-migrate", json!({}))?;
        answer
            .pointer("/ram/transferred")
            .and_then(Value::as_u64)
            .ok_or_else(|| self.qmp.unexpected("query-migrate", &answer))
    }
}

fn vcpu_threads(qmp: &mut Qmp) -> Result<Vec<u32>, BenchError> {
    let answer = qmp.execute("query-cpus-fast", json!({}))?;
    let ids = answer.as_array().map(|cpus| {
        cpus.iter()
            .filter_map(|cpu| u32::try_from(cpu.get("thread-id")?.as_u64()?).ok())
            .collect::<Vec<_>>()
    });
    ids.filter(|ids| !ids.is_empty())
        .ok_or_else(|| qmp.unexpected("query-cpus-fast", &answer))
}
