//! The stack of layers of each disk, and its exchange under the running guest.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use block::{Backend, Stack};
use devices::virtio::{Block, MmioTransport};

use crate::error::MachineError;

/// How long requests have to end when a disk's layers, or its image, are exchanged; meanwhile new ones wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// The stack that a disk's requests go to.
pub(crate) struct Current {
    stack: Mutex<Stack>,
    /// Held for as long as a pivot takes, so that what is told here is what the device has.
    pivots: Mutex<()>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Current {
    pub(crate) fn new(stack: Stack) -> Self {
        Self {
            stack: Mutex::new(stack),
            pivots: Mutex::new(()),
        }
    }

    /// The stack as it is now.
    pub(crate) fn stack(&self) -> Stack {
        locked(&self.stack).clone()
    }

    /// Gives a disk that no device uses yet another stack.
    pub(crate) fn put(&self, next: Stack) {
        *locked(&self.stack) = next;
    }

    /// Has the requests of `transport`, which is that of disk `id`, go to `next`; how long its requests had to wait.
    ///
    /// # Errors
    /// As [`MmioTransport::pivot`], and when the threads of the new stack cannot be started; nothing is changed then.
    pub(crate) fn pivot(
        &self,
        id: &str,
        transport: &MmioTransport,
        next: Stack,
        patience: Duration,
    ) -> Result<Duration, MachineError> {
        let failed = |source| MachineError::Device {
            id: id.to_owned(),
            source,
        };
        let _alone = locked(&self.pivots);
        let backend = backend(id, &next)?;
        let waited = transport.pivot(backend, patience).map_err(failed)?;
        let told = next.to_string();
        *locked(&self.stack) = next;
        tracing::info!(
            disk = id,
            stack = told,
            ?waited,
            "the disk has other layers"
        );
        Ok(waited)
    }
}

/// What carries out the requests to a stack, that of disk `id`: the ring of its image, where it has one and can, or threads.
///
/// # Errors
/// When threads cannot be started.
pub(super) fn backend(id: &str, stack: &Stack) -> Result<Arc<dyn Backend>, MachineError> {
    if let Some(ring) = stack.by_ring() {
        return Ok(Arc::new(ring));
    }
    Block::backend_over(stack.device()).map_err(|source| MachineError::Device {
        id: id.to_owned(),
        source,
    })
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        locked(&self.stack).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io;

    use block::tracker::{ChangeMap, Tracker};
    use block::{Access, Content, RawImage};
    use devices::Interrupt;
    use devices::virtio::BlockConfig;
    use migration::GuestRam;
    use vm_memory::GuestAddress;

    use super::*;

    const SIZE: u64 = 64 << 10;

    #[derive(Debug)]
    struct Nobody;

    impl Interrupt for Nobody {
        fn trigger(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn image(path: &std::path::Path, size: u64) -> Stack {
        File::create(path).unwrap().set_len(size).unwrap();
        let image = RawImage::open(path, Access::ReadWrite, Content::Raw).unwrap();
        Stack::over(Arc::new(image), "raw")
    }

    #[test]
    fn a_disk_tells_the_stack_that_its_device_has_also_after_a_pivot_that_failed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let stack = image(&path, SIZE);
        let config = BlockConfig {
            serial: "data".into(),
            queues: 2,
        };
        let device = Block::over(stack.device(), config).unwrap();
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let transport = MmioTransport::new(Box::new(device), ram, Arc::new(Nobody)).unwrap();
        let current = Current::new(stack.clone());
        let told = || current.stack().to_string();

        let mut next = stack.clone();
        let tracker = next.lay(|disk| Tracker::new(disk, Arc::new(ChangeMap::new(SIZE))));
        let patience = Duration::from_secs(20);
        current.pivot("data", &transport, next, patience).unwrap();
        assert_eq!(told(), format!("tracker > raw {}", path.display()));
        current.stack().device().discard(0, 512).unwrap();
        assert_eq!(
            tracker
                .map()
                .changed_since(block::tracker::Generation::FIRST)
                .count(),
            1
        );

        let other = image(&dir.path().join("other"), 2 * SIZE);
        let refused = current.pivot("data", &transport, other, patience);
        assert_eq!(refused.unwrap_err().id(), "machine.device");
        assert_eq!(told(), format!("tracker > raw {}", path.display()));
        current.pivot("data", &transport, stack, patience).unwrap();
        assert_eq!(told(), format!("raw {}", path.display()));
        assert_eq!(current.stack().device().size(), SIZE);
    }
}
