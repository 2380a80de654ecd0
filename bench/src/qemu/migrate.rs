//! One timed migration by QEMU.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use machine::probe::PROBE_GUEST;
use serde_json::{Value, json};

use super::super::cpu::CpuWindow;
use super::super::error::BenchError;
use super::super::guest::{Guest, Workload};
use super::super::hosts::Hosts;
use super::super::mapping;
use super::super::moved::Move;
use super::super::terms::Terms;
use super::program::Qemu;
use super::qmp::Qmp;
use super::variant::{Memory, Variant};

/// More than any link carries: no limit.
const UNLIMITED: u64 = 1 << 44;
/// Longest that the source may take to end once it was told to.
const SOURCE_END: Duration = Duration::from_secs(30);
/// The file of the guest in the folder of the benchmark.
const KERNEL: &str = "probe.elf";

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
    let start = |waits| Machine::start(hosts, qemu, workload, variant, &kernel, waits);
    let mut source = terms.link.at_source(|| start(false))?;
    source.guest.wait_ready(workload)?;
    let asked = Instant::now();
    let mut destination = terms.link.at_destination(|| start(true))?;
    let limit = variant.downtime_limit_ms.unwrap_or(terms.downtime_limit_ms);
    for machine in [&mut source, &mut destination] {
        machine.set_up(variant, limit, terms.link.own_limit())?;
    }
    let to = destination.listen(terms.link.destination_address())?;
    let prepare_ms = asked.elapsed().as_secs_f64() * 1000.0;
    mapping::warm(terms.warmth)?;
    let before = source.guest.forget_gaps()?;
    let open =
        |machine: &Machine| CpuWindow::open(machine.guest.process.proc(), machine.vcpus.clone());
    let (mut source_cpu, destination_cpu) = (open(&source)?, open(&destination)?);

    let began = Instant::now();
    source.qmp.execute("migrate", json!({ "uri": to }))?;
    let done = source.completed(began + terms.patience, terms)?;
    let runs = destination.runs(began + terms.patience, terms)?;
    let arrival = destination.guest.wait_arrived()?;
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
        engine: None,
    })
}

impl Machine {
    fn start(
        hosts: &Hosts,
        qemu: &Qemu,
        workload: &Workload,
        variant: Variant,
        kernel: &Path,
        waits: bool,
    ) -> Result<Self, BenchError> {
        let (monitor, log) = (hosts.path("qmp"), hosts.path("log"));
        let serial = hosts.path("serial");
        let mut command = qemu.command();
        command
            .args(arguments(workload, variant, waits))
            .arg("-kernel")
            .arg(kernel)
            .args(["-append", &workload.command_line()])
            .args(["-chardev"])
            .arg(format!(
                "socket,id=serial,server=on,wait=off,path={},logfile={}",
                escaped(&serial),
                escaped(&log)
            ))
            .args(["-serial", "chardev:serial", "-qmp"])
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
        bandwidth: Option<u64>,
    ) -> Result<(), BenchError> {
        let capability = |name| json!({ "capability": name, "state": true });
        let mut capabilities = vec![capability("events")];
        let mut parameters = json!({
            "max-bandwidth": bandwidth.unwrap_or(UNLIMITED),
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

    /// Waits until the source says that it completed; when it did.
    fn completed(&mut self, deadline: Instant, terms: &Terms<'_>) -> Result<Instant, BenchError> {
        let ended = self.qmp.wait_event(deadline, |event| {
            let ends = ["completed", "failed", "cancelled"];
            event
                .status
                .filter(|status| event.name == "MIGRATION" && ends.contains(status))
                .map(str::to_owned)
        })?;
        match ended {
            Some((when, status)) if status == "completed" => Ok(when),
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

/// The machine without its guest's image and its sockets.
fn arguments(workload: &Workload, variant: Variant, waits: bool) -> Vec<String> {
    let memory_mib = workload.memory_bytes >> 20;
    // Without ACPI tables the firmware starts the guest at once: the guest needs none.
    let machine = match variant.memory {
        Memory::Memfd | Memory::MemfdPopulated => "microvm,acpi=off,memory-backend=ram",
        Memory::Anonymous => "microvm,acpi=off",
    };
    let mut arguments = vec![
        "-nodefaults".to_owned(),
        "-no-user-config".to_owned(),
        "-display".to_owned(),
        "none".to_owned(),
        "-no-reboot".to_owned(),
        "-accel".to_owned(),
        "kvm".to_owned(),
        // The MSR behind it cannot be set on every KVM, and QEMU gives up where it cannot.
        "-cpu".to_owned(),
        "host,arch-capabilities=off".to_owned(),
        "-machine".to_owned(),
        machine.to_owned(),
        "-smp".to_owned(),
        workload.cpus.to_string(),
        "-m".to_owned(),
        format!("{memory_mib}M"),
    ];
    if variant.memory != Memory::Anonymous {
        let populate = if waits && variant.memory == Memory::MemfdPopulated {
            ",prealloc=on"
        } else {
            ""
        };
        arguments.push("-object".to_owned());
        arguments.push(format!(
            "memory-backend-memfd,id=ram,size={memory_mib}M,share=on{populate}"
        ));
    }
    if waits {
        arguments.extend(["-incoming".to_owned(), "defer".to_owned()]);
    }
    arguments
}

/// A path as part of an option: a comma is doubled.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_destination_waits_and_populates_its_memory() {
        let workload = Workload {
            cpus: 2,
            memory_bytes: 1088 << 20,
            random_bytes: 1 << 30,
            dirty_bytes: 0,
            dirty_pages_per_s: 0,
        };
        let words = |memory, waits| {
            let variant = Variant {
                memory,
                ..Variant::STANDARD[0]
            };
            arguments(&workload, variant, waits).join(" ")
        };
        let source = words(Memory::MemfdPopulated, false);
        assert!(!source.contains("prealloc") && !source.contains("-incoming"));
        let destination = words(Memory::MemfdPopulated, true);
        assert!(destination.contains("size=1088M,share=on,prealloc=on"));
        assert!(destination.ends_with("-incoming defer"));
        assert!(!words(Memory::Memfd, true).contains("prealloc"));
        assert!(!words(Memory::Anonymous, true).contains("memfd"));
    }

    #[test]
    fn a_comma_in_a_path_ends_no_option() {
        assert_eq!(escaped(Path::new("/tmp/a,b")), "/tmp/a,,b");
    }
}
