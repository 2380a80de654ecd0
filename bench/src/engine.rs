//! One timed migration by this engine, driven over the control socket of the source.

use std::process::Stdio;
use std::time::{Duration, Instant};

use control::api::client::Client;
use control::runtime_dir::Log;
use control::units::{ByteSize, Rate, Span};
use migration::disk_modes::{DiskChoice, DiskMode};
use migration::observation::Observation;
use migration::progress::{Event, Report};
use migration::request::MigrateRequest;
use tokio::time::sleep;

use super::cpu::CpuWindow;
use super::disks::MovingDisk;
use super::error::BenchError;
use super::guest::{ANSWER, Guest, Workload};
use super::hosts::{Host, Hosts};
use super::mapping::Pages;
use super::moved::{EngineParts, Move};
use super::process::{POLL, Running};
use super::terms::Terms;
use super::watch::Watch;
use super::{interrupt, mapping};

/// How often the CPU time of the source's vCPUs is noted; they end with their process.
const VCPU_SAMPLE: Duration = Duration::from_millis(10);
/// Longest that the source may take to end once its guest is gone.
const SOURCE_END: Duration = Duration::from_secs(30);
/// Longest that a destination may take to have its reserve ready.
const RESERVE: Duration = Duration::from_secs(120);
/// How the names of vCPU threads begin.
const VCPU_THREADS: &str = "vcpu";
/// How pages that carry data are called in a report.
const WITH_DATA: &str = "raw";

/// How this engine is asked to move a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    /// Connections; `None` is what it chooses.
    pub streams: Option<u8>,
    /// Populated memory is what the destination reserved beforehand.
    pub pages: Pages,
    /// How both hosts reach the images of disks.
    pub cache: DiskCache,
}

/// How the requests of a disk reach its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DiskCache {
    /// Through the host's page cache, as without an option.
    Host,
    /// Past it.
    None,
}

impl DiskCache {
    /// What `--disk` takes for it.
    pub fn option(self) -> &'static str {
        match self {
            Self::Host => "",
            Self::None => ",cache=none",
        }
    }
}

/// Starts a guest on the source host and waits until it has filled its memory and spins.
pub(super) fn start(
    hosts: &Hosts,
    name: &'static str,
    workload: &Workload,
    disks: &[MovingDisk],
    cache: DiskCache,
) -> Result<Guest, BenchError> {
    let memory = ByteSize(workload.memory_bytes).to_string();
    let cpus = workload.cpus.to_string();
    let command_line = workload.command_line(disks);
    let images: Vec<_> = disks
        .iter()
        .map(|MovingDisk { id, source, .. }| {
            format!("{},id={id}{}", source.display(), cache.option())
        })
        .collect();
    let mut arguments = vec![
        "run",
        name,
        "--memory",
        &memory,
        "--cpus",
        &cpus,
        "--cmdline",
        &command_line,
    ];
    for image in &images {
        arguments.extend(["--disk", image]);
    }
    if !disks.is_empty() {
        // A turn before has moved the guest that used them.
        arguments.push("--use-stale");
    }
    forget(&hosts.source, name);
    let process = hosts.start(&hosts.source, &arguments, Stdio::null())?;
    let mut guest = guest_of(&hosts.source, name, process);
    guest.wait_ready(workload)?;
    Ok(guest)
}

/// Removes what is left of the VM before, whose console would be taken for that of the next.
fn forget(host: &Host, name: &str) {
    // There may be none.
    let _ = host.runtime.forget(name);
}

fn guest_of(host: &Host, name: &'static str, process: Running) -> Guest {
    let runtime = host.runtime.clone();
    let console = Box::new(move || runtime.connect_console(name));
    Guest::new(
        process,
        name,
        host.runtime.log_path(name, Log::Console),
        console,
    )
}

/// Has the destination host wait for a guest; the guest and the address that it waits at.
pub(super) fn receive(
    hosts: &Hosts,
    name: &'static str,
    terms: &Terms<'_>,
    reserve: Option<u64>,
    cache: DiskCache,
) -> Result<(Guest, String), BenchError> {
    forget(&hosts.destination, name);
    let listen = format!("{}:0", terms.link.destination_address());
    let images: Vec<_> = terms
        .disks
        .iter()
        .map(
            |MovingDisk {
                 id, destination, ..
             }| {
                let path = destination.display();
                format!("{id}={path},create{}", cache.option())
            },
        )
        .collect();
    let mut arguments = vec!["receive", "--listen", &listen, "--name", name];
    for image in &images {
        arguments.extend(["--disk", image]);
    }
    let size = reserve.map(|bytes| ByteSize(bytes).to_string());
    if let Some(size) = &size {
        arguments.extend(["--reserve", size]);
    }
    let host = &hosts.destination;
    let mut process = hosts.start(host, &arguments, Stdio::null())?;
    let client = Client::new(&host.runtime, name);
    let deadline = Instant::now() + ANSWER;
    let address = block_on(async {
        loop {
            process.check()?;
            // It has no control socket yet, or does not listen yet.
            if let Some(address) = client.status().await.ok().and_then(|vm| vm.listen) {
                return Ok(address);
            }
            if Instant::now() >= deadline {
                return Err(process.deadline("an address to listen at", ANSWER));
            }
            sleep(POLL).await;
        }
    })?;
    let has_reserve = |process: &Running| match reserve {
        Some(bytes) => Ok::<_, BenchError>(process.proc().ram_bytes()? >= bytes),
        None => Ok(true),
    };
    let deadline = Instant::now() + RESERVE;
    while !has_reserve(&process)? {
        process.check()?;
        if Instant::now() >= deadline {
            return Err(process.deadline("the memory that it reserves", RESERVE));
        }
        std::thread::sleep(POLL);
    }
    Ok((guest_of(host, name, process), address))
}

/// Starts a guest, migrates it, and measures that.
pub(super) fn run(
    hosts: &Hosts,
    workload: &Workload,
    terms: &Terms<'_>,
    asked: Asked,
) -> Result<Move, BenchError> {
    let name = "moved";
    let Asked {
        streams,
        pages,
        cache,
    } = asked;
    let reserve = match pages {
        Pages::Cold => None,
        Pages::Populated => Some(workload.memory_bytes),
    };
    let mut guest = terms
        .link
        .at_source(|| start(hosts, name, workload, terms.disks, cache))?;
    let preparing = Instant::now();
    let (mut arrived, to) = terms
        .link
        .at_destination(|| receive(hosts, name, terms, reserve, cache))?;
    let prepare_ms = preparing.elapsed().as_secs_f64() * 1000.0;
    let source_ram_bytes = guest.process.proc().ram_bytes()?;
    terms.disks.iter().try_for_each(MovingDisk::cool)?;
    mapping::warm(terms.warmth)?;
    let before = guest.forget_gaps()?;
    let source = guest.process.proc();
    let vcpus = source.threads_named(VCPU_THREADS)?;
    let mut source_cpu = CpuWindow::open(source, vcpus)?;
    let destination = arrived.process.proc();
    let mut destination_cpu = CpuWindow::open(destination.clone(), Vec::new())?;

    let request = MigrateRequest {
        downtime_limit: Span(Duration::from_millis(terms.downtime_limit_ms)),
        bandwidth: Rate(terms.link.own_limit()),
        streams,
        insecure: terms.link.leaves_this_host(),
        disks: terms.disks.iter().map(copied).collect(),
        ..MigrateRequest::new(to)
    };
    let client = Client::new(&hosts.source.runtime, name);
    let watch = Watch::begin(&mut guest, terms.link, !terms.disks.is_empty())?;
    let began = Instant::now();
    let report = block_on(follow(&client, &request, terms, &mut source_cpu))?;
    let total_ms = began.elapsed().as_secs_f64() * 1000.0;
    let destination_ram_bytes = destination.ram_bytes()?;
    let arrival = arrived.wait_arrived()?;
    let beside = watch.end(&guest, &mut arrived, terms.link)?;
    guest.process.wait_ended(SOURCE_END)?;
    destination_cpu.add_vcpus(destination.threads_named(VCPU_THREADS)?);
    Ok(Move {
        prepare_ms,
        total_ms,
        first_tick_ms: (arrival.first_tick_at - began).as_secs_f64() * 1000.0,
        source_cpu_s: source_cpu.close()?,
        destination_cpu_s: destination_cpu.close()?,
        guest_gap_ms: arrived.largest_gap_ms()?,
        wire_bytes: report.wire_bytes,
        dirtied_pages_per_s: arrival.dirtied_pages_per_s(&before),
        beside,
        engine: Some(parts(
            &report,
            destination_ram_bytes.saturating_sub(source_ram_bytes),
        )?),
    })
}

/// Asks for the migration and waits for its report.
async fn follow(
    client: &Client,
    request: &MigrateRequest,
    terms: &Terms<'_>,
    source_cpu: &mut CpuWindow,
) -> Result<Report, BenchError> {
    let deadline = Instant::now() + terms.patience;
    let mut events = client.migrate_and_follow(request).await?;
    loop {
        tokio::select! {
            event = events.next() => match event? {
                Some(Event::Completed(report)) => return Ok(report),
                Some(Event::Failed(report) | Event::Cancelled(report)) => {
                    return Err(BenchError::Migration {
                        status: report.status,
                        explanation: report.error.map(|e| e.to_string()).unwrap_or_default(),
                    });
                }
                Some(_) => {}
                None => return Err(BenchError::Migration {
                    status: "unknown".to_owned(),
                    explanation: "its events ended without a report".to_owned(),
                }),
            },
            () = sleep(VCPU_SAMPLE) => {
                source_cpu.note_vcpus();
                interrupt::check()?;
                if Instant::now() >= deadline {
                    return Err(BenchError::NotConverged(terms.patience.as_secs()));
                }
            }
        }
    }
}

fn parts(report: &Report, extra_allocated_bytes: u64) -> Result<EngineParts, BenchError> {
    let told = |part: Option<f64>| {
        part.ok_or_else(|| BenchError::Output {
            command: "migrate".to_owned(),
            wanted: "the downtime by part",
        })
    };
    let data_bytes = report
        .encodings
        .get(WITH_DATA)
        .map_or(0, |count| count.bytes);
    Ok(EngineParts {
        setup_ms: report.setup_ms,
        downtime_ms: told(report.downtime_ms)?,
        stop_ms: told(report.downtime.stop)?,
        state_save_ms: told(report.downtime.state_save)?,
        state_load_ms: report.downtime.state_load,
        overhead_wire_bytes: report.wire_bytes.saturating_sub(data_bytes),
        extra_allocated_bytes,
        disk_bytes: report.disks.as_ref().map_or(0, |disks| disks.bytes),
    })
}

fn copied(disk: &MovingDisk) -> DiskChoice {
    DiskChoice::new(Some(disk.id.clone()), DiskMode::Precopy)
}

pub(super) fn block_on<T>(
    future: impl Future<Output = Result<T, BenchError>>,
) -> Result<T, BenchError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(BenchError::EventLoop)?
        .block_on(future)
}

impl From<Observation> for BenchError {
    fn from(observation: Observation) -> Self {
        Self::Api(observation)
    }
}

#[cfg(test)]
mod tests {
    use migration::id::MigrationId;
    use migration::progress::EncodingCount;
    use migration::vm::RunState;

    use super::*;

    #[test]
    fn what_is_no_page_contents_counts_as_overhead() {
        let mut report = Report::at_source(MigrationId::random().unwrap(), RunState::Running);
        report.wire_bytes = (64 << 20) + 5000;
        let data = EncodingCount {
            pages: 16384,
            bytes: 64 << 20,
        };
        report.encodings.insert(WITH_DATA.to_owned(), data);
        let told = parts(&report, 0).unwrap();
        assert_eq!(told.overhead_wire_bytes, 5000);
        report.downtime_ms = None;
        assert!(parts(&report, 0).is_err());
    }
}
