//! Content of filled memory: a pure function of kind, seed and page number.

use crate::units::mix;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    None,
    Zero,
    Random,
    Text,
    Duplicate,
}

impl Fill {
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zero => "zero",
            Self::Random => "random",
            Self::Text => "text",
            Self::Duplicate => "dup",
        }
    }
}

/// Different pages of `dup`; every other page is a copy of one of these.
const DISTINCT: u64 = 256;

static WORDS: [&[u8; 8]; 32] = [
    b"memory  ",
    b"page of ",
    b"the host",
    b" and the",
    b"running ",
    b"guest is",
    b" moved, ",
    b"while it",
    b" writes ",
    b"nothing ",
    b"is lost.",
    b"\nA disk ",
    b"follows ",
    b"as well:",
    b" blocks ",
    b"counted ",
    b"checked ",
    b"twice.  ",
    b"Clocks, ",
    b"in time ",
    b"go on to",
    b" tick.\n ",
    b"Sockets ",
    b"remain. ",
    b"Between ",
    b"two ends",
    b" a line ",
    b"carries ",
    b"what was",
    b" changed",
    b" before ",
    b"the end.",
];

/// Words of one page, four at a time.
struct Words {
    lanes: [u64; 4],
    fill: Fill,
}

impl Words {
    fn new(fill: Fill, seed: u64, page: u64) -> Self {
        let page = if fill == Fill::Duplicate {
            mix(seed, page) % DISTINCT
        } else {
            page
        };
        let first = mix(seed, page);
        let lanes = [
            first | 1,
            mix(first, 1) | 1,
            mix(first, 2) | 1,
            mix(first, 3) | 1,
        ];
        Self { lanes, fill }
    }

    #[inline(always)]
    fn next(&mut self) -> [u64; 4] {
        for lane in &mut self.lanes {
            *lane ^= *lane << 13;
            *lane ^= *lane >> 7;
            *lane ^= *lane << 17;
        }
        match self.fill {
            Fill::Random | Fill::Duplicate => self.lanes,
            Fill::Text => self
                .lanes
                .map(|x| u64::from_le_bytes(*WORDS[(x >> 59) as usize])),
            Fill::None | Fill::Zero => [0; 4],
        }
    }
}

/// Writes page number `page` at `address`.
pub fn write(fill: Fill, seed: u64, page: u64, address: u64) {
    let mut words = Words::new(fill, seed, page);
    let target = address as *mut [u64; 4];
    for i in 0..128 {
        // SAFETY: the page is RAM that the plan set aside for this.
        unsafe { target.add(i).write(words.next()) };
    }
}

/// Address, expected and found word of the first difference, if there is one.
pub fn verify(fill: Fill, seed: u64, page: u64, address: u64) -> Option<(u64, u64, u64)> {
    let mut words = Words::new(fill, seed, page);
    let source = address as *const [u64; 4];
    for i in 0..128 {
        let expected = words.next();
        // SAFETY: as for `write`.
        let found = unsafe { source.add(i).read() };
        if expected != found {
            let lane = (0..4)
                .find(|&lane| expected[lane] != found[lane])
                .unwrap_or(0);
            let gpa = address + i as u64 * 32 + lane as u64 * 8;
            return Some((gpa, expected[lane], found[lane]));
        }
    }
    None
}
