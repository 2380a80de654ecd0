//! Mutations of inputs that depend on a seed alone.

/// Numbers at which code has its edges.
const EDGES: [u64; 14] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x1000,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// Makes inputs out of others.
#[derive(Debug, Clone)]
pub struct Mutator {
    state: u64,
}

impl Mutator {
    /// The mutator of try number `number` of a run with `seed`.
    pub fn new(seed: u64, number: u64) -> Self {
        Self {
            state: seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        }
    }

    /// The next pseudo-random number (splitmix64; Steele, Lea and Flood 2014).
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is positive.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// One of `corpus`, changed in a few places, at most `longest` bytes.
    pub fn mutate(&mut self, corpus: &[Vec<u8>], words: &[&str], longest: usize) -> Vec<u8> {
        let pick = |this: &mut Self| match corpus.len() {
            0 => &[][..],
            len => &corpus[this.below(len)][..],
        };
        let mut input = pick(self).to_vec();
        for _ in 0..=self.below(5) {
            let at = self.below(input.len() + 1);
            match self.below(11) {
                0 | 1 => self.at_byte(&mut input, |this, byte| *byte ^= 1 << this.below(8)),
                2 => self.at_byte(&mut input, |this, byte| *byte = this.next() as u8),
                3 => self.at_byte(&mut input, |this, byte| {
                    *byte = byte.wrapping_add(this.below(9) as u8).wrapping_sub(4);
                }),
                4 | 5 => self.write_edge(&mut input, at),
                6 => {
                    let end = (at + self.below(16) + 1).min(input.len());
                    input.drain(at..end);
                }
                7 => {
                    let len = self.below(16) + 1;
                    let bytes: Vec<u8> = (0..len).map(|_| self.next() as u8).collect();
                    input.splice(at..at, bytes);
                }
                8 if !words.is_empty() => {
                    let word = words[self.below(words.len())];
                    let over = self.below(2) * word.len();
                    let end = (at + over).min(input.len());
                    input.splice(at..end, word.bytes());
                }
                9 => {
                    // A piece of its own, again.
                    let from = self.below(input.len() + 1);
                    let end = (from + self.below(64)).min(input.len());
                    let piece = input[from..end].to_vec();
                    input.splice(at..at, piece);
                }
                _ => {
                    let other = pick(self);
                    let from = self.below(other.len() + 1);
                    input.truncate(at);
                    input.extend_from_slice(&other[from..]);
                }
            }
        }
        input.truncate(longest);
        input
    }

    fn at_byte(&mut self, input: &mut [u8], change: impl FnOnce(&mut Self, &mut u8)) {
        if !input.is_empty() {
            let at = self.below(input.len());
            change(self, &mut input[at]);
        }
    }

    fn write_edge(&mut self, input: &mut [u8], at: usize) {
        let width = 1 << self.below(4);
        let number = EDGES[self.below(EDGES.len())].wrapping_add(self.below(3) as u64);
        let bytes = number.wrapping_sub(1).to_le_bytes();
        for (to, from) in input[at..].iter_mut().zip(&bytes[..width]) {
            *to = *from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_try_can_be_repeated_and_differs_from_others() {
        let corpus = [b"abcdefgh".to_vec(), vec![0; 40]];
        let make = |seed, number| Mutator::new(seed, number).mutate(&corpus, &["word"], 64);
        assert_eq!(make(7, 3), make(7, 3));
        let mut all: Vec<_> = (0..200).map(|number| make(7, number)).collect();
        assert!(all.iter().all(|input| input.len() <= 64));
        all.sort();
        all.dedup();
        assert!(all.len() > 150, "{}", all.len());
    }
}
