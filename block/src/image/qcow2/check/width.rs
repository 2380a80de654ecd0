//! Reference counts as they are written: of 1 to 64 bits.

use super::Header;

/// How wide the reference counts of an image are, and how many are in a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Width {
    order: u32,
    per_block: u64,
}

impl Width {
    pub(crate) fn of(header: &Header) -> Self {
        Self {
            order: header.refcount_order,
            per_block: (header.cluster() * 8) >> header.refcount_order,
        }
    }

    pub(crate) fn per_block(self) -> u64 {
        self.per_block
    }

    /// The largest count, as far as it is told apart.
    pub(crate) fn max(self) -> u16 {
        match self.order {
            order @ 0..4 => (1 << (1 << order)) - 1,
            _ => u16::MAX,
        }
    }

    /// The count at `index` of a block; those that are larger than the largest that is told apart are that.
    pub(crate) fn get(self, block: &[u8], index: usize) -> u16 {
        if self.order < 3 {
            let bits = 1 << self.order;
            let per_byte = 8 / bits;
            let byte = block[index / per_byte] >> ((index % per_byte) * bits);
            return u16::from(byte) & self.max();
        }
        let bytes = 1 << (self.order - 3);
        let field = &block[index * bytes..][..bytes];
        let value = field
            .iter()
            .fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
        u16::try_from(value).unwrap_or(u16::MAX)
    }

    /// Sets the count at `index` of a block; it is at most [`Width::max`].
    pub(crate) fn set(self, block: &mut [u8], index: usize, count: u16) {
        if self.order < 3 {
            let bits = 1 << self.order;
            let per_byte = 8 / bits;
            let shift = (index % per_byte) * bits;
            let byte = &mut block[index / per_byte];
            // The count is of as many bits as there are.
            *byte = *byte & !((self.max() as u8) << shift) | (count as u8) << shift;
            return;
        }
        let bytes = 1 << (self.order - 3);
        let field = &mut block[index * bytes..][..bytes];
        field.fill(0);
        match field {
            // As above.
            [low] => *low = count as u8,
            [.., high, low] => [*high, *low] = count.to_be_bytes(),
            [] => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_read_as_it_was_set_and_its_neighbours_stay() {
        for order in 0..=6 {
            let width = Width {
                order,
                per_block: (512 * 8) >> order,
            };
            let mut block = vec![0xff; 512];
            let last = width.per_block() as usize - 1;
            for index in [0, 3, 8, last] {
                for count in [0, 1, width.max()] {
                    width.set(&mut block, index, count);
                    assert_eq!(width.get(&block, index), count, "{order} {index}");
                }
                width.set(&mut block, index, 0);
            }
            let ones = (0..=last).filter(|&index| width.get(&block, index) == width.max());
            assert_eq!(ones.count(), last + 1 - 4, "{order}");
        }
    }

    #[test]
    fn counts_narrower_than_a_byte_begin_at_its_lowest_bit() {
        let width = Width {
            order: 1,
            per_block: 2048,
        };
        let mut block = vec![0; 512];
        width.set(&mut block, 1, 3);
        assert_eq!(block[0], 0b1100);
    }
}
