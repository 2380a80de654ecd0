//! The CMOS real-time clock of a PC (MC146818), which shows the host's time in UTC.

mod calendar;
mod registers;
mod state;

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::bus::BusDevice;
use crate::interrupt::Interrupt;
use crate::locked::locked;
use crate::threads::{self, ThreadKind};
use crate::{Error, Result};
use calendar::DateTime;
use registers::{
    A, A_DEFAULT, A_UPDATING, ALARM, B, B_DEFAULT, B_SET, C, C_INTERRUPT, COUNT, D, D_VALID,
    PERIODIC, Registers, UPDATE,
};

pub use state::RtcStateV1;

/// Ports that it takes, from 0x70 on: index and data.
pub const RTC_PORTS: u64 = 2;

const DEVICE: &str = "real-time clock";
const INDEX: u64 = 0;
const DATA: u64 = 1;
const NANOS: u64 = 1_000_000_000;
/// The clock says so long before a change that it comes (data sheet: 244 us).
const UPDATE_WARNING: u64 = 244_000;

#[derive(Debug)]
struct Inner {
    index: u8,
    registers: Registers,
    offset_seconds: i64,
    seen_second: i64,
    /// Moment, on the guest's clock, of the last periodic interrupt.
    last_period: u128,
    stop: bool,
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    /// Tells the thread that the interrupts that are wanted changed.
    changed: Condvar,
    interrupt: Arc<dyn Interrupt>,
}

/// A CMOS real-time clock with alarm, update and periodic interrupts, and 128 bytes of memory.
#[derive(Debug)]
pub struct Rtc {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Rtc {
    /// A clock that shows the host's time.
    ///
    /// # Errors
    /// When the thread for its interrupts cannot be started; it sleeps until a guest wants some.
    pub fn new(interrupt: Arc<dyn Interrupt>) -> Result<Self> {
        let mut registers = [0; COUNT];
        registers[usize::from(A)] = A_DEFAULT;
        registers[usize::from(B)] = B_DEFAULT;
        registers[usize::from(D)] = D_VALID;
        let inner = Inner {
            index: 0,
            registers,
            offset_seconds: 0,
            seen_second: i64::try_from(host_time().as_secs()).unwrap_or(0),
            last_period: host_time().as_nanos(),
            stop: false,
        };
        let shared = Arc::new(Shared {
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            interrupt,
        });
        let thread = std::thread::Builder::new()
            .name("rtc".into())
            .stack_size(64 << 10)
            .spawn({
                let shared = Arc::clone(&shared);
                move || {
                    threads::begin(ThreadKind::Helper);
                    shared.run();
                }
            })
            .map_err(|source| Error::Thread {
                device: DEVICE,
                source,
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// All registers, and what the guest's clock is ahead of the host's.
    pub fn save(&self) -> RtcStateV1 {
        let inner = locked(&self.shared.inner);
        let Inner {
            index,
            registers,
            offset_seconds,
            seen_second,
            last_period: _,
            stop: _,
        } = &*inner;
        RtcStateV1 {
            index: *index,
            registers: registers.to_vec(),
            offset_seconds: *offset_seconds,
            seen_second: *seen_second,
        }
    }

    /// Takes the place of a clock that was saved; its time goes on by this host's clock.
    ///
    /// # Errors
    /// When the number of registers is not 128.
    pub fn load(&self, state: RtcStateV1) -> Result<()> {
        let RtcStateV1 {
            index,
            registers,
            offset_seconds,
            seen_second,
        } = state;
        let registers = Registers::try_from(registers).map_err(|registers| Error::BadState {
            device: DEVICE,
            reason: format!("{} registers instead of {COUNT}", registers.len()),
        })?;
        let mut inner = locked(&self.shared.inner);
        inner.index = index & 0x7f;
        inner.registers = registers;
        inner.offset_seconds = offset_seconds;
        inner.seen_second = seen_second;
        inner.last_period = inner.now_nanos();
        drop(inner);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Raises the interrupt again when it was active in the saved clock.
    ///
    /// # Errors
    /// When the interrupt cannot be raised.
    pub fn resume(&self) -> Result<()> {
        let active = locked(&self.shared.inner).registers[usize::from(C)] & C_INTERRUPT != 0;
        if active {
            self.shared
                .interrupt
                .trigger()
                .map_err(|source| Error::Interrupt {
                    device: DEVICE,
                    source,
                })?;
        }
        Ok(())
    }
}

impl Drop for Rtc {
    fn drop(&mut self) {
        locked(&self.shared.inner).stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn host_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

impl Inner {
    fn register(&self, index: u8) -> u8 {
        self.registers[usize::from(index)]
    }

    fn is_set(&self) -> bool {
        self.register(B) & B_SET != 0
    }

    /// The guest's clock in nanoseconds since 1970.
    fn now_nanos(&self) -> u128 {
        let host = i128::try_from(host_time().as_nanos()).unwrap_or(i128::MAX);
        let ahead = i128::from(self.offset_seconds) * i128::from(NANOS);
        u128::try_from(host.saturating_add(ahead)).unwrap_or(0)
    }

    /// The second that the guest's clock shows.
    fn now(&self) -> i64 {
        i64::try_from(self.now_nanos() / u128::from(NANOS)).unwrap_or(i64::MAX)
    }

    /// Puts the time into the registers that show it.
    fn show_now(&mut self) {
        let now = DateTime::from_unix(self.now());
        registers::show(&mut self.registers, now);
    }

    /// Sets the flags of register C for what happened since it was last done; whether the interrupt
    /// line has just become active.
    fn bring_up_to_date(&mut self) -> bool {
        let mut flags = 0;
        if !self.is_set() {
            let now = self.now();
            if now != self.seen_second {
                flags |= UPDATE;
                // A clock that jumped, or was not looked at for long, has passed every alarm once a
                // day is over.
                let passed = now.saturating_sub(self.seen_second).clamp(1, 86_400);
                let due =
                    |second| registers::alarm_matches(&self.registers, DateTime::from_unix(second));
                if (0..passed).any(|back| due(now - back)) {
                    flags |= ALARM;
                }
                self.seen_second = now;
            }
            if let Some(period) = registers::period(&self.registers) {
                let now = self.now_nanos();
                if now.abs_diff(self.last_period) >= u128::from(period) {
                    flags |= PERIODIC;
                    self.last_period = now;
                }
            }
        }
        let was = self.register(C);
        let mut is = was | flags;
        if is & self.register(B) & (PERIODIC | ALARM | UPDATE) != 0 {
            is |= C_INTERRUPT;
        }
        self.registers[usize::from(C)] = is;
        is & !was & C_INTERRUPT != 0
    }

    /// How long nothing can happen that the guest wants to be told.
    fn next_event(&self) -> Option<Duration> {
        let wanted = self.register(B) & (PERIODIC | ALARM | UPDATE);
        if wanted == 0 || self.is_set() || self.register(C) & C_INTERRUPT != 0 {
            return None;
        }
        let now = self.now_nanos();
        let in_second = (now % u128::from(NANOS)) as u64;
        let mut wait = NANOS - in_second;
        if wanted & PERIODIC != 0
            && let Some(period) = registers::period(&self.registers)
        {
            let since = u64::try_from(now.saturating_sub(self.last_period)).unwrap_or(period);
            wait = wait.min(period.saturating_sub(since));
        }
        // Never in a tight loop, whatever the clocks do.
        Some(Duration::from_nanos(wait.max(50_000)))
    }

    fn read_data(&mut self) -> u8 {
        let index = self.index;
        if registers::is_time(index) && !self.is_set() {
            self.show_now();
        }
        match index {
            A => {
                let left = u128::from(NANOS) - self.now_nanos() % u128::from(NANOS);
                let updating = !self.is_set() && left <= u128::from(UPDATE_WARNING);
                self.register(A) | if updating { A_UPDATING } else { 0 }
            }
            C => {
                // An edge for what is found here would come too late: the guest reads it just now.
                self.bring_up_to_date();
                std::mem::take(&mut self.registers[usize::from(C)])
            }
            index => self.register(index),
        }
    }

    fn write_data(&mut self, value: u8) {
        let index = self.index;
        match index {
            A => self.registers[usize::from(A)] = value & !A_UPDATING,
            B => self.write_b(value),
            // Flags and the battery are not the guest's to set.
            C | D => {}
            index if registers::is_time(index) => {
                if !self.is_set() {
                    self.show_now();
                }
                self.registers[usize::from(index)] = value;
                if !self.is_set() {
                    self.set_time();
                }
            }
            index => self.registers[usize::from(index)] = value,
        }
    }

    fn write_b(&mut self, value: u8) {
        let was_set = self.is_set();
        if !was_set && value & B_SET != 0 {
            // The clock stops here, and shows this until it is set otherwise.
            self.show_now();
        }
        if value & !self.register(B) & PERIODIC != 0 {
            self.last_period = self.now_nanos();
        }
        self.registers[usize::from(B)] = value;
        if was_set && !self.is_set() {
            self.set_time();
        }
    }

    /// Lets the guest's clock go on from what the registers show; garbage leaves it as it is.
    fn set_time(&mut self) {
        if let Some(shown) = registers::shown(&self.registers) {
            let ahead = shown.saturating_sub(self.now());
            self.offset_seconds = self.offset_seconds.saturating_add(ahead);
            self.seen_second = shown;
            self.last_period = self.now_nanos();
        }
    }
}

impl Shared {
    /// Raises the interrupts that a guest wants, when they are due.
    fn run(&self) {
        let mut inner = locked(&self.inner);
        while !inner.stop {
            inner = match inner.next_event() {
                None => self
                    .changed
                    .wait(inner)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(wait) => {
                    self.changed
                        .wait_timeout(inner, wait)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
            if inner.bring_up_to_date()
                && let Err(error) = self.interrupt.trigger()
            {
                tracing::warn!(%error, "real-time clock cannot interrupt the guest");
            }
        }
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset == DATA
            && let [byte] = data
        {
            let mut inner = locked(&self.shared.inner);
            let reads_flags = inner.index == C;
            *byte = inner.read_data();
            drop(inner);
            if reads_flags {
                self.shared.changed.notify_all();
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let &[byte] = data else { return };
        let mut inner = locked(&self.shared.inner);
        match offset {
            // Bit 7 masks the NMI, which does not exist here.
            INDEX => inner.index = byte & 0x7f,
            DATA => {
                inner.write_data(byte);
                drop(inner);
                self.shared.changed.notify_all();
            }
            _ => {}
        }
    }
}
