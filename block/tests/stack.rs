//! A stack is one device, to which all of its layers do their work.

use std::fs::File;
use std::sync::Arc;

use block::fault::{Effect, Fault, FaultLayer, Operation};
use block::recorder::Recorder;
use block::throttle::{Limits, Throttle};
use block::tracker::{BLOCK, ChangeMap, Generation, Tracker};
use block::{Access, Content, Error, RawImage, Stack};

#[test]
fn requests_pass_through_all_layers_and_the_stack_says_which_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    File::create(&path).unwrap().set_len(4 * BLOCK).unwrap();
    let image = RawImage::open(&path, Access::ReadWrite, Content::Raw).unwrap();
    let mut stack = Stack::over(Arc::new(image), "raw");
    let plain = stack.clone();
    let faults = stack.lay(FaultLayer::new);
    let tracker = stack.lay(|disk| Tracker::new(disk, Arc::new(ChangeMap::new(4 * BLOCK))));
    let recorder = stack.lay(|disk| Recorder::in_memory(disk, 1 << 20));
    let throttle = stack
        .try_lay(|disk| Throttle::new(disk, Limits::default(), || {}))
        .unwrap();
    let names: Vec<_> = stack.names().collect();
    assert_eq!(names, ["throttle", "recorder", "tracker", "fault", "raw"]);
    let told = format!(
        "throttle > recorder > tracker > fault > raw {}",
        path.display()
    );
    assert_eq!(stack.to_string(), told);
    assert_eq!(plain.to_string(), format!("raw {}", path.display()));

    let disk = stack.device();
    assert_eq!(disk.size(), 4 * BLOCK);
    disk.discard(BLOCK, BLOCK).unwrap();
    assert_eq!(recorder.point(), 2);
    let changed = tracker.map().changed_since(Generation::FIRST);
    assert_eq!(
        changed.map(|range| range.start).collect::<Vec<_>>(),
        [BLOCK]
    );
    faults.inject(Fault {
        operation: Operation::Flush,
        skip: 0,
        times: 1,
        effect: Effect::Fail(libc::EIO),
    });
    disk.flush().unwrap_err();
    throttle.set_limits(Limits {
        requests: Some(0),
        ..Limits::default()
    });
    let error = disk.discard(0, 512).unwrap_err();
    assert!(matches!(error, Error::Throttled { .. }), "{error}");
    // A layer that cannot be made leaves the stack as it is.
    let mut other = plain.clone();
    let refused = other.try_lay(|_| Err::<Throttle, ()>(()));
    assert!(refused.is_err());
    assert_eq!(other.to_string(), plain.to_string());
}
