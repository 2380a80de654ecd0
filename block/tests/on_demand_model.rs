//! A disk that lies elsewhere in part behaves as one that is here, whatever is done to it in whatever order.

mod origins;

use block::on_demand::{BLOCK, Pull};
use block::{BlockDevice, Discarded};
use origins::{Answers, KINDS, LONG, Scene, all, content};
use proptest::prelude::*;

const SIZE: u64 = 6 * BLOCK + 1024;

#[derive(Debug, Clone, Copy)]
enum Step {
    Read(u64, u64),
    Write(u64, u64, u8),
    Zero(u64, u64),
    Discard(u64, u64),
    Flush,
    /// The process ends, and another takes the disk up.
    Reopen,
    Pull(Pull),
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    // At the edges of blocks as often as elsewhere.
    let place = || prop_oneof![(0..=SIZE / BLOCK).prop_map(|block| block * BLOCK), 0..=SIZE];
    let range = (place(), place()).prop_map(|(one, other)| {
        let (from, to) = (one.min(other), one.max(other).min(SIZE));
        (from, to - from)
    });
    range.prop_filter("something", |(_, len)| *len > 0)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => range().prop_map(|(at, len)| Step::Read(at, len)),
        4 => (range(), 1..=u8::MAX).prop_map(|((at, len), value)| Step::Write(at, len, value)),
        1 => range().prop_map(|(at, len)| Step::Zero(at, len)),
        1 => range().prop_map(|(at, len)| Step::Discard(at, len)),
        2 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => prop_oneof![Just(Pull::Off), Just(Pull::Background)].prop_map(Step::Pull),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_time: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn it_reads_as_a_disk_that_is_here(steps in prop::collection::vec(step(), 1..25)) {
        for kind in KINDS {
            let mut scene = Scene::new(content(SIZE), kind, Pull::Off, Answers::Right);
            let mut model = content(SIZE);
            for step in &steps {
                match *step {
                    Step::Read(at, len) => {
                        let read = scene.read(at, len as usize);
                        prop_assert!(read == model[at as usize..(at + len) as usize], "{kind:?} {step:?}");
                    }
                    Step::Write(at, len, value) => {
                        scene.write(at, len as usize, value);
                        model[at as usize..(at + len) as usize].fill(value);
                    }
                    Step::Zero(at, len) => {
                        scene.zero(at, len);
                        model[at as usize..(at + len) as usize].fill(0);
                    }
                    Step::Discard(at, len) => {
                        if scene.discard(at, len) == Discarded::Zero {
                            model[at as usize..(at + len) as usize].fill(0);
                        }
                    }
                    Step::Flush => scene.disk.flush().unwrap(),
                    Step::Reopen => {
                        // What was not flushed may be lost; here the process ends in peace.
                        scene.disk.flush().unwrap();
                        scene = scene.reopened(Pull::Off);
                    }
                    Step::Pull(pull) => scene.disk.set_pull(pull),
                }
            }
            scene.disk.set_pull(Pull::Background);
            prop_assert!(scene.disk.wait_whole(LONG));
            prop_assert_eq!(scene.disk.finish().unwrap(), 0);
            let image = origins::opened(&scene.dir.path().join("image"), kind);
            let same = all(&*scene.disk) == model && (kind == origins::Kind::Qcow2 || all(&*image) == model);
            prop_assert!(same, "{kind:?}");
        }
    }
}
