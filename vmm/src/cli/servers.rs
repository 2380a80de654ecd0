//! Processes that serve the disks of a guest which goes before their content does: started before the move, told what became of
//! it, and left to themselves when it has gone.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use control::disk_move::ImageFormat;
use control::exit::local;
use control::instance::{DiskStatus, VmStatus};
use control::output::Output;
use control::runtime_dir::RuntimeDir;
use machine::serving::{self, Progress, Records};
use migration::MigrationId;
use migration::address::Address;
use migration::disk_modes::{self, DiskMode, DiskPull};
use migration::endpoint::Endpoint;
use migration::observation::Observation;
use migration::progress::Event;
use migration::request::{MigrateRequest, ServedDisk};
use migration::source_loss::OnSourceLoss;
use migration::vm::Served;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use super::disk::serve_later::STAYS;

/// Bytes of what one says of itself at most.
const LONGEST: u64 = 64 << 10;
/// How long one may take to end that is not needed.
const END: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);

/// What one says of itself.
#[derive(Debug, Deserialize)]
struct Told {
    listen: String,
    record: PathBuf,
}

/// One of them.
struct Server {
    disk: DiskStatus,
    child: Child,
    /// By which it hears what became of the move.
    word: Option<ChildStdin>,
    told: Told,
}

/// Those of one move.
pub(super) struct Servers(Vec<Server>);

fn failed(disk: &DiskStatus, what: &str) -> Observation {
    let message = format!(
        "nobody can serve disk {} when its guest has gone: {what}",
        disk.id
    );
    local("serve.failed", message)
}

impl Servers {
    /// Of a move that needs none.
    pub(super) fn none() -> Self {
        Self(Vec::new())
    }

    /// Starts one for each disk of the VM, whose status this is, that moves on demand as `request` says, or may, at `serve_at` or where the
    /// destination reaches this host; and says so in the request.
    ///
    /// # Errors
    /// When one cannot be started; none is left then.
    pub(super) fn start(
        request: &mut MigrateRequest,
        status: &VmStatus,
        serve_at: Option<&str>,
        runtime: &RuntimeDir,
    ) -> Result<Self, Observation> {
        let mut servers = Self::none();
        let all = status.disks.iter().map(|disk| disk.id.as_str());
        let modes = disk_modes::modes(&request.disks, all)?;
        let later = modes
            .iter()
            .filter(|(_, mode)| request.may_go_on_demand(*mode));
        let later = later.filter_map(|(id, mode)| {
            let disk = status.disks.iter().find(|disk| disk.id == *id)?;
            // One that is only read goes with its guest; where that is not wanted, the VM says so.
            (*mode == DiskMode::OnDemand || !disk.read_only).then_some(disk)
        });
        let later: Vec<_> = later.collect();
        if request.plan || later.is_empty() {
            return Ok(servers);
        }
        if is_under_way(status) {
            return Err(local(
                "migration.active",
                "a migration of this VM is already running",
            ));
        }
        let records = Records::at(runtime.serving()?);
        for disk in later {
            end_left_over(disk, &records)?;
            let served = listens_at(request, serve_at, runtime)
                .and_then(|listen| Server::start(disk, &listen, request, status))
                .and_then(|server| {
                    let served = server.served();
                    servers.0.push(server);
                    served
                });
            match served {
                Ok(served) => request.served.push(served),
                Err(why) => {
                    servers.are_not_needed();
                    return Err(why);
                }
            }
        }
        Ok(servers)
    }

    /// Tells who they are.
    pub(super) fn tell(&self, output: Output) {
        for server in &self.0 {
            output.object(&serde_json::json!({
                "event": "serves",
                "disk": server.disk.id,
                "listen": server.told.listen,
                "pid": server.child.id(),
                "record": server.told.record,
            }));
        }
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Why the guest cannot go any more, if one has ended.
    pub(super) fn lost(&mut self) -> Option<Observation> {
        self.0.iter_mut().find_map(|server| {
            let end = server.child.try_wait().ok()??;
            let what = format!("the process that was to has ended ({end})");
            Some(failed(&server.disk, &what))
        })
    }

    /// The guest stays: they end, and leave nothing.
    pub(super) fn are_not_needed(self) {
        for server in self.0 {
            server.end();
        }
    }

    /// The guest has gone, or may have: they serve their images, and do not need this process any more.
    pub(super) fn go_on(&mut self, output: Output) {
        for Server {
            disk, child, told, ..
        } in &mut self.0
        {
            let pid = child.id();
            let serves = match child.try_wait() {
                Ok(None) => format!("process {pid} serves disk {}", disk.id),
                Ok(Some(_)) | Err(_) => format!("nobody serves disk {} any more", disk.id),
            };
            let format = match disk.format {
                ImageFormat::Raw => "raw",
                ImageFormat::Qcow2 => "qcow2",
            };
            output.line(format!(
                "{serves} at {} until it is whole there; if that ends before: vmm disk serve {} --listen {} --id {} --format \
                 {format}",
                told.listen, disk.path, told.listen, disk.id
            ));
        }
    }
}

/// Whether a migration of the VM runs.
fn is_under_way(status: &VmStatus) -> bool {
    let Some(migration) = &status.migration else {
        return false;
    };
    !matches!(
        migration.last,
        Some(Event::Completed(_) | Event::Failed(_) | Event::Cancelled(_))
    )
}

/// Ends who waits to serve `disk` since an earlier attempt whose command was killed, and which has come to nothing.
fn end_left_over(disk: &DiskStatus, records: &Records) -> Result<(), Observation> {
    let waits = || {
        let listed = records.list().map_err(|e| e.observe())?;
        let mut of_disk = listed.into_iter();
        let found = of_disk.find(|listed| {
            listed.record.progress == Progress::Awaiting
                && listed.record.image == Path::new(&disk.path)
        });
        Ok::<_, Observation>(found.and_then(|listed| listed.pid))
    };
    let Some(pid) = waits()? else {
        return Ok(());
    };
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let Some(process) = process {
        // It may end by itself meanwhile.
        let _ = kill_process(process, Signal::TERM);
    }
    let deadline = Instant::now() + END;
    while waits()? == Some(pid) {
        if Instant::now() > deadline {
            let what = format!("process {pid}, of an earlier attempt, does not end");
            return Err(failed(disk, &what));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

impl Server {
    fn start(
        disk: &DiskStatus,
        listen: &str,
        request: &MigrateRequest,
        status: &VmStatus,
    ) -> Result<Self, Observation> {
        let program = std::env::current_exe().map_err(|e| failed(disk, &e.to_string()))?;
        let format = match disk.format {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
        };
        let client = format!("{}@{}", status.name, request.to);
        let rate = request.bandwidth.to_string();
        let mut command = Command::new(program);
        command
            .args(["disk", "serve", &disk.path, "--when-guest-has-gone"])
            .args(["--json", "--listen", listen, "--id", &disk.id])
            .args(["--format", format, "--for", &client, "--bandwidth", &rate])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| failed(disk, &e.to_string()))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            // Its end says as much as a line that is none.
            let _ = BufReader::new(stdout.take(LONGEST)).read_line(&mut line);
        }
        if let Ok(told) = serde_json::from_str(&line) {
            return Ok(Self {
                disk: disk.clone(),
                word: child.stdin.take(),
                child,
                told,
            });
        }
        let mut why = String::new();
        drop(child.stdin.take());
        if let Some(stderr) = child.stderr.take() {
            let _ = stderr.take(LONGEST).read_to_string(&mut why);
        }
        let _ = child.wait();
        Err(failed(disk, why.trim()))
    }

    /// What the destination is to know of it.
    fn served(&self) -> Result<ServedDisk, Observation> {
        let record = serving::given(&self.told.record).map_err(|e| e.observe())?;
        let id: Option<MigrationId> = record.id();
        id.ok_or_else(|| failed(&self.disk, "its record names no identifier"))?;
        Ok(ServedDisk {
            disk: self.disk.id.clone(),
            by: Served {
                at: self.told.listen.clone(),
                id: record.migration,
                secret: record.secret,
                pull: DiskPull::default(),
                on_source_loss: OnSourceLoss::default(),
            },
        })
    }

    fn end(mut self) {
        if let Some(mut word) = self.word.take() {
            // It may have ended by itself.
            let _ = word.write_all(&[STAYS]);
        }
        let deadline = Instant::now() + END;
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(LOOK);
        }
        // Of one that was killed.
        for left in [&self.told.record, &self.told.record.with_extension("lock")] {
            let _ = fs::remove_file(left);
        }
    }
}

/// Where the next of them is to listen: as it was told, or where the destination reaches this host.
fn listens_at(
    request: &MigrateRequest,
    serve_at: Option<&str>,
    runtime: &RuntimeDir,
) -> Result<String, Observation> {
    if let Some(told) = serve_at {
        return Ok(super::names::from_anywhere(told).into_owned());
    }
    let wrong = |what: String| local("usage.address", what);
    let address: Address = request
        .to
        .parse()
        .map_err(|e: migration::address::AddressError| wrong(e.to_string()))?;
    if let Address::Unix(_) = address {
        let name = MigrationId::random().map_err(|e| wrong(e.to_string()))?;
        let socket = format!("{}.s", &name.to_string()[..8]);
        return Ok(format!(
            "unix:{}",
            runtime.serving()?.join(socket).display()
        ));
    }
    let endpoint = Endpoint::resolved(address, request.addresses.clone());
    let endpoint = endpoint.map_err(|e| wrong(format!("{}: {e}", request.to)))?;
    let reached = endpoint.sockets().iter().find_map(|there| towards(*there));
    let here = reached.ok_or_else(|| {
        wrong(format!(
            "it cannot be told where {} reaches this host: say where its disks are served, by --serve-at",
            request.to
        ))
    })?;
    Ok(SocketAddr::new(here, 0).to_string())
}

/// The address of this host that whoever is `there` sees.
fn towards(there: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = match there {
        SocketAddr::V4(_) => ([0; 4], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    // Sends nothing.
    socket.connect(there).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_on_this_host_reaches_it_where_it_is_itself() {
        for there in ["127.0.0.1:7", "127.0.0.3:7"] {
            let ip = towards(there.parse().unwrap()).unwrap();
            assert!(ip.is_loopback(), "{there}: {ip}");
        }
    }
}
