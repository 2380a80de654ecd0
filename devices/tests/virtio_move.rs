//! A disk that is moved at any point goes on where it was.

#[path = "common/mod.rs"]
mod common;
#[path = "common/disk.rs"]
mod disk;

use std::collections::HashSet;

use common::{BUFFERS, Driver, EVENT_IDX, readable, writable};
use disk::{IOERR, OK, SECTORS, T_FLUSH, T_ZERO, create, device, open, range};
use proptest::prelude::*;
use tempfile::TempDir;

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

#[derive(Debug, Clone)]
enum Step {
    Write {
        queue: usize,
        sector: u64,
        sectors: u64,
        seed: u8,
        indirect: bool,
    },
    Read {
        queue: usize,
        sector: u64,
        sectors: u64,
        indirect: bool,
    },
    Zero {
        sector: u64,
        sectors: u32,
        unmap: bool,
    },
    Flush,
    PauseAndResume,
    /// To another device, in the same memory and on the same disk.
    Move,
    /// The state came over, but the source goes on after all.
    MoveFails,
}

fn step() -> impl Strategy<Value = Step> {
    let place = (0..SECTORS + 4, 1u64..9);
    prop_oneof![
        4 => (0usize..2, place.clone(), any::<u8>(), any::<bool>()).prop_map(
            |(queue, (sector, sectors), seed, indirect)| {
                Step::Write { queue, sector, sectors, seed, indirect }
            }
        ),
        4 => (0usize..2, place.clone(), any::<bool>()).prop_map(
            |(queue, (sector, sectors), indirect)| Step::Read { queue, sector, sectors, indirect }
        ),
        1 => (place, any::<bool>()).prop_map(|((sector, sectors), unmap)| {
            Step::Zero { sector, sectors: sectors as u32, unmap }
        }),
        1 => Just(Step::Flush),
        1 => Just(Step::PauseAndResume),
        1 => Just(Step::Move),
        1 => Just(Step::MoveFails),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn disk_agrees_with_a_model_wherever_it_is_moved(
        steps in prop::collection::vec(step(), 1..60),
        without in prop::sample::select(vec![0, EVENT_IDX]),
    ) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("disk.raw");
        create(&path);
        let mut driver = Driver::new(device(open(&path), 2));
        driver.start(without);
        let mut model = vec![0u8; SECTORS as usize * 512];
        for step in steps {
            match step {
                Step::Write { queue, sector, sectors, seed, indirect } => {
                    let bytes = pattern(sectors as usize * 512, seed);
                    let status = driver.disk_write(queue, sector, &bytes, indirect);
                    let fits = sector + sectors <= SECTORS;
                    prop_assert_eq!(status, if fits { OK } else { IOERR });
                    if fits {
                        model[sector as usize * 512..][..bytes.len()].copy_from_slice(&bytes);
                    }
                }
                Step::Read { queue, sector, sectors, indirect } => {
                    let len = sectors as usize * 512;
                    let (status, bytes) = driver.disk_read(queue, sector, len as u32, indirect);
                    let fits = sector + sectors <= SECTORS;
                    prop_assert_eq!(status, if fits { OK } else { IOERR });
                    prop_assert!(!fits || bytes == model[sector as usize * 512..][..len]);
                }
                Step::Zero { sector, sectors, unmap } => {
                    let payload = range(sector, sectors, u32::from(unmap));
                    let fits = sector + u64::from(sectors) <= SECTORS;
                    let status = driver.disk_other(0, T_ZERO, 0, &payload);
                    prop_assert_eq!(status, if fits { OK } else { IOERR });
                    if fits {
                        model[sector as usize * 512..][..sectors as usize * 512].fill(0);
                    }
                }
                Step::Flush => prop_assert_eq!(driver.disk_other(1, T_FLUSH, 0, &[]), OK),
                Step::PauseAndResume => {
                    driver.transport.pause().unwrap();
                    driver.transport.resume().unwrap();
                }
                Step::Move | Step::MoveFails => {
                    driver.transport.pause().unwrap();
                    let state = driver.transport.save().unwrap();
                    let json = serde_json::to_string(&state).unwrap();
                    let next = driver.moved_to(device(open(&path), 2));
                    next.transport.pause().unwrap();
                    next.transport.load(serde_json::from_str(&json).unwrap()).unwrap();
                    prop_assert_eq!(next.transport.save().unwrap(), state);
                    if matches!(step, Step::Move) {
                        driver = next;
                    }
                    driver.transport.resume().unwrap();
                }
            }
        }
    }

    #[test]
    fn requests_offered_before_a_move_are_all_done_exactly_once_after_it(
        before in 0usize..40, notified: bool, without in prop::sample::select(vec![0, EVENT_IDX]),
    ) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("disk.raw");
        create(&path);
        let mut driver = Driver::new(device(open(&path), 1));
        driver.start(without);
        driver.put(BUFFERS, &T_FLUSH.to_le_bytes());
        let mut heads = HashSet::new();
        for i in 0..before {
            let status = BUFFERS + 0x1000 + i as u64;
            driver.put(status, &[0xff]);
            heads.insert(driver.offer(0, &[readable(BUFFERS, 16), writable(status, 1)], false));
        }
        if notified {
            driver.notify(0);
        }
        driver.transport.pause().unwrap();
        let state = driver.transport.save().unwrap();
        let mut next = driver.moved_to(device(open(&path), 1));
        drop(driver);
        next.transport.pause().unwrap();
        let pending = state.first.interrupt_status;
        next.transport.load(state).unwrap();
        prop_assert_eq!(next.interrupt.count(), 0);
        next.transport.resume().unwrap();
        prop_assert!(pending == 0 || next.interrupt.count() > 0);
        for _ in 0..before {
            let (head, _) = next.wait_used(0);
            prop_assert!(heads.remove(&head));
        }
        prop_assert_eq!(next.poll(0), None);
        let statuses = next.bytes(BUFFERS + 0x1000, before);
        prop_assert_eq!(statuses, vec![OK; before]);
        prop_assert_eq!(next.disk_write(0, 0, &[1; 512], false), OK);
    }
}
