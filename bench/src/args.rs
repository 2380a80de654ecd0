//! The options of `vmm bench` as the command line takes them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use control::units::ByteSize;

use super::disk_moves::DiskScenario;
use super::options::{BenchOptions, Format};
use super::qemu::QemuPath;
use super::scenario::Scenario;

/// Memory of the large guests of a quick run.
const QUICK_BYTES: u64 = 256 << 20;

/// Milliseconds for which requests of disks are counted in a quick run.
const QUICK_INTERVAL_MS: u64 = 200;

/// Measures migration and start on this host, next to QEMU and to what the host can do at most.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Runs of each measurement, of which the median counts [default: 5, with --quick 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: Option<u32>,
    /// Data in the memory of the large guests [default: 1GiB, with --quick 256MiB].
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// Connections of this engine and of the plain copy, 1 to 16 [default: what the engine chooses].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub streams: Option<u8>,
    /// What to measure, as often as needed [default: all].
    #[arg(long, value_enum, value_name = "WHAT")]
    pub scenario: Vec<ScenarioArg>,
    /// A QEMU to compare with, beside those found in PATH and by tests/setup.sh.
    #[arg(long, value_name = "PATH[,share=DIR]")]
    pub qemu: Vec<QemuPath>,
    /// Where images of disks lie, for the time of the run: a folder on a real file system [default: the folder of
    /// temporary files].
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// Measure without QEMU.
    #[arg(long, conflicts_with = "qemu")]
    pub no_qemu: bool,
    /// Record the figures in this Markdown page, and pictures of them beside it.
    #[arg(long, value_name = "FILE")]
    pub page: Option<PathBuf>,
    /// The vmm to measure [default: the one beside this program].
    // `vmm bench` names itself first, and its user may name another.
    #[arg(long, value_name = "FILE", overrides_with = "vmm")]
    pub vmm: Option<PathBuf>,
    /// A short run on less memory: says whether it works, and little of how fast.
    #[arg(long)]
    pub quick: bool,
}

/// What `--scenario` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScenarioArg {
    /// A spinning guest with random memory
    Idle,
    /// The same, a quarter of its memory dirtied all the time
    Dirty,
    /// A small working set dirtied all the time, over a slow link
    Slow,
    /// A large guest that touched little of its memory
    Zero,
    /// A small guest with two vCPUs
    Cpus,
    /// Starting a guest, and the memory of the VMM
    Start,
    /// Random requests of a guest's disk
    DiskIops,
    /// CPU time that tracking the changes of a disk takes
    DiskTracking,
    /// A guest that moves with a disk
    DiskMove,
    /// What one and four disks add to the downtime
    DiskDowntime,
    /// A disk that moves on its host
    DiskLocal,
    /// A guest that moves with a disk that it writes to fast
    DiskBusy,
    /// A guest that goes before its disk, which is fetched
    DiskOnDemand,
}

impl From<ScenarioArg> for Scenario {
    fn from(arg: ScenarioArg) -> Self {
        match arg {
            ScenarioArg::Idle => Self::Idle,
            ScenarioArg::Dirty => Self::Dirty,
            ScenarioArg::Slow => Self::Slow,
            ScenarioArg::Zero => Self::Zero,
            ScenarioArg::Cpus => Self::Cpus,
            ScenarioArg::Start => Self::Start,
            ScenarioArg::DiskIops => Self::DiskIops,
            ScenarioArg::DiskTracking => Self::DiskTracking,
            ScenarioArg::DiskMove => Self::DiskMoves(DiskScenario::Move),
            ScenarioArg::DiskDowntime => Self::DiskMoves(DiskScenario::Downtime),
            ScenarioArg::DiskLocal => Self::DiskMoves(DiskScenario::Local),
            ScenarioArg::DiskBusy => Self::DiskMoves(DiskScenario::Busy),
            ScenarioArg::DiskOnDemand => Self::DiskMoves(DiskScenario::OnDemand),
        }
    }
}

impl BenchArgs {
    /// What is to be measured, printed as `format`.
    pub fn into_options(self, format: Format) -> BenchOptions {
        let Self {
            runs,
            memory,
            streams,
            scenario,
            qemu,
            images,
            no_qemu,
            page,
            vmm,
            quick,
        } = self;
        let default = BenchOptions::default();
        let (usual_runs, usual_bytes, interval_ms) = if quick {
            (1, QUICK_BYTES, QUICK_INTERVAL_MS)
        } else {
            (default.runs, default.memory_bytes, default.interval_ms)
        };
        let scenarios = if scenario.is_empty() {
            default.scenarios
        } else {
            let mut wanted: Vec<Scenario> = Vec::new();
            for scenario in scenario.into_iter().map(Scenario::from) {
                if !wanted.contains(&scenario) {
                    wanted.push(scenario);
                }
            }
            wanted
        };
        BenchOptions {
            runs: runs.unwrap_or(usual_runs),
            memory_bytes: memory.map_or(usual_bytes, |size| size.0),
            streams,
            interval_ms,
            format,
            scenarios,
            qemu: (!no_qemu).then_some(qemu),
            images,
            page,
            program: vmm,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn parse(line: &str) -> Result<BenchOptions, clap::Error> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        let command = Command::try_parse_from(words)?;
        Ok(command.args.into_options(Format::Table))
    }

    #[test]
    fn options_become_what_is_measured() {
        assert_eq!(parse("").unwrap(), BenchOptions::default());
        let line = "--runs 3 --memory 256MiB --streams 2 --scenario zero --scenario idle \
                    --scenario zero --scenario disk-move --images i --qemu /q,share=/s --page p.md --vmm here/vmm --vmm old/vmm";
        let qemu = "/q,share=/s".parse().unwrap();
        assert_eq!(
            parse(line).unwrap(),
            BenchOptions {
                runs: 3,
                memory_bytes: 256 << 20,
                streams: Some(2),
                interval_ms: 1000,
                format: Format::Table,
                scenarios: vec![
                    Scenario::Zero,
                    Scenario::Idle,
                    Scenario::DiskMoves(DiskScenario::Move)
                ],
                qemu: Some(vec![qemu]),
                images: Some("i".into()),
                page: Some("p.md".into()),
                program: Some("old/vmm".into()),
            }
        );
        let quick = parse("--quick --no-qemu").unwrap();
        assert_eq!(
            (
                quick.runs,
                quick.memory_bytes,
                quick.interval_ms,
                quick.qemu
            ),
            (1, QUICK_BYTES, QUICK_INTERVAL_MS, None)
        );
        assert_eq!(parse("--quick --runs 2").unwrap().runs, 2);
        for wrong in [
            "--runs 0",
            "--streams 17",
            "--memory 1QiB",
            "--scenario all",
            "--qemu /q --no-qemu",
            "--qemu ,share=/s",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
