//! The kernel command line.

use crate::content::Fill;
use crate::load::{LoadOptions, MAX_LOADS};
use crate::serial::Serial;
use crate::timer::Mode;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Block {
    Off,
    Verify,
    Check,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    No,
    Triple,
    Reset,
}

/// An IPv4 address in its network.
#[derive(Clone, Copy)]
pub struct Address {
    pub ip: [u8; 4],
    /// Bits of the address that are the network's.
    pub prefix: u32,
}

impl Address {
    /// `10.0.0.2/24`
    fn parse(text: &str) -> Option<Self> {
        let (text, prefix) = text.split_once('/')?;
        let mut ip = [0; 4];
        let mut parts = text.split('.');
        for byte in &mut ip {
            *byte = parts.next()?.parse().ok()?;
        }
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
        parts.next().is_none().then_some(Self { ip, prefix })
    }

    /// The address of everybody in this network; our own where there is nobody else.
    pub fn broadcast(&self) -> u32 {
        let hosts = u32::MAX.checked_shr(self.prefix).unwrap_or(0);
        u32::from_be_bytes(self.ip) | hosts
    }
}

pub const MAX_WINDOWS: usize = 32;

/// Options as given, with their defaults.
pub struct Options {
    pub fill: Fill,
    pub seed: u64,
    pub fill_size: Option<u64>,
    pub dirty_rate: Option<u64>,
    pub dirty_set: u64,
    pub dirty_random: bool,
    pub dirty_cpl0: bool,
    pub ledger: Option<u64>,
    pub cpus: usize,
    pub halt: bool,
    pub tick_ms: u64,
    pub block: Block,
    pub block_size: u64,
    pub block_rate: u64,
    pub loads: [Option<LoadOptions>; MAX_LOADS],
    pub net: Option<Address>,
    pub rng: bool,
    pub console: bool,
    pub exit_after_us: Option<u64>,
    pub exit_ticks: Option<u64>,
    pub crash: Crash,
    pub tsc_khz: u64,
    pub clock_ms: Option<u64>,
    pub timer: Option<Mode>,
    pub timer_us: u64,
    pub windows: [u64; MAX_WINDOWS],
    pub window_count: usize,
}

pub fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// `64M`, `64MiB` and `0x1000` alike; binary units.
pub fn size(text: &str) -> Option<u64> {
    let text = text
        .strip_suffix("iB")
        .or_else(|| text.strip_suffix('B'))
        .unwrap_or(text);
    let unit = |suffix: &[char], shift: u32| {
        text.strip_suffix(suffix)
            .and_then(number)
            .and_then(|n| n.checked_mul(1 << shift))
    };
    if text.starts_with("0x") {
        return number(text);
    }
    unit(&['K', 'k'], 10)
        .or_else(|| unit(&['M', 'm'], 20))
        .or_else(|| unit(&['G', 'g'], 30))
        .or_else(|| number(text))
}

impl Options {
    /// Reads the command line; what is not understood is printed as a fault and ignored.
    pub fn parse(line: &str, out: &mut Serial) -> Self {
        let mut options = Self {
            fill: Fill::None,
            seed: 1,
            fill_size: None,
            dirty_rate: None,
            dirty_set: 0,
            dirty_random: false,
            dirty_cpl0: false,
            ledger: None,
            cpus: 0,
            halt: false,
            tick_ms: 100,
            block: Block::Off,
            block_size: 16 << 20,
            block_rate: 50,
            loads: [None; MAX_LOADS],
            net: None,
            rng: false,
            console: false,
            exit_after_us: None,
            exit_ticks: None,
            crash: Crash::No,
            tsc_khz: 0,
            clock_ms: None,
            timer: None,
            timer_us: 50_000,
            windows: [0; MAX_WINDOWS],
            window_count: 0,
        };
        for word in line.split_ascii_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            if options.set(key, value).is_none() {
                out.line(format_args!(
                    "fault kind=option gpa=0x0 expected=0x0 found={word}"
                ));
                crate::shared::FAULTS.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
            }
        }
        // A halt has a timer of its own.
        options.halt &= options.timer.is_none();
        if options.dirty_set == 0 && options.dirty_rate.is_some() {
            options.dirty_set = 16 << 20;
        }
        options
    }

    /// Rate in pages a second; a working set without a rate gets 1000.
    pub fn rate(&self) -> u64 {
        self.dirty_rate
            .unwrap_or(if self.dirty_set > 0 { 1000 } else { 0 })
    }

    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "fill" => match value {
                "none" => self.fill = Fill::None,
                "zero" => self.fill = Fill::Zero,
                "random" => self.fill = Fill::Random,
                "text" => self.fill = Fill::Text,
                _ => {
                    self.seed = number(value.strip_prefix("dup:")?)?;
                    self.fill = Fill::Duplicate;
                }
            },
            "seed" => self.seed = number(value)?,
            "fill_size" => self.fill_size = Some(size(value)?),
            "dirty_rate" => self.dirty_rate = Some(number(value)?),
            "dirty_set" => self.dirty_set = size(value)?,
            "dirty_pattern" => self.dirty_random = choice(value, "sequential", "random")?,
            "dirty_from" => self.dirty_cpl0 = choice(value, "cpl3", "cpl0")?,
            "ledger" => self.ledger = Some(size(value)?),
            "cpus" => {
                self.cpus = usize::try_from(number(value)?)
                    .ok()
                    .filter(|n| (1..=16).contains(n))?;
            }
            "idle" => self.halt = choice(value, "spin", "halt")?,
            "tick_ms" => self.tick_ms = number(value).filter(|n| (1..=3_600_000).contains(n))?,
            "block" => {
                for (i, part) in value.split(',').enumerate() {
                    match (i, part) {
                        (0, "verify") => self.block = Block::Verify,
                        (0, "check") => self.block = Block::Check,
                        _ => self.block_size = size(part.strip_prefix("size=")?)?,
                    }
                }
            }
            "block_rate" => {
                self.block_rate = number(value).filter(|n| (1..=1_000_000).contains(n))?;
            }
            "disk" => {
                let load = LoadOptions::parse(value)?;
                *self.loads.iter_mut().find(|load| load.is_none())? = Some(load);
            }
            "net" => self.net = Some(Address::parse(value)?),
            "rng" if value == "read" => self.rng = true,
            "console" if value == "virtio" => self.console = true,
            "exit_after" => match value.strip_suffix('t') {
                Some(ticks) => self.exit_ticks = Some(number(ticks)?),
                None => self.exit_after_us = Some(seconds(value)?),
            },
            "crash" => match value {
                "triple" => self.crash = Crash::Triple,
                "reset" => self.crash = Crash::Reset,
                _ => return None,
            },
            "tsc_khz" => self.tsc_khz = number(value)?,
            "clock_ms" => {
                self.clock_ms = Some(number(value).filter(|n| (1..=3_600_000).contains(n))?);
            }
            "timer" => {
                self.timer = Some(match value {
                    "oneshot" => Mode::OneShot,
                    "periodic" => Mode::Periodic,
                    "deadline" => Mode::Deadline,
                    _ => return None,
                });
            }
            "timer_us" => {
                self.timer_us = number(value).filter(|n| (1000..=4_000_000).contains(n))?
            }
            "virtio_mmio.device" => {
                // SIZE@ADDR:IRQ
                let address = number(value.split_once('@')?.1.split(':').next()?)?;
                if self.window_count < MAX_WINDOWS {
                    self.windows[self.window_count] = address;
                    self.window_count += 1;
                }
            }
            _ => return None,
        }
        Some(())
    }
}

fn choice(value: &str, no: &str, yes: &str) -> Option<bool> {
    (value == yes || value == no).then_some(value == yes)
}

fn seconds(value: &str) -> Option<u64> {
    let (whole, part) = value.split_once('.').unwrap_or((value, "0"));
    let tenths = u64::from(*part.as_bytes().first()?).checked_sub(48)?;
    number(whole)?
        .checked_mul(1_000_000)?
        .checked_add(tenths * 100_000)
}
