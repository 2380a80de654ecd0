//! A presence map says what is here, or is refused; never more than what is here.

mod origins;

use std::path::Path;

use block::Error;
use block::on_demand::{About, Allocation, BLOCK, MOST_NOTE, PresenceMap};
use origins::{Kind, about, map_storage, opened};
use tempfile::TempDir;

/// More than one page of bits.
const SIZE: u64 = 40_000 * BLOCK;
const MISSING: [u64; 4] = [0, 77, 32_448, 39_999];
const PIECE: usize = 4096;

fn allocation(size: u64) -> Allocation {
    let allocation = Allocation::none(size);
    for block in MISSING {
        allocation.add(&(block * BLOCK..(block + 1) * BLOCK));
    }
    allocation
}

fn created(path: &Path) {
    let map = PresenceMap::create(map_storage(path, SIZE), about(SIZE), &allocation(SIZE));
    assert_eq!(map.unwrap().missing(), MISSING.len() as u64);
}

fn open(path: &Path) -> block::Result<PresenceMap> {
    PresenceMap::open(opened(path, Kind::Raw), SIZE)
}

fn refusal(opened: block::Result<PresenceMap>) -> &'static str {
    match opened {
        Err(Error::PresenceMap { why, .. }) => why,
        Err(error) => panic!("{error}"),
        Ok(map) => panic!("{map:?}"),
    }
}

#[test]
fn a_map_is_found_as_it_was_made() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("map");
    created(&path);
    let map = open(&path).unwrap();
    assert_eq!(map.missing(), MISSING.len() as u64);
    assert_eq!(map.about(), &about(SIZE));
    let storage = opened(&path, Kind::Raw);
    assert_eq!(PresenceMap::read_about(&*storage).unwrap(), about(SIZE));
    assert!(storage.size() < 2 * (SIZE / BLOCK / 8) + 5 * PIECE as u64);
}

#[test]
fn a_note_has_its_bounds() {
    let dir = TempDir::new().unwrap();
    for (len, fits) in [(MOST_NOTE, true), (MOST_NOTE + 1, false)] {
        let path = dir.path().join(len.to_string());
        let about = About {
            note: vec![1; len],
            ..about(SIZE)
        };
        let made = PresenceMap::create(map_storage(&path, SIZE), about.clone(), &allocation(SIZE));
        assert_eq!(made.is_ok(), fits, "{len}");
        if fits {
            assert_eq!(open(&path).unwrap().about(), &about);
        }
    }
}

#[test]
fn a_map_of_something_else_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("map");
    created(&path);
    let other = PresenceMap::open(opened(&path, Kind::Raw), SIZE + BLOCK);
    assert!(refusal(other).contains("another size"));
    let whole = std::fs::read(&path).unwrap();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        refusal(open(&path))
    };
    assert!(with(&|bytes| bytes[0] = b'x').contains("not a presence map"));
    assert!(with(&|bytes| bytes[8] = 2).contains("another version"));
    for at in [12, 16, 23, 24, 40, 44, 300, 4063, 4064, 4095] {
        assert!(
            with(&|bytes| bytes[at] ^= 1).contains("damaged header"),
            "{at}"
        );
    }
    assert!(with(&|bytes| bytes.truncate(whole.len() - 512)).contains("not as long"));
    assert!(with(&|bytes| bytes.truncate(512)).contains("too short"));
    // The only slot of a page that was ever written.
    for at in [PIECE, PIECE + 9, 2 * PIECE - 1, 3 * PIECE + 100] {
        assert!(with(&|bytes| bytes[at] ^= 1).contains("damaged"), "{at}");
    }
    // A page in the place of another.
    let swapped = with(&|bytes| {
        let first = bytes[PIECE..2 * PIECE].to_vec();
        bytes[3 * PIECE..4 * PIECE].copy_from_slice(&first);
    });
    assert!(swapped.contains("damaged"));
}

#[test]
fn the_page_of_another_map_counts_for_nothing() {
    let dir = TempDir::new().unwrap();
    let [path, other] = ["map", "other"].map(|name| dir.path().join(name));
    created(&path);
    let about = About {
        id: [8; 16],
        ..about(SIZE)
    };
    // Of that one everything is here.
    let none = Allocation::none(SIZE);
    PresenceMap::create(map_storage(&other, SIZE), about, &none).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let theirs = std::fs::read(&other).unwrap();
    bytes[2 * PIECE..3 * PIECE].copy_from_slice(&theirs[PIECE..2 * PIECE]);
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(open(&path).unwrap().missing(), MISSING.len() as u64);
}
