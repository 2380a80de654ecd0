//! Maps of units as they travel: one bit for each, least significant first.

use std::ops::Range;

use crate::error::Error;
use crate::wire::pull::{MAX_MAPPED, Units, map_len};

/// The units of a volume that has `units` of them, in pieces that a frame has room for.
pub(super) fn pieces(volume: u16, units: u64) -> impl Iterator<Item = Units> {
    (0..units)
        .step_by(MAX_MAPPED as usize)
        .map(move |first| Units {
            volume,
            first,
            count: (units - first).min(MAX_MAPPED.into()) as u32,
        })
}

/// Sets the bits of `units`, counted from the first of the map.
pub(super) fn set(map: &mut [u8], units: Range<u64>) {
    for unit in units {
        if let Some(byte) = map.get_mut((unit / 8) as usize) {
            *byte |= 1 << (unit % 8);
        }
    }
}

/// Whether the bit of `unit` is set, counted from the first of the map.
pub(super) fn is_set(map: &[u8], unit: u64) -> bool {
    map.get((unit / 8) as usize)
        .is_some_and(|byte| byte & 1 << (unit % 8) != 0)
}

/// # Errors
/// [`Error::Protocol`] when the map of `count` units has another length or bits that are of none.
pub(super) fn check(map: &[u8], count: u32) -> Result<(), Error> {
    let spare = (map_len(count) * 8) as u32 - count;
    let last = map.last().copied().unwrap_or(0);
    if map.len() == map_len(count) && u32::from(last) >> (8 - spare) == 0 {
        return Ok(());
    }
    Err(Error::Protocol(
        "a map has bits of units that are none".into(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_all_units_once() {
        let most = u64::from(MAX_MAPPED);
        for units in [0, 1, most - 1, most, most + 1, 3 * most + 7] {
            let mut next = 0;
            for piece in pieces(3, units) {
                assert_eq!((piece.volume, piece.first), (3, next));
                assert!((1..=MAX_MAPPED).contains(&piece.count));
                next += u64::from(piece.count);
            }
            assert_eq!(next, units);
        }
    }

    #[test]
    fn bits_of_no_unit_are_refused() {
        for (map, count, fits) in [
            (&[0xff][..], 8, true),
            (&[0x7f], 7, true),
            (&[0xff], 7, false),
            (&[0xff, 1], 9, true),
            (&[0xff, 2], 9, false),
            (&[0xff], 9, false),
            (&[0xff, 0], 8, false),
        ] {
            assert_eq!(check(map, count).is_ok(), fits, "{map:?}, {count}");
        }
        let mut map = [0; 2];
        set(&mut map, 3..10);
        assert_eq!(map, [0xf8, 0x03]);
        assert!(is_set(&map, 9) && !is_set(&map, 2) && !is_set(&map, 16));
    }
}
