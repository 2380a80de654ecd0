//! A guest that goes before its disk does, and how long that takes to come after it.

use std::process::Stdio;
use std::time::{Duration, Instant};

use control::api::client::Client;
use control::runtime_dir::RuntimeDir;
use machine::serving::Records;
use rustix::process::{Pid, Signal, kill_process};

use super::super::disks::MovingDisk;
use super::super::engine::{self, DiskCache};
use super::super::error::BenchError;
use super::super::hosts::Hosts;
use super::super::interrupt;
use super::super::terms::Terms;
use super::super::watch::Watch;
use super::plan::DiskPlan;
use super::turn::{DiskTurn, rate};

/// The guest's name.
const VM: &str = "first";
/// How often it is looked whether the disk is whole; a thousandth of the time that one takes here.
const LOOK: Duration = Duration::from_millis(20);
/// How long a process takes to end that was killed.
const END: Duration = Duration::from_secs(5);

/// Starts a guest, moves it, and waits until its disk is whole there.
pub(super) fn turn(
    hosts: &Hosts,
    plan: &DiskPlan,
    terms: &Terms<'_>,
) -> Result<DiskTurn, BenchError> {
    let link = terms.link;
    let _served = Served(&hosts.source.runtime);
    let cache = DiskCache::Host;
    let mut guest =
        link.at_source(|| engine::start(hosts, VM, &plan.workload, terms.disks, cache))?;
    let (mut arrived, to) =
        link.at_destination(|| engine::receive(hosts, VM, terms, None, cache))?;
    terms.disks.iter().try_for_each(MovingDisk::cool)?;
    guest.forget_gaps()?;
    let watch = Watch::begin(&mut guest, link, false)?;
    let mut arguments = vec!["migrate", VM, "--to", &to, "--disks", "on-demand"];
    if link.leaves_this_host() {
        arguments.push("--insecure");
    }
    let began = Instant::now();
    let mut command = link.at_source(|| hosts.start(&hosts.source, &arguments, Stdio::null()))?;
    let arrival = arrived.wait_arrived()?;
    let client = Client::new(&hosts.destination.runtime, VM);
    let until = began + terms.patience;
    engine::block_on(async {
        loop {
            interrupt::check()?;
            let status = client.status().await?;
            if status.disks.iter().all(|disk| disk.missing.is_none()) {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(BenchError::NotConverged(terms.patience.as_secs()));
            }
            tokio::time::sleep(LOOK).await;
        }
    })?;
    let total_ms = began.elapsed().as_secs_f64() * 1000.0;
    let beside = watch.end(&guest, &mut arrived, link)?;
    command.wait_ended(terms.patience)?;
    if !command.status()?.success() {
        return Err(command.ended());
    }
    Ok(DiskTurn {
        total_ms,
        runs_ms: Some((arrival.first_tick_at - began).as_secs_f64() * 1000.0),
        guest_gap_ms: Some(arrived.largest_gap_ms()?),
        bulk_bytes_per_s: rate(plan.data_bytes, total_ms),
        wire_bytes: beside.carried_bytes.map(|bytes| bytes as f64),
        beside,
        ..DiskTurn::default()
    })
}

/// Those who serve disks on a host, which end with this.
struct Served<'a>(&'a RuntimeDir);

impl Drop for Served<'_> {
    fn drop(&mut self) {
        let Ok(records) = self.0.serving().map(Records::at) else {
            return;
        };
        let pids = || {
            let listed = records.list().unwrap_or_default().into_iter();
            listed.filter_map(|listed| Pid::from_raw(i32::try_from(listed.pid?).ok()?))
        };
        for pid in pids() {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
        // Who comes next wants the image.
        let until = Instant::now() + END;
        while pids().next().is_some() && Instant::now() < until {
            std::thread::sleep(LOOK);
        }
    }
}
