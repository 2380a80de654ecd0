//! The loop of a vCPU thread.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use devices::bus::Bus;
use kvm_ioctls::{VcpuExit, VcpuFd};
use migration::observation::{Observation, Side};

use crate::boot::firmware;
use crate::boot::refusal::KvmBackend;

use super::gate::{Gate, Mode};
use super::kick::ImmediateExit;
use super::shutdown::Shutdown;
use super::time_slice::{TimeSlice, TimeSlices, Timer};
use super::{delivery, exit};
use crate::events::{GuestEvent, GuestEvents};

/// What is said of a guest whose exit could not be handled.
const MISTAKE: &str =
    "a mistake of this program in handling what the guest did; the log says where";

/// For how long a guest is let go on first whose breakpoint is to be delivered, and at last: each moment is twice as
/// long as the one before, since most of a short one goes by on the way into the guest.
const FIRST_MOMENT: Duration = Duration::from_micros(20);
const LONGEST_MOMENT: Duration = Duration::from_millis(10);

/// What the exits of a vCPU reach.
#[derive(Debug, Clone)]
pub struct ExitHandlers {
    /// Port I/O.
    pub pio: Arc<Bus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
    /// Where the end of the guest is told.
    pub events: GuestEvents,
    /// Guest RAM, to read the instruction that KVM could not run.
    pub ram: migration::GuestRam,
}

/// What one vCPU thread owns.
pub(super) struct Worker {
    pub(super) index: usize,
    pub(super) fd: Arc<Mutex<VcpuFd>>,
    pub(super) immediate_exit: ImmediateExit,
    pub(super) gate: Arc<Gate>,
    pub(super) slices: Arc<TimeSlices>,
    pub(super) handlers: ExitHandlers,
    pub(super) backend: KvmBackend,
}

/// How the guest was left, to be entered again.
enum Came {
    /// By something that it did, which is dealt with.
    Back,
    /// By a signal.
    Interrupted,
}

/// Why the loop left the guest for good.
enum Left {
    /// The gate was closed.
    Parking,
    /// The guest is over; the thread parks until it is told to quit.
    Over(GuestEvent),
}

impl Worker {
    pub(super) fn run(self) {
        let _span = tracing::debug_span!("vcpu", index = self.index).entered();
        let slice = TimeSlice::new(&self.slices);
        while self.gate.park() == Mode::Running {
            // A thread that died of a device's mistake would never park again, and whoever pauses the
            // machine would wait for it for ever.
            let left = panic::catch_unwind(AssertUnwindSafe(|| {
                let mut fd = self.fd.lock().unwrap_or_else(PoisonError::into_inner);
                self.run_guest(&mut fd, &slice)
            }))
            .unwrap_or_else(|_| Left::Over(self.failed("vmm.panic", MISTAKE.into())));
            slice.stop();
            if let Left::Over(event) = left {
                self.handlers.events.tell(event);
                // A guest that is over must not be entered again when another pause ends.
                self.gate.close(Mode::Paused);
            }
        }
    }

    fn run_guest(&self, fd: &mut VcpuFd, slice: &TimeSlice<'_>) -> Left {
        self.immediate_exit.clear();
        loop {
            if !self.gate.is_open() {
                return self.park(fd);
            }
            slice.begin();
            match self.enter(fd) {
                Ok(Came::Back) => {}
                Ok(Came::Interrupted) => {
                    // Cleared before the gate is looked at: whoever closes the gate sets it afterwards.
                    self.immediate_exit.clear();
                    if self.gate.is_open() {
                        slice.end();
                    }
                }
                Err(event) => return Left::Over(event),
            }
        }
    }

    /// Leaves nothing of the guest's that only KVM knows of.
    fn park(&self, fd: &mut VcpuFd) -> Left {
        self.complete_io(fd)
            .and_then(|()| self.deliver_exception(fd))
            .err()
            .map_or(Left::Parking, Left::Over)
    }

    /// Completes the I/O of the last exit, which KVM does on re-entry (KVM API 5, `KVM_EXIT_IO`).
    fn complete_io(&self, fd: &mut VcpuFd) -> Result<(), GuestEvent> {
        self.immediate_exit.set();
        // String I/O may need several rounds: each completes one and stops at the next.
        self.enter_until_interrupted(fd)
    }

    /// Lets the guest go on for moments until no exception can be waiting (see [`super::delivery`]).
    fn deliver_exception(&self, fd: &mut VcpuFd) -> Result<(), GuestEvent> {
        let is_due = |fd: &VcpuFd| delivery::may_be_due(fd, &self.handlers.ram);
        if !self.backend.is_pvm() || !is_due(fd) {
            return Ok(());
        }
        let timer = Timer::new()
            .map_err(|e| self.failed("kvm.run", format!("a timer for a moment: {e}")))?;
        let mut moment = FIRST_MOMENT;
        while moment <= LONGEST_MOMENT {
            timer.set(moment);
            self.immediate_exit.clear();
            self.enter_until_interrupted(fd)?;
            timer.set(Duration::ZERO);
            self.complete_io(fd)?;
            if !is_due(fd) {
                return Ok(());
            }
            moment *= 2;
        }
        tracing::warn!("the guest stands behind a breakpoint, which may be lost");
        Ok(())
    }

    fn enter_until_interrupted(&self, fd: &mut VcpuFd) -> Result<(), GuestEvent> {
        while let Came::Back = self.enter(fd)? {}
        Ok(())
    }

    fn enter(&self, fd: &mut VcpuFd) -> Result<Came, GuestEvent> {
        match fd.run() {
            Ok(exit) => match dispatch(exit, &self.handlers) {
                Ok(()) => Ok(Came::Back),
                Err(end) => Err(self.explain(fd, end)),
            },
            Err(e) if e.errno() == libc::EINTR => Ok(Came::Interrupted),
            Err(e) if e.errno() == libc::EAGAIN => Ok(Came::Back),
            Err(e) => Err(self.failed("kvm.run", format!("KVM_RUN: {e}"))),
        }
    }

    fn explain(&self, fd: &mut VcpuFd, end: End) -> GuestEvent {
        match end {
            End::TripleFault if firmware::restart_is_announced(&self.handlers.ram) => {
                tracing::info!("the guest resets by a triple fault");
                GuestEvent::Reset
            }
            End::TripleFault => {
                let shutdown = Shutdown::of(fd);
                GuestEvent::Failed(shutdown.observation(self.index, KvmBackend::detect()))
            }
            End::Internal => self.failed(
                "guest.not-runnable",
                exit::internal_error(fd, &self.handlers.ram),
            ),
            End::Unhandled(what) => self.failed("guest.not-runnable", what),
        }
    }

    fn failed(&self, id: &str, message: String) -> GuestEvent {
        let message = format!("vCPU {}: {message}", self.index);
        GuestEvent::Failed(Observation::new(Side::Source, id, message))
    }
}

/// An exit that ends the guest, still to be explained from the vCPU's registers.
enum End {
    TripleFault,
    Internal,
    Unhandled(String),
}

fn dispatch(exit: VcpuExit<'_>, handlers: &ExitHandlers) -> Result<(), End> {
    match exit {
        VcpuExit::IoIn(port, data) => {
            handlers.pio.read(port.into(), data);
            Ok(())
        }
        VcpuExit::IoOut(port, data) => {
            handlers.pio.write(port.into(), data);
            Ok(())
        }
        VcpuExit::MmioRead(address, data) => {
            handlers.mmio.read(address, data);
            Ok(())
        }
        VcpuExit::MmioWrite(address, data) => {
            handlers.mmio.write(address, data);
            Ok(())
        }
        // With the in-kernel interrupt controller these need nothing from user space.
        VcpuExit::Hlt | VcpuExit::Intr | VcpuExit::IrqWindowOpen => Ok(()),
        VcpuExit::Shutdown => Err(End::TripleFault),
        VcpuExit::InternalError => Err(End::Internal),
        VcpuExit::FailEntry(reason, cpu) => Err(End::Unhandled(format!(
            "the hardware refused to enter the guest: reason {reason:#x} on host CPU {cpu}"
        ))),
        other => Err(End::Unhandled(format!("unexpected exit {other:?}"))),
    }
}
