//! The serial port: lines are queued, and the loop of CPU 0 sends a few bytes in each pass, so that
//! printing neither hides nor fakes a gap.

use core::fmt::{self, Write};

use crate::gate;
use crate::lines::Line;

const SIZE: usize = 16384;

static mut QUEUE: [u8; SIZE] = [0; SIZE];

/// Output of CPU 0, the only one that prints.
pub struct Serial {
    head: usize,
    tail: usize,
    console_head: Option<usize>,
}

fn queue(i: usize) -> *mut u8 {
    // SAFETY: the index is within the array.
    unsafe { (&raw mut QUEUE).cast::<u8>().add(i % SIZE) }
}

impl Serial {
    pub fn new() -> Self {
        gate::outb(0x3f9, 0);
        gate::outb(0x3fa, 0x07);
        Self {
            head: 0,
            tail: 0,
            console_head: None,
        }
    }

    /// From here on lines are kept for the virtio console too.
    pub fn copy_to_console(&mut self) {
        self.console_head = Some(self.head);
    }

    fn oldest(&self) -> usize {
        self.console_head
            .map_or(self.head, |console| console.min(self.head))
    }

    /// Queues a line; where the queue is full it first sends what is in it.
    pub fn line(&mut self, arguments: fmt::Arguments<'_>) {
        let mut line = Line::NEW;
        let _ = line.write_str("PROBE ");
        let _ = line.write_fmt(arguments);
        let bytes = line.ended();
        if self.tail - self.oldest() + bytes.len() > SIZE {
            self.flush();
            // A console that nobody reads does not stop the serial port.
            self.console_head = self.console_head.map(|_| self.head);
        }
        for &byte in bytes {
            // SAFETY: see `queue`; only CPU 0 prints.
            unsafe { queue(self.tail).write(byte) };
            self.tail += 1;
        }
    }

    pub fn pending(&self) -> bool {
        self.head != self.tail
    }

    /// Room for another tick line; ticks are dropped rather than waited for.
    pub fn has_room(&self) -> bool {
        self.tail - self.head < SIZE / 2
    }

    /// Sends at most 16 bytes; true when it sent some.
    pub fn pump(&mut self) -> bool {
        let mut chunk = [0; 16];
        let len = self.peek_into(self.head, &mut chunk);
        if len == 0 || !gate::serial_out(&chunk[..len]) {
            return false;
        }
        self.head += len;
        true
    }

    /// Sends everything, unless the port is stuck.
    pub fn flush(&mut self) {
        let mut refused = 0;
        while self.pending() && refused < 100_000 {
            refused = if self.pump() { 0 } else { refused + 1 };
        }
        if self.pending() {
            self.head = self.tail;
        }
    }

    fn peek_into(&self, from: usize, buffer: &mut [u8]) -> usize {
        let len = (self.tail - from).min(buffer.len());
        for (i, byte) in buffer[..len].iter_mut().enumerate() {
            // SAFETY: see `queue`.
            *byte = unsafe { queue(from + i).read() };
        }
        len
    }

    /// Takes bytes for the virtio console.
    pub fn take_for_console(&mut self, buffer: &mut [u8]) -> usize {
        let Some(from) = self.console_head else {
            return 0;
        };
        let len = self.peek_into(from, buffer);
        self.console_head = Some(from + len);
        len
    }
}

/// A byte that was received, if any.
pub fn input() -> Option<u8> {
    let status = gate::inb(0x3fd);
    // All ones: there is no port.
    (status & 1 != 0 && status != 0xff).then(|| gate::inb(0x3f8))
}
