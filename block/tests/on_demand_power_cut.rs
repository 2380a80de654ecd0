//! After a power cut at any moment a disk that lies elsewhere in part holds all that was flushed, and says of nothing that
//! it is here which is not.

mod origins;

use std::sync::Arc;

use block::on_demand::{BLOCK, Origin, PresenceMap, Pull};
use block::recorder::Recorder;
use block::{
    Arrived, BlockDevice, Buffer, Discarded, Durability, Extent, Identity, Result, ZeroMode,
};
use origins::{Answers, Kind, TestOrigin, about, content, made, over, when_come};
use tempfile::TempDir;

const SIZE: u64 = 12 * BLOCK;
/// How many cuts are tried, each with a seed of its own.
const POINTS: usize = 240;

/// A part of a disk as a disk: so image and map are of one recording, with one order.
struct Part {
    of: Arc<dyn BlockDevice>,
    start: u64,
    size: u64,
}

impl BlockDevice for Part {
    fn size(&self) -> u64 {
        self.size
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, buffers: &[Buffer<'_>], offset: u64) -> Result<()> {
        self.of.read(buffers, self.start + offset)
    }
    fn write(&self, buffers: &[Buffer<'_>], offset: u64, durability: Durability) -> Result<()> {
        self.of.write(buffers, self.start + offset, durability)
    }
    fn flush(&self) -> Result<()> {
        self.of.flush()
    }
    fn has_unflushed_writes(&self) -> bool {
        self.of.has_unflushed_writes()
    }
    fn discard(&self, offset: u64, len: u64) -> Result<Discarded> {
        self.of.discard(self.start + offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.of.write_zeroes(self.start + offset, len, mode)
    }
    fn extents(&self, _: u64, _: u64, _: usize) -> Result<Vec<Extent>> {
        // Nobody asks.
        Ok(Vec::new())
    }
    fn tell_arrivals(&self, _: Arrived) {}
    fn identity(&self) -> Identity {
        self.of.identity()
    }
}

fn parts(of: &Arc<dyn BlockDevice>) -> [Arc<dyn BlockDevice>; 2] {
    [(0, SIZE), (SIZE, PresenceMap::length(SIZE))].map(|(start, size)| {
        let of = of.clone();
        Arc::new(Part { of, start, size }) as Arc<dyn BlockDevice>
    })
}

/// What a sector may hold after a cut: what it held when the last flush began, or anything written since.
#[derive(Clone)]
struct Sectors(Vec<Vec<u8>>);

impl Sectors {
    fn changed(&mut self, at: u64, len: u64, value: u8) {
        for sector in &mut self.0[(at / 512) as usize..((at + len) / 512) as usize] {
            sector.push(value);
        }
    }

    fn flushed(&mut self) {
        for sector in &mut self.0 {
            sector.drain(..sector.len() - 1);
        }
    }
}

/// What is done to the disk, with numbers that follow from `seed`.
fn work(
    disk: &dyn BlockDevice,
    told: &std::sync::mpsc::Receiver<()>,
    recorder: &Recorder,
) -> Vec<(usize, Sectors)> {
    let values = content(SIZE);
    let was: Vec<Vec<u8>> = values.chunks(512).map(|sector| vec![sector[0]]).collect();
    let mut may = Sectors(was);
    let mut checkpoints = vec![(0, may.clone())];
    let mut state = 12345_u64;
    let mut draw = |below: u64| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    for round in 0..120_u8 {
        let value = 130 + round;
        let (at, len) = if draw(2) == 0 {
            (draw(SIZE / BLOCK) * BLOCK, BLOCK)
        } else {
            let at = draw(SIZE / 512 - 8) * 512;
            (at, 512 * (1 + draw(8)))
        };
        match draw(6) {
            0 => {
                // Whatever happens from here on, it may be seen.
                may.changed(at, len, 0);
                checkpoints.push((recorder.point(), may.clone()));
                when_come(told, || disk.write_zeroes(at, len, ZeroMode::MayUnmap)).unwrap();
            }
            1 => {
                let mut bytes = vec![0; len as usize];
                when_come(told, || disk.read(&[Buffer::new(&mut bytes)], at)).unwrap();
            }
            kind => {
                may.changed(at, len, value);
                checkpoints.push((recorder.point(), may.clone()));
                let durability = if kind == 2 {
                    Durability::Immediate
                } else {
                    Durability::Flushed
                };
                let mut bytes = vec![value; len as usize];
                when_come(told, || {
                    disk.write(&[Buffer::new(&mut bytes)], at, durability)
                })
                .unwrap();
                if durability == Durability::Immediate {
                    for sector in &mut may.0[(at / 512) as usize..((at + len) / 512) as usize] {
                        sector.drain(..sector.len() - 1);
                    }
                    checkpoints.push((recorder.point(), may.clone()));
                }
            }
        }
        if draw(4) == 0 {
            disk.flush().unwrap();
            may.flushed();
            checkpoints.push((recorder.point(), may.clone()));
        }
    }
    checkpoints
}

#[test]
fn what_was_flushed_is_there_and_nothing_that_is_absent_counts_as_here() {
    for pull in [Pull::Off, Pull::Background] {
        let dir = TempDir::new().unwrap();
        let whole = SIZE + PresenceMap::length(SIZE);
        let before = dir.path().join("before");
        let disk = made(&before, whole, Kind::Raw);
        let origin = TestOrigin::new(content(SIZE), Answers::Right);
        let [_, map] = parts(&disk);
        PresenceMap::create(map, about(SIZE), &origin.allocation().unwrap()).unwrap();
        disk.flush().unwrap();
        drop(disk);
        let now = dir.path().join("now");
        std::fs::copy(&before, &now).unwrap();
        let recorder = Arc::new(Recorder::in_memory(
            origins::opened(&now, Kind::Raw),
            256 << 20,
        ));
        let [image, map] = parts(&(recorder.clone() as Arc<dyn BlockDevice>));
        let map = PresenceMap::open(map, SIZE).unwrap();
        let (disk, told) = over(image, map, origin, pull);
        let checkpoints = work(&*disk, &told, &recorder);
        drop(disk);
        assert!(recorder.is_complete());
        let recording = recorder.recording();
        let points = recording.points();
        assert!(points > POINTS, "{points}");
        let mut seen_absent = 0;
        for index in 0..=POINTS {
            let point = points * index / POINTS;
            let seed = index as u64;
            let cut = dir.path().join("cut");
            std::fs::copy(&before, &cut).unwrap();
            let disk = origins::opened(&cut, Kind::Raw);
            recording.cut_power(point, seed, &*disk).unwrap();
            let [image, map] = parts(&disk);
            let map = PresenceMap::open(map, SIZE).unwrap();
            seen_absent += u64::from(map.missing() > 0);
            let origin = TestOrigin::new(content(SIZE), Answers::Right);
            let (disk, told) = over(image, map, origin, Pull::Off);
            let mut bytes = vec![0; SIZE as usize];
            when_come(&told, || disk.read(&[Buffer::new(&mut bytes)], 0)).unwrap();
            // What was promised by then, and all that may have been seen since.
            let at = checkpoints
                .iter()
                .rposition(|(at, _)| *at <= point)
                .unwrap();
            let later = checkpoints.get(at + 1);
            for (sector, found) in bytes.chunks(512).enumerate() {
                assert!(found.iter().all(|byte| *byte == found[0]), "torn inside");
                let may = |sectors: &Sectors| sectors.0[sector].contains(&found[0]);
                assert!(
                    may(&checkpoints[at].1) || later.is_some_and(|(_, later)| may(later)),
                    "{pull:?}: point {point} of {points}, seed {seed}: sector {sector} holds {}, not one of {:?}",
                    found[0],
                    checkpoints[at].1.0[sector]
                );
            }
        }
        assert!(seen_absent > 0);
    }
}
