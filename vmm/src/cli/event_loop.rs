//! The event loop on which a command talks to control sockets.

use control::exit::local;
use migration::observation::Observation;

/// Runs `future` to its end on this thread.
pub(crate) fn block_on<T>(
    future: impl Future<Output = Result<T, Observation>>,
) -> Result<T, Observation> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| local("host.resources", format!("start the event loop: {e}")))?
        .block_on(future)
}
