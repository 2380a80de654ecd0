//! After a power cut at any moment of a mirror, the side that is the disk holds all that was flushed.
//!
//! Until it is decided otherwise that is the source; from then on the target, as a move on one host has it: requests
//! stand still, the target is flushed, the decision is recorded, requests go to the target.

mod mirrored;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use block::copy::Target;
use block::recorder::{Recorder, Recording};
use block::{BlockDevice, Buffer, Durability, SECTOR_SIZE};
use mirrored::{SIZE, Scene, made};
use tempfile::TempDir;

/// Sectors that are written, and far apart.
const SLOTS: u64 = 40;
const APART: u64 = SIZE / SECTOR_SIZE / SLOTS;

/// One write, and what each image had recorded when the guest was told that it, or a flush after it, is done.
struct Told {
    slot: u64,
    value: u64,
    flushed: Option<[usize; 2]>,
}

struct Guest<'s> {
    disk: &'s dyn BlockDevice,
    images: [&'s Recorder; 2],
    told: &'s mut Vec<Told>,
}

impl Guest<'_> {
    fn points(&self) -> [usize; 2] {
        self.images.map(Recorder::point)
    }

    fn write(&mut self, slot: u64, durability: Durability) {
        let value = self.told.len() as u64 + 1;
        let mut bytes: Vec<u8> = value.to_le_bytes().repeat(64);
        let buffers = [Buffer::new(&mut bytes)];
        let offset = slot * APART * SECTOR_SIZE;
        // Before it begins: it may be there from then on.
        self.told.push(Told {
            slot,
            value,
            flushed: None,
        });
        self.disk.write(&buffers, offset, durability).unwrap();
        if durability == Durability::Immediate {
            let points = self.points();
            self.told.last_mut().unwrap().flushed = Some(points);
        }
    }

    fn flush(&mut self) {
        self.disk.flush().unwrap();
        let points = self.points();
        for told in self.told.iter_mut().filter(|told| told.flushed.is_none()) {
            told.flushed = Some(points);
        }
    }

    fn goes_on(&mut self, rounds: u64) {
        for round in 0..rounds {
            let slot = (round * 7 + self.told.len() as u64) % SLOTS;
            self.write(slot, Durability::Flushed);
            if round % 5 == 4 {
                self.write((slot + 3) % SLOTS, Durability::Immediate);
            }
            if round % 9 == 8 {
                self.flush();
            }
        }
    }
}

/// What image `side` holds after a power cut at `point` is not older than what was flushed by then.
fn holds_what_was_flushed(
    path: &Path,
    recording: &Recording,
    side: usize,
    point: usize,
    told: &[Told],
) {
    recording
        .cut_power(point, point as u64, &*made(path))
        .unwrap();
    let image = File::open(path).unwrap();
    for slot in 0..SLOTS {
        let mut sector = [0; SECTOR_SIZE as usize];
        let offset = slot * APART * SECTOR_SIZE;
        image.read_exact_at(&mut sector, offset).unwrap();
        let found = u64::from_le_bytes(sector[..8].try_into().unwrap());
        assert!(sector.chunks(8).all(|word| word == &sector[..8]), "torn");
        let writes = told.iter().filter(|told| told.slot == slot);
        let flushed = writes.filter(|told| told.flushed.is_some_and(|at| at[side] <= point));
        let least = flushed.map(|told| told.value).max().unwrap_or(0);
        assert!(
            found >= least,
            "slot {slot} of image {side} at {point}: {found}, not {least}"
        );
    }
}

#[test]
fn the_side_that_is_the_disk_holds_all_that_was_flushed_wherever_the_power_is_cut() {
    let mut scene = Scene::recorded();
    let mut told = Vec::new();
    let (source, target) = (scene.source.clone(), scene.target.clone());
    let images = [&*source, &*target];
    let mirror = scene.mirror.clone();
    let mut guest = Guest {
        disk: &*mirror,
        images,
        told: &mut told,
    };
    guest.goes_on(60);
    let pass = scene
        .copy
        .all_beside(Target::Blank, &mirror, &scene.steering);
    pass.unwrap();
    guest.goes_on(60);
    // Requests stand still, the target is flushed, and this is what is recorded.
    assert!(mirror.is_quiet() && mirror.is_whole() && scene.copy.left() == 0);
    target.flush().unwrap();
    let decided = guest.points();
    // All that was done is there, flushed by the guest or not.
    let done = guest.told.len();
    for told in guest.told.iter_mut() {
        told.flushed.get_or_insert(decided);
    }
    let mut guest = Guest {
        disk: &*target,
        images,
        told: &mut told,
    };
    guest.goes_on(90);
    guest.flush();
    assert!(told.len() > done);
    let recordings = images.map(Recorder::recording);
    // Each is flushed, which is of no use there.
    let memory = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new());
    let memory = memory.unwrap();
    let path = memory.path().join("cut");
    let before = (0..decided[0]).step_by((decided[0] / 220).max(1));
    assert!(before.len() >= 200, "{before:?}");
    for point in before {
        holds_what_was_flushed(&path, &recordings[0], 0, point, &told[..done]);
    }
    let after = decided[1]..=recordings[1].points();
    assert!(after.clone().count() >= 200, "{after:?}");
    for point in after {
        holds_what_was_flushed(&path, &recordings[1], 1, point, &told);
    }
    // A mirror flushes both: the target too has, at any moment, what the guest was told is flushed since it is whole.
    for point in (0..decided[1]).step_by((decided[1] / 40).max(1)) {
        let flushed: Vec<Told> = told[..done]
            .iter()
            .filter(|told| told.flushed.is_some_and(|at| at[1] <= point))
            .map(|told| Told { ..*told })
            .collect();
        holds_what_was_flushed(&path, &recordings[1], 1, point, &flushed);
    }
}
