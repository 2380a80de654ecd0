//! Bytes of an endless stream that are known from their position alone.

/// Not a power of two, so that a piece that is missing or repeated shifts what follows.
const PERIOD: usize = (1 << 20) - 3;
/// Longest piece that is sent or compared at once.
pub const MOST: usize = 64 << 10;

/// The stream, from its beginning.
#[derive(Debug)]
pub struct Pattern {
    /// One period and as much of the next as a piece may reach into.
    bytes: Vec<u8>,
    position: u64,
}

impl Pattern {
    /// The stream that belongs to a seed.
    pub fn new(seed: u64) -> Self {
        let mut value = seed | 1;
        let mut bytes = Vec::with_capacity(PERIOD + MOST + 8);
        while bytes.len() < PERIOD {
            value ^= value << 13;
            value ^= value >> 7;
            value ^= value << 17;
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        bytes.truncate(PERIOD);
        bytes.extend_from_within(..MOST);
        Self { bytes, position: 0 }
    }

    /// Bytes that went by.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next bytes, at most [`MOST`]; they stay the next ones until [`Self::advance`].
    pub fn next(&self, length: usize) -> &[u8] {
        let at = usize::try_from(self.position % PERIOD as u64).unwrap_or(0);
        &self.bytes[at..at + length.min(MOST)]
    }

    /// Goes on by that many bytes.
    pub fn advance(&mut self, length: usize) {
        self.position += length as u64;
    }

    /// Holds received bytes, at most [`MOST`], against the stream, and goes on behind them.
    ///
    /// # Errors
    /// With the position of the first wrong byte.
    pub fn compare(&mut self, received: &[u8]) -> Result<(), String> {
        let expected = self.next(received.len());
        if let Some(at) = (expected != received)
            .then(|| expected.iter().zip(received).position(|(a, b)| a != b))
            .flatten()
        {
            return Err(format!(
                "byte {} of the stream is {:#x}, not {:#x}",
                self.position + at as u64,
                received[at],
                expected[at]
            ));
        }
        self.advance(received.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_compares_with_itself_beyond_its_period() {
        let (mut from, mut to) = (Pattern::new(7), Pattern::new(7));
        while from.position() < 3 * PERIOD as u64 {
            let piece = from.next(50_001).to_vec();
            from.advance(piece.len());
            to.compare(&piece).unwrap();
        }
        assert_eq!(from.position(), to.position());
    }

    #[test]
    fn changed_missing_and_repeated_bytes_are_found() {
        let pattern = || Pattern::new(7);
        let mut piece = pattern().next(1000).to_vec();
        assert!(pattern().compare(&piece[1..]).is_err());
        assert!(Pattern::new(9).compare(&piece).is_err());
        let mut repeated = pattern();
        repeated.compare(&piece).unwrap();
        assert!(repeated.compare(&piece).is_err());
        piece[999] ^= 1;
        let error = pattern().compare(&piece).unwrap_err();
        assert!(error.contains("byte 999 "), "{error}");
    }
}
