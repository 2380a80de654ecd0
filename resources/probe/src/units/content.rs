//! The words of a unit.
//!
//! A unit is 512 bytes to 4 KiB. Words 0 to 6 tell what it is, the last is a checksum over all others,
//! and word 62 of each sector is the sequence again, so that a unit of two versions is known as such.

use super::mix::mix;

const MAGIC: u64 = 0x5449_4e55_4542_4f52;
/// Words of a sector.
const SECTOR: usize = 64;
/// Where in each sector the sequence stands again.
const STAMP: usize = 62;

/// Whose units they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Of the disk.
    pub disk: u64,
    /// What the content is made of.
    pub seed: u64,
    /// One boot of the guest.
    pub run: u64,
}

/// What a unit tells of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Whose it is.
    pub identity: Identity,
    /// Sector of the disk (512 bytes each) where it was written.
    pub sector: u64,
    /// The change of the disk that wrote it.
    pub sequence: u64,
    /// When it was written, all changes up to this one were flushed.
    pub flushed: u64,
}

/// What was found in a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// All zero.
    Blank,
    /// As it was written.
    Whole(Head),
    /// Of two versions: the sequence at its begin, and another one; 0 where it is blank.
    Torn {
        /// At the begin.
        head: u64,
        /// In a later sector.
        other: u64,
    },
    /// Neither: the checksum that stands there, and that of the content.
    Damaged {
        /// In the unit.
        stored: u64,
        /// Over its content.
        actual: u64,
    },
}

fn checksum(words: &[u64]) -> u64 {
    words
        .iter()
        .zip((1u64..).step_by(2))
        .fold(0u64, |sum, (word, factor)| {
            sum.wrapping_add(word.wrapping_mul(factor))
        })
}

/// Writes a unit of whole sectors.
pub fn compose(words: &mut [u64], head: &Head) {
    let Head {
        identity,
        sector,
        sequence,
        flushed,
    } = *head;
    let first = mix(identity.seed ^ identity.run, mix(sector, sequence));
    let mut lanes = [
        first | 1,
        mix(first, 1) | 1,
        mix(first, 2) | 1,
        mix(first, 3) | 1,
    ];
    for four in words.chunks_exact_mut(4) {
        for lane in &mut lanes {
            *lane ^= *lane << 13;
            *lane ^= *lane >> 7;
            *lane ^= *lane << 17;
        }
        four.copy_from_slice(&lanes);
    }
    for stamp in words.iter_mut().skip(STAMP).step_by(SECTOR) {
        *stamp = sequence;
    }
    let told = [
        MAGIC,
        identity.disk,
        sector,
        sequence,
        identity.seed,
        identity.run,
        flushed,
    ];
    for (word, told) in words.iter_mut().zip(told) {
        *word = told;
    }
    if let Some((last, others)) = words.split_last_mut() {
        *last = checksum(others);
    }
}

/// What a unit of whole sectors holds.
pub fn inspect(words: &[u64]) -> Content {
    let Some((&stored, others)) = words.split_last() else {
        return Content::Blank;
    };
    let word = |i: usize| words.get(i).copied().unwrap_or(0);
    let ours = word(0) == MAGIC;
    if !ours && words.iter().all(|&word| word == 0) {
        return Content::Blank;
    }
    let actual = checksum(others);
    if ours && actual == stored {
        return Content::Whole(Head {
            identity: Identity {
                disk: word(1),
                seed: word(4),
                run: word(5),
            },
            sector: word(2),
            sequence: word(3),
            flushed: word(6),
        });
    }
    let begins_blank = words.iter().take(SECTOR).all(|&word| word == 0);
    let head = word(3);
    let mut stamps = words.iter().skip(STAMP).step_by(SECTOR).copied();
    match stamps.find(|&stamp| stamp != head) {
        Some(other) if ours || begins_blank => Content::Torn { head, other },
        _ => Content::Damaged { stored, actual },
    }
}
