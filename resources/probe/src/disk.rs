//! Self-describing blocks on virtio-blk.
//!
//! A block is 4 KiB: magic, block number, generation, first generation of its run, generation up to
//! which all was flushed, number of blocks, then content, and the checksum in the last word.
//! Generation `g` is written to block `(g - 1) % blocks`, so that what a block must hold follows from
//! the flushed generation alone, also for a later run.

use core::mem::offset_of;

use crate::clock::{Clock, peek, poke, tsc};
use crate::options::{Block, Options};
use crate::serial::Serial;
use crate::shared::fault;
use crate::units::mix;
use crate::virtio::{Buffer, Device, QueueMemory};

const MAGIC: u64 = 0x4b4c_4245_424f_5250;
const BLOCK_SIZE: u64 = 4096;
const FLUSH_EVERY: u64 = 8;

#[repr(C, align(4096))]
struct Memory {
    data: [u64; 512],
    header: [u32; 4],
    status: u8,
}

static mut QUEUE: QueueMemory = QueueMemory::NEW;
static mut MEMORY: Memory = Memory {
    data: [0; 512],
    header: [0; 4],
    status: 0,
};

#[derive(Clone, Copy)]
enum Step {
    Scan(u64),
    Write,
    Flush,
    Read(u64),
}

/// What the scan at the start found.
#[derive(Default)]
struct Found {
    valid: u64,
    newest: u64,
    run: u64,
    flushed: u64,
}

pub struct Disk {
    device: Device,
    blocks: u64,
    step: Step,
    busy: bool,
    /// A second scan compares with what the first one found.
    judging: bool,
    found: Found,
    check: bool,
    first: u64,
    acknowledged: u64,
    flushed: u64,
    period: u64,
    next_at: u64,
    read_turn: u64,
    pub written: u64,
    pub verified: u64,
}

/// Address of a field of `MEMORY`.
fn part(offset: usize) -> u64 {
    &raw const MEMORY as u64 + offset as u64
}

fn block_checksum() -> u64 {
    let data = part(offset_of!(Memory, data));
    (0..511).fold(1, |sum, i| mix(sum, peek(data + i * 8)))
}

fn word(i: u64) -> u64 {
    peek(part(offset_of!(Memory, data)) + i * 8)
}

impl Disk {
    pub fn new(base: u64, options: &Options, clock: &Clock) -> Option<Self> {
        // VIRTIO_BLK_F_FLUSH
        let device = Device::new(base, 0, &raw mut QUEUE, 1 << 9)?;
        let blocks = (device.config_u64(0) * 512).min(options.block_size) / BLOCK_SIZE;
        (blocks > 0).then_some(Self {
            device,
            blocks,
            step: Step::Scan(0),
            busy: false,
            judging: false,
            found: Found::default(),
            check: options.block == Block::Check,
            first: 0,
            acknowledged: 0,
            flushed: 0,
            period: clock.cycles_of_us(1_000_000 / options.block_rate),
            next_at: 0,
            read_turn: 0,
            written: 0,
            verified: 0,
        })
    }

    /// Starts what is due or takes what is done; never waits.
    pub fn poll(&mut self, out: &mut Serial) {
        if self.busy {
            if self.device.completed().is_none() {
                return;
            }
            self.busy = false;
            let status: u8 = peek(part(offset_of!(Memory, status)));
            if status == 0 {
                self.done(out);
            } else {
                let (what, at) = match self.step {
                    Step::Scan(b) | Step::Read(b) => ("block-read", b),
                    Step::Write => ("block-write", self.acknowledged % self.blocks),
                    Step::Flush => ("block-flush", self.flushed),
                };
                fault(what, at, 0, status.into());
                self.next_at = tsc() + self.period;
                if let Step::Scan(block) = self.step {
                    self.advance_scan(block, out);
                }
            }
            return;
        }
        if tsc() < self.next_at {
            return;
        }
        self.next_at = tsc() + self.period;
        match self.step {
            Step::Scan(block) | Step::Read(block) => self.start(0, block, true),
            Step::Write => {
                self.compose();
                self.start(1, self.acknowledged % self.blocks, true);
            }
            Step::Flush => self.start(4, 0, false),
        }
    }

    fn start(&mut self, kind: u32, block: u64, data: bool) {
        let memory = part(offset_of!(Memory, data));
        let header = part(offset_of!(Memory, header));
        let status = part(offset_of!(Memory, status));
        poke(header, kind);
        poke(header + 4, 0u32);
        poke(header + 8, block * (BLOCK_SIZE / 512));
        poke(status, 0xffu8);
        let head = Buffer {
            address: header,
            len: 16,
            device_writes: false,
        };
        let body = Buffer {
            address: memory,
            len: 4096,
            device_writes: kind == 0,
        };
        let tail = Buffer {
            address: status,
            len: 1,
            device_writes: true,
        };
        self.busy = true;
        if data {
            self.device.submit(&[head, body, tail]);
        } else {
            self.device.submit(&[head, tail]);
        }
    }

    fn compose(&self) {
        let data = part(offset_of!(Memory, data));
        let generation = self.acknowledged + 1;
        let block = self.acknowledged % self.blocks;
        let head = [
            MAGIC,
            block,
            generation,
            self.first,
            self.flushed,
            self.blocks,
        ];
        for i in 0..511u64 {
            let content = head.get(i as usize).copied();
            poke(data + i * 8, content.unwrap_or_else(|| mix(generation, i)));
        }
        poke(data + 511 * 8, block_checksum());
    }

    fn done(&mut self, out: &mut Serial) {
        match self.step {
            Step::Scan(block) => {
                if self.judging {
                    self.judge(block);
                } else {
                    self.collect(block);
                }
                // The scan is paced by the device alone.
                self.next_at = 0;
                self.advance_scan(block, out);
            }
            Step::Write => {
                self.acknowledged += 1;
                self.written += 1;
                self.step = if self.acknowledged % FLUSH_EVERY == 0 {
                    Step::Flush
                } else if self.acknowledged % 2 == 0 {
                    self.next_read()
                } else {
                    Step::Write
                };
            }
            Step::Flush => {
                self.flushed = self.acknowledged;
                self.step = self.next_read();
            }
            Step::Read(block) => {
                self.verified += 1;
                let expected = self.newest_of(block, self.acknowledged);
                self.compare(block, expected);
                self.step = Step::Write;
            }
        }
    }

    /// A block that this run has written: every other time the one just written, else one in turn.
    fn next_read(&mut self) -> Step {
        let count = (self.acknowledged - self.first + 1).min(self.blocks);
        self.read_turn += 1;
        let back = if self.read_turn % 2 == 0 {
            0
        } else {
            self.read_turn / 2 % count
        };
        Step::Read((self.acknowledged - 1 - back) % self.blocks)
    }

    /// The newest generation up to `limit` that belongs to this block; 0 when there is none.
    fn newest_of(&self, block: u64, limit: u64) -> u64 {
        if limit <= block {
            0
        } else {
            (limit - 1 - block) / self.blocks * self.blocks + block + 1
        }
    }

    fn compare(&self, block: u64, expected: u64) {
        if word(0) != MAGIC || block_checksum() != word(511) {
            fault("block-torn", block, word(511), block_checksum());
        } else if word(1) != block {
            fault("block-misplaced", block, block, word(1));
        } else if word(2) != expected {
            fault("block-generation", block, expected, word(2));
        }
    }

    fn collect(&mut self, block: u64) {
        let ours = word(0) == MAGIC && word(1) == block && word(5) == self.blocks;
        if ours && block_checksum() == word(511) {
            self.found.valid += 1;
            if word(2) > self.found.newest {
                self.found.newest = word(2);
                self.found.run = word(3);
            }
            self.found.flushed = self.found.flushed.max(word(4));
        }
    }

    /// Compares a block with what must have survived: all that was known to be flushed.
    fn judge(&mut self, block: u64) {
        self.verified += 1;
        let must = self.newest_of(block, self.found.flushed);
        let of_this_run = must >= self.found.run && must > 0;
        let blank = (0..512).all(|i| word(i) == 0);
        if blank {
            if of_this_run {
                fault("block-lost", block, must, 0);
            }
        } else if word(0) != MAGIC || block_checksum() != word(511) {
            fault("block-torn", block, word(511), block_checksum());
        } else if word(1) != block || word(5) != self.blocks {
            fault("block-misplaced", block, block, word(1));
        } else if of_this_run && word(2) < must {
            fault("block-stale", block, must, word(2));
        }
    }

    fn advance_scan(&mut self, block: u64, out: &mut Serial) {
        if block + 1 < self.blocks {
            self.step = Step::Scan(block + 1);
            return;
        }
        if self.check && !self.judging {
            self.judging = true;
            self.step = Step::Scan(0);
            return;
        }
        out.line(format_args!(
            "blocks checked={} blocks={} valid={} newest={} flushed={}",
            u8::from(self.check),
            self.blocks,
            self.found.valid,
            self.found.newest,
            self.found.flushed
        ));
        // A run begins with a round of its own, so that every block it judges is one it wrote.
        self.acknowledged = self.found.newest.div_ceil(self.blocks) * self.blocks;
        self.flushed = self.found.flushed;
        self.first = self.acknowledged + 1;
        self.step = Step::Write;
    }
}
