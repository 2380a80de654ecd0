//! Changes of how a disk's missing part is had, from whoever asks for them to the thread that may write to its image.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use control::on_demand::OnDemandChange;

/// Changes that wait.
const WAITING: usize = 16;
/// How long somebody waits for the storage to keep what was changed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a change was not made.
#[derive(Debug)]
pub(crate) enum NotChanged {
    /// Nothing is missing, or the guest has ended.
    Over,
    /// The storage has not confirmed it yet.
    Late,
    /// The storage refused it.
    Failed(block::Error),
}

struct Asked {
    change: OnDemandChange,
    done: SyncSender<block::Result<()>>,
}

/// Where changes are asked for.
pub(crate) struct Changes(SyncSender<Asked>);

/// Where they come to be made.
pub(crate) struct Changed(Receiver<Asked>);

/// Both ends.
pub(crate) fn channel() -> (Changes, Changed) {
    let (asks, asked) = sync_channel(WAITING);
    (Changes(asks), Changed(asked))
}

impl Changes {
    /// Has a change made, and waits until it is durable and in force.
    ///
    /// # Errors
    /// [`NotChanged`].
    pub(crate) fn ask(&self, change: OnDemandChange) -> Result<(), NotChanged> {
        let (done, told) = sync_channel(1);
        let asked = self.0.try_send(Asked { change, done });
        asked.map_err(|_| NotChanged::Over)?;
        match told.recv_timeout(PATIENCE) {
            Ok(made) => made.map_err(NotChanged::Failed),
            Err(RecvTimeoutError::Timeout) => Err(NotChanged::Late),
            Err(RecvTimeoutError::Disconnected) => Err(NotChanged::Over),
        }
    }
}

impl Changed {
    /// Makes the next change that comes within `patience` by `make`.
    pub(crate) fn make_next(
        &self,
        patience: Duration,
        make: impl FnOnce(OnDemandChange) -> block::Result<()>,
    ) {
        match self.0.recv_timeout(patience) {
            Ok(Asked { change, done }) => {
                // Who asked may have stopped waiting.
                let _ = done.send(make(change));
            }
            Err(RecvTimeoutError::Timeout) => {}
            // The disk goes, with its layer.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(patience),
        }
    }
}
