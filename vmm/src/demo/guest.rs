//! What the probe guest says on its serial port.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use control::exit::local;
use control::runtime_dir::Log;
use machine::probe::{ProbeLine, Ready, Tick, probe_lines};
use migration::observation::Observation;

use super::hosts::Host;

/// How often its log is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// Looks between two questions whether the VM still lives.
const LOOKS_PER_QUESTION: u32 = 50;

/// The guest on one of the hosts.
pub(super) struct Guest<'a> {
    host: &'a Host,
    name: &'a str,
    log: PathBuf,
}

impl<'a> Guest<'a> {
    pub fn new(host: &'a Host, name: &'a str) -> Self {
        Self {
            host,
            name,
            log: host.runtime.log_path(name, Log::Console),
        }
    }

    /// Waits until `find` finds something in what the guest has printed on this host.
    async fn until<T>(
        &self,
        what: &str,
        limit: Duration,
        find: impl Fn(&[ProbeLine]) -> Option<T>,
    ) -> Result<T, Observation> {
        let deadline = Instant::now() + limit;
        for look in 1_u32.. {
            let text = self.text();
            let lines: Vec<_> = probe_lines(&text).collect();
            for line in &lines {
                if let ProbeLine::Fault(fault) = line {
                    return Err(local(
                        "demo.guest-fault",
                        format!(
                            "the guest found a fault: {} at {:#x}, expected {}, found {}",
                            fault.kind, fault.gpa, fault.expected, fault.found
                        ),
                    ));
                }
            }
            if let Some(found) = find(&lines) {
                return Ok(found);
            }
            if look.is_multiple_of(LOOKS_PER_QUESTION) {
                let status = self.host.client(self.name).status().await?;
                if let Some(why) = status.error {
                    return Err(why);
                }
            }
            if Instant::now() >= deadline {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(local(
            "demo.guest-silent",
            format!("the guest did not {what} within {limit:?}"),
        ))
    }

    /// Waits until its memory is filled.
    pub async fn ready(&self, limit: Duration) -> Result<Ready, Observation> {
        self.until("fill its memory", limit, |lines| {
            lines.iter().find_map(|line| match line {
                ProbeLine::Ready(ready) => Some(ready.clone()),
                _ => None,
            })
        })
        .await
    }

    /// Waits for this many more ticks.
    pub async fn ticks(&self, more: u64, limit: Duration) -> Result<Tick, Observation> {
        let before = ticks(&probe_lines(&self.text()).collect::<Vec<_>>())
            .last()
            .map_or(0, |t| t.n);
        self.until("tick", limit, |lines| {
            ticks(lines)
                .last()
                .copied()
                .filter(|tick| tick.n >= before + more)
        })
        .await
    }

    /// Waits until every page of the ledger, and so many blocks of its disk, were verified once more on this host.
    pub async fn verified_again(&self, blocks: u64, limit: Duration) -> Result<Tick, Observation> {
        self.until("verify its ledger and disk", limit, |lines| {
            let ticks = ticks(lines);
            let (first, last) = (ticks.first()?, ticks.last()?);
            let pages = last.ledger_verified.saturating_sub(first.ledger_verified);
            let of_disk = last.blocks_verified.saturating_sub(first.blocks_verified);
            let all = pages >= last.ledger_pages && of_disk >= blocks;
            (all && ticks.len() > 2).then_some(*last)
        })
        .await
    }

    /// Makes the guest forget the largest gap that it saw so far.
    pub fn forget_gap(&self) -> Result<(), Observation> {
        self.host
            .runtime
            .connect_console(self.name)
            .and_then(|mut console| console.write_all(b"g"))
            .map_err(|e| local("demo.console", format!("write to the guest's console: {e}")))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

fn ticks(lines: &[ProbeLine]) -> Vec<Tick> {
    lines
        .iter()
        .filter_map(|line| match line {
            ProbeLine::Tick(tick) => Some(*tick),
            _ => None,
        })
        .collect()
}
