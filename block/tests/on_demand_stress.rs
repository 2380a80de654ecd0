//! Many at once: writers that write blocks and parts of them, readers, flushes, the background, an origin that comes and
//! goes. Every sector says which block it is of and when it was written, and nobody ever sees one that is older.

mod origins;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use block::on_demand::{BLOCK, Pull};
use block::{BlockDevice, Buffer, Durability};
use origins::{Answers, KINDS, LONG, Scene};

const BLOCKS: u64 = 96;
const SIZE: u64 = BLOCKS * BLOCK;
const SECTORS: u64 = BLOCK / 512;

/// The content of a sector: its place, and its number.
fn sector(at: u64, number: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    for chunk in bytes.chunks_exact_mut(16) {
        chunk[..8].copy_from_slice(&(at + 1).to_le_bytes());
        chunk[8..].copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

fn number(at: u64, bytes: &[u8]) -> u64 {
    let number = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
    assert_eq!(
        bytes,
        sector(at, number),
        "torn, or of another place: sector {at}"
    );
    number
}

#[test]
fn nobody_sees_what_is_older_than_what_was_written() {
    for kind in KINDS {
        let content: Vec<u8> = (0..SIZE / 512).flat_map(|at| sector(at, 0)).collect();
        let scene = Scene::new(content, kind, Pull::Background, Answers::Right);
        scene.disk.steering().set_bandwidth(Some(SIZE / 2));
        // What the newest write of each sector was that has ended; each sector has one writer.
        let newest: Arc<Vec<AtomicU64>> =
            Arc::new((0..SIZE / 512).map(|_| AtomicU64::new(0)).collect());
        let stop = AtomicBool::new(false);
        let (disk, origin) = (&*scene.disk, &scene.origin);
        std::thread::scope(|scope| {
            for worker in 0..3_u64 {
                let (newest, stop) = (newest.clone(), &stop);
                let (tell, told) = channel();
                let tell = std::sync::Mutex::new(tell);
                disk.tell_arrivals(Arc::new(move || {
                    // Nobody may be listening any more.
                    let _ = tell.lock().unwrap().send(());
                }));
                scope.spawn(move || {
                    let mut state = worker + 1;
                    let mut draw = |below: u64| {
                        state = state
                            .wrapping_mul(6364136223846793005)
                            .wrapping_add(1442695040888963407);
                        (state >> 33) % below
                    };
                    let mut round = 0;
                    while !stop.load(Ordering::Relaxed) {
                        round += 1;
                        // Writers have every third block; readers read all.
                        let block = draw(BLOCKS / 3) * 3 + worker;
                        let (first, count) = match draw(3) {
                            0 => (block * SECTORS, SECTORS),
                            1 => (block * SECTORS + draw(SECTORS), 1),
                            _ => {
                                let at = draw(SIZE / 512 - 8);
                                let before: Vec<_> = (at..at + 8)
                                    .map(|at| newest[at as usize].load(Ordering::SeqCst))
                                    .collect();
                                let mut bytes = vec![0; 8 * 512];
                                origins::when_come(&told, || {
                                    disk.read(&[Buffer::new(&mut bytes)], at * 512)
                                })
                                .unwrap();
                                for ((at, bytes), before) in
                                    (at..).zip(bytes.chunks(512)).zip(before)
                                {
                                    let found =
                                        u64::from_le_bytes(bytes[8..16].try_into().unwrap());
                                    assert!(found >= before, "sector {at}: {found} after {before}");
                                }
                                continue;
                            }
                        };
                        let mut bytes: Vec<u8> = (first..first + count)
                            .flat_map(|at| sector(at, round))
                            .collect();
                        let durability = if draw(16) == 0 {
                            Durability::Immediate
                        } else {
                            Durability::Flushed
                        };
                        origins::when_come(&told, || {
                            disk.write(&[Buffer::new(&mut bytes)], first * 512, durability)
                        })
                        .unwrap();
                        for at in first..first + count {
                            newest[at as usize].store(round, Ordering::SeqCst);
                        }
                        if draw(8) == 0 {
                            disk.flush().unwrap();
                        }
                    }
                });
            }
            let began = Instant::now();
            let mut answers = [Answers::Lost, Answers::Right].iter().cycle();
            while !disk.wait_whole(Duration::from_millis(20)) {
                assert!(began.elapsed() < LONG, "{:?}", disk.status());
                origin.answer(*answers.next().unwrap());
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(disk.finish().unwrap(), 0);
        origin.assert_each_once();
        let mut bytes = vec![0; SIZE as usize];
        disk.read(&[Buffer::new(&mut bytes)], 0).unwrap();
        for (at, bytes) in (0..).zip(bytes.chunks(512)) {
            let newest = newest[at as usize].load(Ordering::SeqCst);
            assert_eq!(number(at, bytes), newest, "{kind:?}: sector {at}");
        }
    }
}
