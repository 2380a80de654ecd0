//! Lines that any CPU has for the serial port, which CPU 0 alone sends.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const QUEUE: usize = 64;

/// A line while it is made; what does not fit is cut off.
#[derive(Clone, Copy)]
pub struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl Line {
    pub const NEW: Self = Self {
        bytes: [0; 512],
        len: 0,
    };

    /// All of it, and its end.
    pub fn ended(&mut self) -> &[u8] {
        self.bytes[self.len] = b'\n';
        &self.bytes[..=self.len]
    }

    pub fn text(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("")
    }
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for &byte in s.as_bytes() {
            if self.len < self.bytes.len() - 1 {
                self.bytes[self.len] = byte;
                self.len += 1;
            }
        }
        Ok(())
    }
}

static LOCK: AtomicBool = AtomicBool::new(false);
static HEAD: AtomicUsize = AtomicUsize::new(0);
static TAIL: AtomicUsize = AtomicUsize::new(0);
static mut LINES: [Line; QUEUE] = [Line::NEW; QUEUE];

fn line(i: usize) -> *mut Line {
    // SAFETY: the index is within the array.
    unsafe { (&raw mut LINES).cast::<Line>().add(i % QUEUE) }
}

/// Whether so many lines have room; another CPU may still take it.
pub fn room(lines: usize) -> bool {
    TAIL.load(Ordering::Relaxed) - HEAD.load(Ordering::Acquire) + lines <= QUEUE
}

/// Queues a line; false when there is no room for it.
pub fn post(arguments: fmt::Arguments<'_>) -> bool {
    while LOCK.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    let tail = TAIL.load(Ordering::Relaxed);
    let fits = tail - HEAD.load(Ordering::Acquire) < QUEUE;
    if fits {
        // SAFETY: the lock is held, and CPU 0 reads only lines before TAIL.
        let line = unsafe { &mut *line(tail) };
        line.len = 0;
        let _ = line.write_fmt(arguments);
        TAIL.store(tail + 1, Ordering::Release);
    }
    LOCK.store(false, Ordering::Release);
    fits
}

/// Hands the oldest line to `send`; false when there is none. For CPU 0 only.
pub fn send(send: impl FnOnce(&str)) -> bool {
    let head = HEAD.load(Ordering::Relaxed);
    if head == TAIL.load(Ordering::Acquire) {
        return false;
    }
    // SAFETY: the line was published by the store to TAIL, and is not reused before HEAD moves.
    send(unsafe { &*line(head) }.text());
    HEAD.store(head + 1, Ordering::Release);
    true
}
