//! The plain copy: nbdcopy of the same image to nbdkit over the same link. It says how fast bytes of
//! one file get into another one through sockets here.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::super::disks::MovingDisk;
use super::super::engine::{self, DiskCache};
use super::super::error::BenchError;
use super::super::guest::{ANSWER, Workload};
use super::super::hosts::Hosts;
use super::super::process::{POLL, Running};
use super::super::terms::Terms;
use super::super::watch::Watch;
use super::super::{interrupt, mapping};
use super::turn::{DiskTurn, rate};

/// Connections: as many as its users are told to give it.
const CONNECTIONS: u32 = 4;

/// Both programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NbdCopy {
    copier: PathBuf,
    server: PathBuf,
}

impl NbdCopy {
    /// The installed ones, or which is missing.
    pub fn look() -> Result<Self, String> {
        Ok(Self {
            copier: find("nbdcopy", "libnbd-bin")?,
            server: find("nbdkit", "nbdkit")?,
        })
    }

    /// One timed copy of the first disk, with a guest beside it that spins as the moved one does.
    pub fn run(
        &self,
        hosts: &Hosts,
        workload: &Workload,
        terms: &Terms<'_>,
        data_bytes: u64,
    ) -> Result<DiskTurn, BenchError> {
        let disk = &terms.disks[0];
        let mut beside = engine::start(hosts, "spinner", workload, &[], DiskCache::Host)?;
        let new = File::create_new(&disk.destination).and_then(|new| new.set_len(disk.bytes));
        new.map_err(|e| BenchError::Disk(disk.destination.clone(), e))?;
        let port = terms.link.free_port()?;
        let server = terms
            .link
            .at_destination(|| self.serve(hosts, disk, port))?;
        disk.cool()?;
        mapping::warm(terms.warmth)?;
        beside.forget_gaps()?;
        let watch = Watch::begin(&mut beside, terms.link, false)?;
        let began = Instant::now();
        let mut copier = terms.link.at_source(|| self.copy(hosts, disk, port))?;
        let end = terms.patience;
        while !copier.has_ended()? {
            interrupt::check()?;
            if began.elapsed() >= end {
                return Err(copier.deadline("the end", end));
            }
            // Shorter than elsewhere: it is part of what is measured.
            std::thread::sleep(POLL / 5);
        }
        let total_ms = began.elapsed().as_secs_f64() * 1000.0;
        if !copier.status()?.success() {
            return Err(copier.ended());
        }
        let seen = watch.end_in_place(&mut beside, terms.link)?;
        drop(server);
        let wire = seen.carried_bytes.map(|carried| carried as f64);
        Ok(DiskTurn {
            total_ms,
            guest_gap_ms: Some(beside.largest_gap_ms()?),
            wire_bytes: wire,
            wire_to_data: wire.map(|wire| wire / data_bytes as f64),
            bulk_bytes_per_s: rate(data_bytes, total_ms),
            beside: seen,
            ..DiskTurn::default()
        })
    }

    /// Starts the server and waits until it can be connected to.
    fn serve(&self, hosts: &Hosts, disk: &MovingDisk, port: u16) -> Result<Running, BenchError> {
        let ready = hosts.path("pid");
        let mut command = Command::new(&self.server);
        command
            .args(["--foreground", "--ipaddr", "127.0.0.1", "--port"])
            .arg(port.to_string())
            .arg("--pidfile")
            .arg(&ready)
            .arg("file")
            .arg(&disk.destination);
        let mut server = hosts.run(command, "nbdkit file".to_owned(), Stdio::null())?;
        wait_for(&mut server, &ready, ANSWER)?;
        Ok(server)
    }

    fn copy(&self, hosts: &Hosts, disk: &MovingDisk, port: u16) -> Result<Running, BenchError> {
        let mut command = Command::new(&self.copier);
        command
            .arg(format!("--connections={CONNECTIONS}"))
            // Without it there are no more connections than processors.
            .arg(format!("--threads={CONNECTIONS}"))
            // As a migration, it sends no zeroes and ends with all of it on the disk.
            .args(["--destination-is-zero", "--flush"])
            .arg(&disk.source)
            .arg(format!("nbd://127.0.0.1:{port}"));
        hosts.run(command, "nbdcopy".to_owned(), Stdio::null())
    }
}

fn wait_for(server: &mut Running, ready: &Path, patience: Duration) -> Result<(), BenchError> {
    let deadline = Instant::now() + patience;
    while !ready.exists() {
        server.check()?;
        if Instant::now() >= deadline {
            return Err(server.deadline("a server", patience));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn find(program: &str, package: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|program| program.is_file())
        .ok_or_else(|| format!("no {program} in PATH (Debian's {package})"))
}
