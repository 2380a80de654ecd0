//! The 16550 serial port.

mod state;

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial as Uart, Trigger};

use crate::bus::BusDevice;
use crate::interrupt::Interrupt;
use crate::locked::locked;
use crate::output::{Output, OutputHandle};
use crate::room::{OnRoom, Room};
use crate::{Error, Result};

pub use state::SerialStateV1;

const DEVICE: &str = "serial port";
/// Input that is kept beyond the port's own FIFO, so that a pasted line arrives whole.
const INPUT_BACKLOG: usize = 4096;
/// The port's FIFO, 64 bytes as in a 16750.
const FIFO: usize = 64;
/// Ports that it answers at.
pub const SERIAL_PORTS: u64 = 8;

/// Lets the UART raise the line.
struct Line(Arc<dyn Interrupt>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

/// Lets the UART write its bytes one by one, as it does.
struct Sink(OutputHandle);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Port = Uart<Line, NoEvents, Sink>;

struct Inner {
    port: Port,
    backlog: VecDeque<u8>,
}

/// A 16550 serial port whose output is gathered into lines.
pub struct Serial {
    inner: Mutex<Inner>,
    interrupt: Arc<dyn Interrupt>,
    output: Output,
    room: Room,
}

impl Serial {
    /// Makes a port that writes to `out` on a thread of its own.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn new(interrupt: Arc<dyn Interrupt>, out: Box<dyn Write + Send>) -> Result<Self> {
        let output = Output::new("serial", out)?;
        let port = Uart::new(Line(Arc::clone(&interrupt)), Sink(output.handle()));
        let inner = Inner {
            port,
            backlog: VecDeque::new(),
        };
        Ok(Self {
            inner: Mutex::new(inner),
            interrupt,
            output,
            room: Room::default(),
        })
    }

    /// Gives input to the guest; how many bytes were taken. The rest is to be offered again, for example
    /// when [`Serial::on_room`] says so.
    pub fn enqueue_input(&self, bytes: &[u8]) -> usize {
        let mut inner = locked(&self.inner);
        let taken = bytes.len().min(INPUT_BACKLOG - inner.backlog.len());
        inner.backlog.extend(&bytes[..taken]);
        inner.feed();
        if taken < bytes.len() {
            self.room.lacks();
        }
        taken
    }

    /// Has `tell` called when input that was not taken finds room.
    pub fn on_room(&self, tell: OnRoom) {
        self.room.on_room(tell);
    }

    /// The guest may have taken input away.
    fn tell_room(&self, inner: MutexGuard<'_, Inner>) {
        let free = INPUT_BACKLOG - inner.backlog.len();
        drop(inner);
        self.room.has(free, INPUT_BACKLOG);
    }

    /// Waits until all output is written, at most for `timeout`; whether it is.
    pub fn drain_output(&self, timeout: Duration) -> bool {
        self.output.drain(timeout)
    }

    /// All registers, the FIFO and the input that waits for room in it.
    pub fn save(&self) -> SerialStateV1 {
        let inner = locked(&self.inner);
        let SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = inner.port.state();
        SerialStateV1 {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            fifo: in_buffer,
            backlog: inner.backlog.iter().copied().collect(),
        }
    }

    /// Takes the place of a port that was saved; a pending interrupt is raised by
    /// [`Serial::resume`].
    ///
    /// # Errors
    /// When the state holds more input than a port can.
    pub fn load(&self, state: SerialStateV1) -> Result<()> {
        let SerialStateV1 {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            fifo,
            backlog,
        } = state;
        let bad = |reason: String| Error::BadState {
            device: DEVICE,
            reason,
        };
        if fifo.len() > FIFO || backlog.len() > INPUT_BACKLOG {
            let (fifo, backlog) = (fifo.len(), backlog.len());
            return Err(bad(format!(
                "{fifo} bytes in the fifo and {backlog} behind it"
            )));
        }
        let state = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: fifo,
        };
        let line = Line(Arc::clone(&self.interrupt));
        let port = Uart::from_state(&state, line, NoEvents, Sink(self.output.handle()))
            .map_err(|error| bad(error.to_string()))?;
        *locked(&self.inner) = Inner {
            port,
            backlog: backlog.into(),
        };
        Ok(())
    }

    /// Raises again what was pending when the port was saved; an edge that got lost on the way would
    /// silence the port.
    ///
    /// # Errors
    /// When the interrupt cannot be raised.
    pub fn resume(&self) -> Result<()> {
        const NONE_PENDING: u8 = 1;
        let mut inner = locked(&self.inner);
        inner.feed();
        if inner.port.state().interrupt_identification & NONE_PENDING == 0 {
            self.interrupt
                .trigger()
                .map_err(|source| Error::Interrupt {
                    device: DEVICE,
                    source,
                })?;
        }
        Ok(())
    }
}

impl Inner {
    /// Moves input into the FIFO as far as there is room.
    fn feed(&mut self) {
        if self.backlog.is_empty() || self.port.fifo_capacity() == 0 {
            return;
        }
        let (bytes, _) = self.backlog.as_slices();
        match self.port.enqueue_raw_bytes(bytes) {
            Ok(taken) => drop(self.backlog.drain(..taken)),
            Err(error) => tracing::debug!(%error, "serial input not delivered"),
        }
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (Ok(offset), [byte]) = (u8::try_from(offset), data) {
            let mut inner = locked(&self.inner);
            *byte = inner.port.read(offset);
            inner.feed();
            self.tell_room(inner);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(offset), &[byte]) = (u8::try_from(offset), data) {
            let mut inner = locked(&self.inner);
            // Only the interrupt can fail; the byte is out.
            if let Err(error) = inner.port.write(offset, byte) {
                tracing::debug!(%error, "serial interrupt not raised");
            }
            inner.feed();
            self.tell_room(inner);
        }
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial")
            .field("output", &self.output)
            .finish_non_exhaustive()
    }
}
