//! Follows what a guest prints on its serial port, across hosts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use super::wait::eventually;
use crate::Host;

/// A line of the probe guest: `PROBE kind key=value..`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// First word.
    pub kind: String,
    /// The rest.
    pub fields: BTreeMap<String, String>,
}

impl Line {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text
            .trim_end_matches('\r')
            .strip_prefix("PROBE ")?
            .split(' ');
        let kind = words.next()?.to_owned();
        let fields = words
            .map(|word| word.split_once('=').unwrap_or((word, "")))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Some(Self { kind, fields })
    }

    /// A field that is a number, decimal or `0x` hexadecimal.
    pub fn number(&self, key: &str) -> Option<u64> {
        let text = self.fields.get(key)?;
        match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        }
    }
}

impl Line {
    /// Whether it tells of a fault of one of these kinds.
    fn is_one_of(&self, kinds: &[&str]) -> bool {
        let kind = self.fields.get("kind");
        kind.is_some_and(|kind| kinds.contains(&kind.as_str()))
    }
}

/// What a guest tells of changes of its disk that failed.
const WRITES_FAILED: [&str; 4] = [
    "block-write",
    "block-flush",
    "disk-write-error",
    "disk-flush-error",
];
/// And of all requests that did.
const REQUESTS_FAILED: [&str; 8] = [
    "block-read",
    "block-write",
    "block-flush",
    "disk-read-error",
    "disk-write-error",
    "disk-flush-error",
    "disk-discard-error",
    "disk-zeroes-error",
];

/// The console of one guest, from its first byte on, wherever it runs.
pub struct Console {
    file: File,
    /// What the VM that has the guest says of itself.
    log: File,
    text: Vec<u8>,
    /// Its disk was made to fail, of which it may have been told.
    failed: &'static [&'static str],
}

impl Console {
    /// Console of `vm` on `host`; stays readable when the VM is gone.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn of(host: &Host, vm: &str) -> Self {
        Self {
            file: open(host, vm, "serial.log"),
            log: open(host, vm, "vmm.log"),
            text: Vec::new(),
            failed: &[],
        }
    }

    /// Its disk failed, or refused what the guest wanted, on purpose: that the guest was told so is
    /// no harm.
    pub fn knows_of_disk_faults(&mut self) {
        self.failed = &WRITES_FAILED;
    }

    /// Whoever has what its disk lacks is lost, and its requests fail for that: that the guest was told so is no harm.
    pub fn knows_of_a_lost_source(&mut self) {
        self.failed = &REQUESTS_FAILED;
    }

    /// How many requests the guest was told to have failed.
    pub fn failed_requests(&mut self) -> usize {
        let failed = |line: &Line| line.is_one_of(&REQUESTS_FAILED);
        self.lines().into_iter().filter(failed).count()
    }

    /// The guest has moved, and what it prints now is read there: the text goes on where it was.
    ///
    /// # Panics
    /// When the VM is not there.
    #[track_caller]
    pub fn moves_to(&mut self, host: &Host, vm: &str) {
        self.read();
        self.file = open(host, vm, "serial.log");
        self.log = open(host, vm, "vmm.log");
    }

    fn read(&mut self) {
        self.file
            .read_to_end(&mut self.text)
            .expect("serial.log is readable");
    }

    /// Forgets what was read, which must hold no fault: what is read takes long when it is much.
    #[track_caller]
    pub fn forgets(&mut self) {
        self.is_unharmed();
        let whole = self.text.iter().rposition(|&byte| byte == b'\n');
        self.text.drain(..whole.map_or(0, |end| end + 1));
    }

    /// Everything printed until now.
    pub fn text(&mut self) -> String {
        self.read();
        String::from_utf8_lossy(&self.text).into_owned()
    }

    /// All complete lines of the probe until now.
    pub fn lines(&mut self) -> Vec<Line> {
        let text = self.text();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().filter_map(Line::parse).collect()
    }

    /// Waits for a line that fits.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, fits: impl Fn(&Line) -> bool) -> Line {
        eventually(&format!("the guest prints {what}"), || {
            self.lines().into_iter().find(|line| fits(line))
        })
    }

    /// Waits until the guest has set everything up.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        self.wait_for("ready", |line| line.kind == "ready");
    }

    /// Newest value of a field of the ticks.
    pub fn last(&mut self, key: &str) -> Option<u64> {
        self.lines()
            .iter()
            .rev()
            .filter(|line| line.kind == "tick")
            .find_map(|l| l.number(key))
    }

    /// Waits until the guest has printed a tick after now.
    #[track_caller]
    pub fn wait_tick(&mut self) {
        let ticks = |console: &mut Self| {
            console
                .lines()
                .iter()
                .filter(|line| line.kind == "tick")
                .count()
        };
        let before = ticks(self);
        // Two: the first one may have been on its way already.
        eventually("the guest ticks", || {
            (ticks(self) >= before + 2).then_some(())
        });
    }

    /// Waits until the guest goes on but its disk does not.
    #[track_caller]
    pub fn waits_for_disk(&mut self) {
        eventually("the guest waits for its disk", || {
            let before = self.last("blocks_written");
            self.wait_tick();
            (self.last("blocks_written") == before).then_some(())
        });
    }

    /// The guest has counted its ticks without a gap and none twice, wherever it printed them.
    ///
    /// # Panics
    /// When it went on from where it had been before, as one that runs in two places does.
    #[track_caller]
    pub fn ticks_once(&mut self) {
        let ticks = self.lines();
        let ticks: Vec<u64> = ticks
            .iter()
            .filter(|line| line.kind == "tick")
            .filter_map(|line| line.number("n"))
            .collect();
        let broken = ticks.windows(2).find(|two| two[1] != two[0] + 1);
        assert!(broken.is_none(), "tick {broken:?} of {ticks:?}");
    }

    /// The guest has found nothing wrong.
    ///
    /// # Panics
    /// When it has.
    #[track_caller]
    pub fn is_unharmed(&mut self) {
        let failed = self.failed;
        let faults: Vec<_> = self
            .lines()
            .into_iter()
            .filter(|l| l.kind == "fault" || l.kind == "panic")
            .filter(|line| !line.is_one_of(failed))
            .collect();
        assert!(faults.is_empty(), "the guest found {faults:?}");
    }

    /// Waits until the guest has verified as many pages of its ledger as there are, every one since
    /// now, and found nothing wrong.
    #[track_caller]
    pub fn verifies_ledger(&mut self) {
        let before = self.last("ledger_verified").unwrap_or(0);
        eventually("the guest verifies its ledger", || {
            self.is_unharmed();
            let pages = self.last("ledger_pages")?;
            assert!(pages > 0, "the guest has no ledger");
            (self.last("ledger_verified")? >= before + pages).then_some(())
        });
        self.is_unharmed();
    }
}

impl Console {
    /// Waits until the guest has verified as many blocks of its disk as it has written since now, and
    /// found nothing wrong.
    #[track_caller]
    pub fn verifies_blocks(&mut self) {
        let before = self.last("blocks_verified").unwrap_or(0);
        eventually("the guest verifies its disk", || {
            self.is_unharmed();
            (self.last("blocks_verified")? > before).then_some(())
        });
        self.is_unharmed();
    }
}

/// The end of a VM's log and of its guest's output, also when the VM and its folder are gone.
impl Drop for Console {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let mut log = Vec::new();
        let _ = self.log.read_to_end(&mut log);
        let _ = self.file.read_to_end(&mut self.text);
        for (what, text) in [("log of the VM", &log), ("console", &self.text)] {
            let text = String::from_utf8_lossy(text);
            let lines: Vec<_> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(12)..].join("\n  ");
            eprintln!("--- {what} that had the guest last:\n  {tail}");
        }
    }
}

#[track_caller]
fn open(host: &Host, vm: &str, file: &str) -> File {
    let path = host.runtime_dir().join(vm).join(file);
    File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
