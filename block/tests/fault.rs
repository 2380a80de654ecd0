//! Faults on request hit what they are told to, and nothing else.

use std::fs::File;
use std::sync::Arc;

use block::fault::{Effect, Fault, FaultLayer, Operation};
use block::{Access, BlockDevice, Buffer, Content, Durability, Error, RawImage};
use tempfile::TempDir;

fn layer(dir: &TempDir) -> Arc<FaultLayer> {
    let path = dir.path().join("disk.raw");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let image = RawImage::open(&path, Access::ReadWrite, Content::Raw).unwrap();
    Arc::new(FaultLayer::new(Arc::new(image)))
}

fn write(disk: &dyn BlockDevice, byte: u8) -> block::Result<()> {
    let mut bytes = [byte; 1024];
    let (head, tail) = bytes.split_at_mut(100);
    disk.write(
        &[Buffer::new(head), Buffer::new(tail)],
        0,
        Durability::Flushed,
    )
}

#[test]
fn only_the_chosen_operation_fails_and_only_as_often_as_asked() {
    let dir = TempDir::new().unwrap();
    let disk = layer(&dir);
    let effect = Effect::Fail(libc::ENOSPC);
    disk.inject(Fault {
        operation: Operation::Write,
        skip: 1,
        times: 2,
        effect,
    });
    let results: Vec<bool> = (0..5).map(|_| write(&*disk, 1).is_ok()).collect();
    assert_eq!(results, [true, false, false, true, true]);
    assert!(disk.flush().is_ok());
    disk.inject(Fault {
        operation: Operation::Flush,
        skip: 0,
        times: 1,
        effect,
    });
    match disk.flush().unwrap_err() {
        Error::Io {
            source,
            operation: "flush",
            ..
        } => {
            assert_eq!(source.raw_os_error(), Some(libc::ENOSPC));
        }
        error => panic!("{error}"),
    }
}

#[test]
fn a_torn_write_stores_its_beginning() {
    let dir = TempDir::new().unwrap();
    let disk = layer(&dir);
    let effect = Effect::Tear(150);
    disk.inject(Fault {
        operation: Operation::Write,
        skip: 0,
        times: 1,
        effect,
    });
    assert!(write(&*disk, 7).is_err());
    let mut bytes = [0; 1024];
    disk.read(&[Buffer::new(&mut bytes)], 0).unwrap();
    assert_eq!(bytes.iter().filter(|&&byte| byte == 7).count(), 150);
}

#[test]
fn a_hanging_operation_is_done_when_it_is_released() {
    let dir = TempDir::new().unwrap();
    let disk = layer(&dir);
    disk.inject(Fault {
        operation: Operation::Write,
        skip: 0,
        times: 1,
        effect: Effect::Hang,
    });
    let writer = std::thread::spawn({
        let disk = Arc::clone(&disk);
        move || write(&*disk, 9).is_ok()
    });
    disk.wait_hanging(1);
    disk.release();
    assert!(writer.join().unwrap());
    let mut bytes = [0; 1024];
    disk.read(&[Buffer::new(&mut bytes)], 0).unwrap();
    assert_eq!(bytes, [9; 1024]);
}
