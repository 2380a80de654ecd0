//! The virtio console with one port (virtio 1.2, 5.3).

pub(super) mod state;

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::chain::{BadRequest, Chain};
use super::{DeviceKind, DeviceStateV1, QueueWaker, VirtioDevice};
use crate::locked::locked;
use crate::output::{Output, OutputHandle};
use crate::room::{OnRoom, Room};
use crate::{Error, Result};

pub use state::ConsoleStateV1;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Entries of each queue.
const QUEUE_SIZES: [u16; 2] = [64, 64];
/// Most input that is kept for a guest that does not read.
const MOST_INPUT: usize = 64 << 10;
/// Most bytes of one request that are printed; a longer one is cut, as it cannot be text.
const MOST_OUTPUT: u64 = 1 << 20;
/// Bytes copied at once.
const PIECE: usize = 1024;
/// How long a pause waits for a reader of the output, who then sees all of it before the guest goes on
/// elsewhere; a reader who does not read must not lengthen it noticeably.
const FLUSH: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
struct Input {
    bytes: Mutex<VecDeque<u8>>,
    waker: OnceLock<QueueWaker>,
    room: Room,
}

/// A console with one port.
#[derive(Debug)]
pub struct Console {
    input: Arc<Input>,
    out: OutputHandle,
    /// Ends, once everything is written, with the console.
    output: Output,
}

/// The end of a console that its user has: to type into, and to wait for what the guest prints.
#[derive(Debug, Clone)]
pub struct ConsoleEnd {
    input: Arc<Input>,
    output: OutputHandle,
}

impl ConsoleEnd {
    /// Gives input to the guest; how many bytes were taken. The rest is to be offered again, for example
    /// when [`ConsoleEnd::on_room`] says so.
    pub fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut queue = locked(&self.input.bytes);
        let taken = bytes.len().min(MOST_INPUT - queue.len());
        queue.extend(&bytes[..taken]);
        if taken < bytes.len() {
            self.input.room.lacks();
        }
        drop(queue);
        if taken > 0
            && let Some(waker) = self.input.waker.get()
        {
            waker.wake();
        }
        taken
    }

    /// Has `tell` called when input that was not taken finds room.
    pub fn on_room(&self, tell: OnRoom) {
        self.input.room.on_room(tell);
    }

    /// Waits until all output is written, at most for `timeout`; whether it is.
    pub fn drain_output(&self, timeout: Duration) -> bool {
        self.output.drain(timeout)
    }
}

impl Console {
    /// A console that writes to `out` on a thread of its own, and the end for its user.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn new(out: Box<dyn Write + Send>) -> Result<(Self, ConsoleEnd)> {
        let output = Output::new("console", out)?;
        let input = Arc::new(Input::default());
        let end = ConsoleEnd {
            input: Arc::clone(&input),
            output: output.handle(),
        };
        Ok((
            Self {
                input,
                out: output.handle(),
                output,
            },
            end,
        ))
    }

    fn receive(&self, chain: &Chain<'_>) -> std::result::Result<u32, BadRequest> {
        if chain.writable_len() == 0 {
            return Err(chain.too_short());
        }
        let mut input = locked(&self.input.bytes);
        let mut given = 0;
        while given < chain.writable_len() && !input.is_empty() {
            let (bytes, _) = input.as_slices();
            let room = usize::try_from(chain.writable_len() - given).unwrap_or(usize::MAX);
            let len = bytes.len().min(room);
            chain.write_at(given, &bytes[..len])?;
            input.drain(..len);
            given += len as u64;
        }
        let free = MOST_INPUT - input.len();
        drop(input);
        self.input.room.has(free, MOST_INPUT);
        // At most MOST_INPUT.
        Ok(given as u32)
    }

    fn transmit(&self, chain: &Chain<'_>) -> std::result::Result<u32, BadRequest> {
        let len = chain.readable_len().min(MOST_OUTPUT);
        let mut piece = [0; PIECE];
        let mut done = 0;
        while done < len {
            // At most the length of the piece.
            let part = &mut piece[..(len - done).min(PIECE as u64) as usize];
            chain.read_at(done, part)?;
            self.out.push(part);
            done += part.len() as u64;
        }
        Ok(0)
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn features(&self) -> u64 {
        // Neither size nor more ports: the configuration space is empty then.
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn attach(&self, wakers: Vec<QueueWaker>) {
        if let Some(waker) = wakers.into_iter().nth(RECEIVE) {
            // Once, as the trait says; a second time changes nothing.
            let _first = self.input.waker.set(waker);
        }
    }

    fn has_work(&self, queue: usize) -> bool {
        queue != RECEIVE || !locked(&self.input.bytes).is_empty()
    }

    fn process(
        &self,
        queue: usize,
        chain: &mut Chain<'_>,
        _features: u64,
    ) -> std::result::Result<u32, BadRequest> {
        match queue {
            TRANSMIT => self.transmit(chain),
            _ => self.receive(chain),
        }
    }

    fn flush(&self) -> Result<()> {
        if !self.output.drain(FLUSH) {
            tracing::debug!("console output is still on its way");
        }
        Ok(())
    }

    fn save(&self) -> DeviceStateV1 {
        let input = locked(&self.input.bytes).iter().copied().collect();
        DeviceStateV1::Console(ConsoleStateV1 { input })
    }

    fn load(&self, state: DeviceStateV1) -> Result<()> {
        let bad = |reason: String| Error::BadState {
            device: DeviceKind::Console.name(),
            reason,
        };
        let DeviceStateV1::Console(ConsoleStateV1 { input }) = state else {
            return Err(bad("it is of another kind of device".into()));
        };
        if input.len() > MOST_INPUT {
            return Err(bad(format!("{} bytes of input", input.len())));
        }
        *locked(&self.input.bytes) = input.into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shows what was written.
    #[derive(Clone, Default)]
    struct Shown(Arc<Mutex<Vec<u8>>>);

    impl Write for Shown {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            locked(&self.0).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn output_is_written_once_it_was_waited_for() {
        let shown = Shown::default();
        let (console, end) = Console::new(Box::new(shown.clone())).unwrap();
        // Without a line's end, which would be written at once.
        console.out.push(b"login: ");
        assert!(end.drain_output(Duration::from_secs(60)));
        assert_eq!(*locked(&shown.0), b"login: ");
    }
}
