//! What a scenario of the nested job told, read from the log of level 1, and what must hold in it.

use serde_json::Value;

use super::run::Run;

/// From when on a timer in the guest, or an answer over the network, counts as lost: later than the longest downtime
/// by this, by several times what level 1's own timers were late, because the guest's processes wait for the
/// guest's CPU, and that for level 1's, and that for this machine's, and by the time that the same guest took to boot:
/// after a move it touches its memory for the first time anew, as it did then. This ends what hangs and measures
/// nothing: how fast a machine is that is emulated twice over, on CPUs that others share, nobody can promise. Who is
/// really lost is never seen at all, and a clock that is wrong is wrong by far more.
const LOST_MS: f64 = 30_000.0;
const TIMES_LEVEL1_LATENESS: f64 = 8.0;

/// How far the guest's clocks may get ahead of level 1's, or fall behind, by a move.
const CLOCK_NS: i64 = 5_000_000;

/// What the guest and level 1 tell of the time is read from the serial log, now and then.
const DATE_S: i64 = 10;

/// Largest Ethernet frame without segmentation offload, with a VLAN tag.
const LARGEST_FRAME: f64 = 1518.0;

/// Features of virtio-net (virtio 1.2, 5.1.3) that a stock driver takes where they are offered.
const NETWORK_FEATURES: &[(usize, &str)] = &[
    (0, "CSUM"),
    (1, "GUEST_CSUM"),
    (5, "MAC"),
    (7, "GUEST_TSO4"),
    (11, "HOST_TSO4"),
    (15, "MRG_RXBUF"),
    (16, "STATUS"),
    (17, "CTRL_VQ"),
    (21, "GUEST_ANNOUNCE"),
    (32, "VERSION_1"),
];
/// `VIRTIO_NET_F_MQ`, offered where there is more than one pair of queues.
const MULTI_QUEUE: usize = 22;

/// What may go over for each byte that the guest's memory holds.
const MOST_OF_DISTINCT: f64 = 1.02;

/// Models of a CPU without AVX.
const WITHOUT_AVX: [&str; 2] = ["x86-64-v1", "x86-64-v2"];

/// Names the scenarios of a list, which may hold the same one several times: `1:stock-2`.
#[must_use]
pub fn numbered(scenarios: &str) -> Vec<String> {
    let each = scenarios.split_whitespace().enumerate();
    each.map(|(index, what)| format!("{}:{what}", index + 1))
        .collect()
}

/// Checks a move that was told as `cache: NAME JSON`: hardly anything is sent twice of an idle guest, and at least
/// `cached` bytes are sent.
///
/// # Panics
/// With what does not hold.
pub fn check_cache(told: &str, cached: u64) {
    let (name, report) = told.split_once(' ').expect("a name and a report");
    let report = parsed(report);
    assert_eq!(report["event"], "completed", "{report}");
    assert_eq!(report["verified"], true, "{report}");
    let wire = number(&report, "/wire_bytes");
    // Every page goes over in the first pass, and none twice.
    let distinct = number(&report, "/iterations/0/bytes");
    println!(
        "cache {name}: {wire} bytes for {distinct}: {:.4}",
        wire / distinct
    );
    assert!(distinct >= cached as f64, "{report}");
    assert!(wire <= distinct * MOST_OF_DISTINCT, "{report}");
}

/// Checks a move that was told as `disk: NAME MODE JSON`: the disk, with at least `cold` bytes that nobody writes to, went
/// along or was there already, and what the guest wrote meanwhile followed.
///
/// # Panics
/// With what does not hold.
pub fn check_disk(told: &str, cold: u64) {
    let mut words = told.splitn(3, ' ');
    let mut next = || words.next().expect("a name, a mode and a report");
    let (name, mode, report) = (next(), next(), parsed(next()));
    assert_eq!(report["event"], "completed", "{report}");
    assert_eq!(report["verified"], true, "{report}");
    if mode == "on-demand" {
        // All that is on the disk came afterwards, and was looked at.
        let before = "/disks/on_demand/0/disk_bytes_before_commit";
        assert_eq!(number(&report, before), 0.0, "{report}");
        println!("disk {name}: fetched when its guest was there");
        return;
    }
    let passes = report["iterations"].as_array().expect("passes");
    let sent = passes.iter().map(|pass| number(pass, "/disk_bytes"));
    let sent: Vec<_> = sent.collect();
    println!("disk {name}: sent in passes of {mode} {sent:?}");
    let first = *sent.first().expect("a first pass");
    // What was in the image before, when the guest comes back.
    let present = report.pointer("/disks/present_bytes");
    let present = present.and_then(Value::as_f64).unwrap_or_default();
    assert!(first + present >= cold as f64, "{report}");
    assert!(number(&report, "/disks/bytes") > first, "{report}");
}

/// What one scenario told: a kernel, a number of vCPUs and, unless it is the host's, the model of their CPU,
/// written `stock-2` or `stock-2-x86-64-v2`.
#[derive(Debug)]
pub struct Outcome {
    /// As the list of scenarios was numbered.
    name: String,
    /// The last line of each `vmm migrate`.
    reports: Vec<Value>,
    seen: Vec<Seen>,
    /// What the sessions told of each stage.
    sessions: Vec<Value>,
    /// How late a process of level 1 ran at worst.
    level1_latest_ms: f64,
    /// From its start until it wrote its first files.
    boot_ms: f64,
    /// See [`Run::cpu_share`].
    cpu_share: f64,
    /// Pairs of queues and feature bits of the guest's network driver.
    network: String,
}

/// What the witness in the guest told at one stage.
#[derive(Debug)]
struct Seen {
    stage: String,
    /// Level 1's time when it was asked for, and when it was there.
    level1_s: [i64; 2],
    told: Value,
}

impl Outcome {
    /// Reads what the scenario `name` told.
    ///
    /// # Panics
    /// When a line is not what the scenario prints; every failed check panics too.
    #[must_use]
    pub fn from_log(name: &str, run: &Run) -> Self {
        let lines = |prefix| {
            let of_this = |line: &str| {
                let (scenario, rest) = line.split_once(' ')?;
                (scenario == name).then(|| rest.to_owned())
            };
            run.lines_after(prefix)
                .filter_map(of_this)
                .collect::<Vec<_>>()
        };
        let only = |prefix| {
            let lines = lines(prefix);
            assert_eq!(lines.len(), 1, "{name}: {prefix}{lines:?}");
            lines.concat()
        };
        let milliseconds = |prefix| only(prefix).parse::<f64>().expect("milliseconds");
        Self {
            name: name.to_owned(),
            reports: lines("report: ").iter().map(|line| parsed(line)).collect(),
            seen: lines("seen: ")
                .iter()
                .map(|line| Seen::parse(line))
                .collect(),
            sessions: lines("session: ").iter().map(|line| parsed(line)).collect(),
            level1_latest_ms: milliseconds("lateness: "),
            boot_ms: milliseconds("boot: "),
            cpu_share: run.cpu_share,
            network: only("network: "),
        }
    }

    /// Checks all that the guest could not see alone. Prints what was measured.
    ///
    /// # Panics
    /// With what does not hold.
    pub fn check(&self) {
        self.check_reports();
        self.check_witness();
        self.check_lateness();
        self.check_network();
        self.check_sessions();
        self.check_clocks();
    }

    fn check_reports(&self) {
        assert_eq!(self.reports.len(), 2, "{}: two moves", self.name);
        for report in &self.reports {
            assert_eq!(report["event"], "completed", "{report}");
            assert_eq!(report["verified"], true, "{report}");
            assert!(number(report, "/downtime_ms") > 0.0, "{report}");
        }
    }

    /// Faults the guest tells itself; that it was watched is seen here.
    fn check_witness(&self) {
        let stages: Vec<_> = self.seen.iter().map(|seen| seen.stage.as_str()).collect();
        assert_eq!(stages, ["before", "moved", "back"], "{}", self.name);
        for seen in &self.seen {
            let avx = seen.told["avx"].as_bool();
            assert_eq!(avx, Some(self.has_avx()), "{}: AVX", self.name);
        }
        let avx_holds = self.has_avx().then_some("/avx_holds");
        for pair in self.seen.windows(2) {
            for field in [
                "/clock_readings",
                "/timerfd/expired",
                "/sleep/expired",
                "/alarm/expired",
                "/requests",
                "/received",
                "/sent",
            ]
            .into_iter()
            .chain(avx_holds)
            {
                let (before, after) = (&pair[0].told, &pair[1].told);
                assert!(
                    number(before, field) < number(after, field),
                    "{}: {field} stands still: {before} {after}",
                    self.name,
                );
            }
        }
        for seen in &self.seen {
            let guest_s = number(&seen.told, "/wall_ns") as i64 / 1_000_000_000;
            let [asked, there] = seen.level1_s;
            assert!(
                (asked - DATE_S..=there + DATE_S).contains(&guest_s),
                "{}: level 1 has {asked} to {there} s, the guest {}",
                self.name,
                seen.told
            );
        }
    }

    /// The name without its number.
    fn what(&self) -> &str {
        let numbered = self.name.split_once(':');
        numbered.map_or(&self.name, |(_, what)| what)
    }

    fn has_avx(&self) -> bool {
        let model = self.what().splitn(3, '-').nth(2);
        model.is_none_or(|model| !WITHOUT_AVX.contains(&model))
    }

    fn check_lateness(&self) {
        let downtimes = self.reports.iter().map(|it| number(it, "/downtime_ms"));
        let downtime = downtimes.fold(0.0, f64::max);
        let allowed =
            downtime + LOST_MS + self.boot_ms + TIMES_LEVEL1_LATENESS * self.level1_latest_ms;
        let last = &self.seen.last().expect("stages were checked").told;
        let timers = ["timerfd", "sleep", "alarm"]
            .map(|timer| (timer, number(last, &format!("/{timer}/latest_ms"))));
        let answers = self.sessions.iter().map(|it| number(it, "/longest_ms"));
        let answer = ("an answer", answers.fold(0.0, f64::max));
        println!(
            "{}: downtime {downtime:.0} ms; at most late: {timers:?}, {answer:?}, level 1 {} ms, of {allowed:.0} ms \
             allowed after {} ms of booting, with a CPU for {:.0} % of the time",
            self.name,
            self.level1_latest_ms,
            self.boot_ms,
            self.cpu_share * 100.0
        );
        for (what, latest) in timers.into_iter().chain([answer]) {
            assert!(
                latest <= allowed,
                "{}: {what} was {latest} ms late, and {allowed} ms are allowed with a downtime of \
                 {downtime} ms",
                self.name
            );
        }
    }

    fn check_network(&self) {
        let (queues, features) = self.network.split_once(' ').expect("queues and features");
        let taken = |bit: usize| features.as_bytes().get(bit) == Some(&b'1');
        for (bit, feature) in NETWORK_FEATURES {
            assert!(taken(*bit), "{}: no {feature}: {}", self.name, self.network);
        }
        let cpus = self.what().split('-').nth(1).expect("a number of vCPUs");
        assert_eq!(
            queues, cpus,
            "{}: a pair of queues for each vCPU",
            self.name
        );
        assert_eq!(taken(MULTI_QUEUE), cpus != "1", "{}: {features}", self.name);
        for way in ["/largest_frame_to_guest", "/largest_frame_from_guest"] {
            let frames = self.sessions.iter().map(|stage| number(stage, way));
            let largest = frames.fold(0.0, f64::max);
            println!("{}: {way} {largest}", self.name);
            assert!(
                largest > LARGEST_FRAME,
                "{}: no segmentation offload, {way} is {largest}",
                self.name
            );
        }
    }

    fn check_sessions(&self) {
        let stages: Vec<_> = self
            .sessions
            .iter()
            .map(|it| it["stage"].as_str())
            .collect();
        assert_eq!(
            stages,
            ["before", "moving", "moved", "moving-back", "back"].map(Some),
            "{}",
            self.name
        );
        for pair in self.sessions.windows(2) {
            for field in ["/to_guest", "/from_guest"] {
                assert!(
                    number(&pair[0], field) < number(&pair[1], field),
                    "{}: {field} stands still: {pair:?}",
                    self.name
                );
            }
        }
        // The guest itself, asked by its device, says where it now is; the host does by other frames.
        let announced = self.sessions.iter().map(|it| number(it, "/announced"));
        let announced: Vec<_> = announced.collect();
        println!("{}: announced itself {announced:?}", self.name);
        assert!(
            announced[0] < announced[2] && announced[2] < announced[4],
            "{}: announcements of the guest {announced:?}",
            self.name
        );
    }

    /// Between level 1's clocks and the guest's there is a difference that must stay.
    fn check_clocks(&self) {
        for clock in ["/monotonic_ahead_ns", "/wall_ahead_ns"] {
            let bounds: Vec<[i64; 2]> = self
                .sessions
                .iter()
                .map(|session| {
                    let pair = [0, 1].map(|i| session.pointer(&format!("{clock}/{i}")));
                    pair.map(|bound| bound.and_then(Value::as_i64).expect("a bound"))
                })
                .collect();
            let lowest = bounds.iter().map(|[low, _]| *low).max().expect("stages");
            let highest = bounds.iter().map(|[_, high]| *high).min().expect("stages");
            // Bounds that contradict each other tell by how much it has changed at least.
            let changed = lowest.saturating_sub(highest).max(0);
            println!("{}: {clock} changed by at least {changed} ns", self.name);
            assert!(changed <= CLOCK_NS, "{}: {clock} {bounds:?}", self.name);
        }
    }
}

impl Seen {
    fn parse(line: &str) -> Self {
        let mut parts = line.splitn(4, ' ');
        let mut part = || parts.next().unwrap_or_else(|| panic!("{line}"));
        Self {
            stage: part().to_owned(),
            level1_s: [(); 2].map(|()| part().parse().expect("seconds")),
            told: parsed(part()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_scenarios_are_told_apart() {
        let names = numbered("stock-2 stock-2  backports-1-x86-64-v2");
        assert_eq!(names, ["1:stock-2", "2:stock-2", "3:backports-1-x86-64-v2"]);
        let lines = names.iter().enumerate().map(|(index, name)| {
            format!(
                "lateness: {name} {index}\nboot: {name} 1{index}\nnetwork: {name} 2 1{index}\n\
                 report: {name} {{}}\n"
            )
        });
        let run = Run {
            code: 0,
            log: lines.collect(),
            log_file: std::path::PathBuf::new(),
            cpu_share: 1.0,
        };
        for (index, name) in names.iter().enumerate() {
            let outcome = Outcome::from_log(name, &run);
            assert_eq!(outcome.level1_latest_ms as usize, index);
            assert_eq!(outcome.boot_ms as usize, 10 + index);
            assert_eq!(outcome.reports.len(), 1);
        }
        assert_eq!(Outcome::from_log(&names[1], &run).what(), "stock-2");
        assert!(!Outcome::from_log(&names[2], &run).has_avx());
    }
}
