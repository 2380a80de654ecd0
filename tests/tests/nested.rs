//! Stock distribution kernels on a real `kvm_amd`: boot under `vmm run` with their root on virtio-blk,
//! are migrated and migrated back while they write files, and lose nothing: no file, no register, no
//! timer, no time.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tests::nested::level1::{Level1, Run};
use tests::nested::level2::{self, Node};
use tests::nested::rig::{Kernel, Rig, find_program};
use tests::{binary, skip};

/// Ends what hangs; a run takes a fifth of it.
const DEADLINE: Duration = Duration::from_secs(900);

/// Overrides the scenarios, separated by spaces: `stock-2 stock-2 stock-2` looks for what happens seldom.
const SCENARIOS_VARIABLE: &str = "VMM_NESTED_SCENARIOS";

/// CPUs of level 1. With two, the emulator runs two vCPUs of the same guest at the same moment, and two
/// guests in some twenty failed, one of them by a triple fault before it was ever moved (docs/testing.md).
const LEVEL1_CPUS: u32 = 1;

/// How much later than the longest downtime a timer may be seen in the guest: as level 1's own timers,
/// several times over, because the guest's processes wait for the guest's CPU, and that for level 1's,
/// and that for this machine's. A timer that was lost is never seen at all.
const TIMES_LEVEL1_LATENESS: f64 = 4.0;
const LATENESS_MS: f64 = 1_000.0;

/// How far the guest's wall clock may be from level 1's when it is compared through the serial log,
/// which is looked at every now and then.
const WALL_CLOCK_S: i64 = 10;

/// A kernel and a number of vCPUs, written `stock-2`.
struct Scenario {
    name: String,
    reports: Vec<Value>,
    seen: Vec<Seen>,
    /// How late a process of level 1 ran at worst.
    level1_latest_ms: f64,
}

/// What the witness in the guest told at one stage.
struct Seen {
    stage: String,
    level1_s: i64,
    told: Value,
}

impl Scenario {
    fn from_log(name: &str, run: &Run) -> Self {
        let of_this = |line: &str| {
            let (scenario, rest) = line.split_once(' ').unwrap();
            (scenario == name).then(|| rest.to_owned())
        };
        let seen = |line: String| {
            let mut parts = line.splitn(3, ' ').map(str::to_owned);
            let mut part = || parts.next().unwrap_or_else(|| panic!("{line}"));
            Seen {
                stage: part(),
                level1_s: part().parse().unwrap(),
                told: parsed(&part()),
            }
        };
        Self {
            name: name.to_owned(),
            reports: run
                .lines_after("report: ")
                .filter_map(of_this)
                .map(|line| parsed(&line))
                .collect(),
            seen: run
                .lines_after("seen: ")
                .filter_map(of_this)
                .map(seen)
                .collect(),
            level1_latest_ms: run
                .lines_after("lateness: ")
                .find_map(of_this)
                .and_then(|ms| ms.parse().ok())
                .unwrap(),
        }
    }

    fn check_reports(&self) {
        assert_eq!(self.reports.len(), 2, "{}: two moves", self.name);
        for report in &self.reports {
            assert_eq!(report["event"], "completed", "{report}");
            assert_eq!(report["verified"], true, "{report}");
            assert!(downtime_ms(report) > 0.0, "{report}");
        }
    }

    /// Faults the guest tells itself; here is what needs both sides, or shows that it was watched.
    fn check_witness(&self) {
        let stages: Vec<_> = self.seen.iter().map(|seen| seen.stage.as_str()).collect();
        assert_eq!(stages, ["before", "moved", "back"], "{}", self.name);
        for pair in self.seen.windows(2) {
            for field in [
                "/avx_holds",
                "/clock_readings",
                "/timerfd/expired",
                "/sleep/expired",
                "/alarm/expired",
            ] {
                let of = |seen: &Seen| number(&seen.told, field);
                assert!(
                    of(&pair[0]) < of(&pair[1]),
                    "{}: {field} stands still: {} {}",
                    self.name,
                    pair[0].told,
                    pair[1].told
                );
            }
        }
        for seen in &self.seen {
            let wall_s = seen.told["wall_ns"].as_i64().unwrap() / 1_000_000_000;
            assert!(
                (wall_s - seen.level1_s).abs() <= WALL_CLOCK_S,
                "{}: level 1 has {} s, the guest {}",
                self.name,
                seen.level1_s,
                seen.told
            );
        }
    }

    fn check_timers(&self) {
        let downtime = self.reports.iter().map(downtime_ms).fold(0.0, f64::max);
        let allowed = downtime + LATENESS_MS + TIMES_LEVEL1_LATENESS * self.level1_latest_ms;
        let last = self.seen.last().unwrap();
        for timer in ["timerfd", "sleep", "alarm"] {
            let latest = number(&last.told, &format!("/{timer}/latest_ms"));
            assert!(
                latest <= allowed,
                "{}: {timer} was {latest} ms late, {allowed} ms with the downtime of {downtime} ms",
                self.name
            );
            println!(
                "{}: {timer} at most {latest} ms late, {downtime} ms of downtime, level 1 {} ms late",
                self.name, self.level1_latest_ms
            );
        }
    }
}

fn parsed(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

fn number(value: &Value, field: &str) -> f64 {
    let number = value.pointer(field).and_then(Value::as_f64);
    number.unwrap_or_else(|| panic!("no {field} in {value}"))
}

fn downtime_ms(report: &Value) -> f64 {
    number(report, "/downtime_ms")
}

fn run_scenarios(rig: &Rig, backports: Option<&Kernel>, scenarios: &str) -> anyhow::Result<Run> {
    let witness = Path::new(env!("CARGO_BIN_EXE_witness"));
    let settings = format!(
        "SCENARIOS='{scenarios}'\nCMDLINE='{}'\nDISK_SIZE={}\n",
        level2::CMDLINE,
        level2::DISK_SIZE
    );
    let mut level1 = Level1::new(rig, include_str!("../src/nested/guest/scenario.sh"))?
        .cpus(LEVEL1_CPUS)
        .file("settings", settings.as_bytes())
        .program("vmm", binary::vmm()?)?
        .program("witness", witness)?
        .program("mke2fs", &find_program("mke2fs")?)?
        .program("e2fsck", &find_program("e2fsck")?)?;
    for (name, kernel) in [("stock", Some(rig.kernel())), ("backports", backports)] {
        let Some(kernel) = kernel else { continue };
        level1 = level1
            .file(&format!("{name}.vmlinuz"), &std::fs::read(kernel.image())?)
            .file(
                &format!("{name}.cpio"),
                &level2::initramfs(&kernel.modules()?)?,
            );
    }
    for node in level2::root_tree(witness)? {
        level1 = match node {
            Node::Directory(path) => level1.directory(&format!("root/{path}")),
            Node::Program(path, content) => level1.file(&format!("root/{path}"), &content),
        };
    }
    level1.run("nested", DEADLINE)
}

#[test]
fn distribution_kernels_move_there_and_back_and_lose_nothing() {
    let rig = match Rig::find() {
        Ok(rig) => rig,
        Err(reason) => skip!("{reason}"),
    };
    let backports = rig.backports_kernel();
    let scenarios = match (std::env::var(SCENARIOS_VARIABLE), &backports) {
        (Ok(chosen), _) => chosen,
        (Err(_), Ok(_)) => "stock-1 stock-2 backports-2".into(),
        (Err(_), Err(reason)) => {
            println!("{}", skip::line(format_args!("backports kernel: {reason}")));
            "stock-1 stock-2".into()
        }
    };
    let run = run_scenarios(&rig, backports.as_ref().ok(), &scenarios).unwrap();
    for line in run.lines_after("scenario: ") {
        println!("{line}");
    }
    assert_eq!(
        run.code,
        0,
        "log {}, its end:\n{}",
        run.log_file.display(),
        run.tail()
    );
    for name in scenarios.split_whitespace() {
        let scenario = Scenario::from_log(name, &run);
        scenario.check_reports();
        scenario.check_witness();
        scenario.check_timers();
    }
}
