//! The thread that serves the control socket and hears signals.

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::routes::{BLOCKING_THREADS, router};
use crate::instance::{Instance, StopMode};
use crate::sandbox::{self, Kind};

/// Name of the threads that answer; they come and go with what is asked.
const REQUESTS: &str = "requests";
/// How long answers that are under way may take once the VM has ended.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// How long a guest may take to power off after SIGTERM or SIGINT.
const POWER_OFF: Duration = Duration::from_secs(10);

/// Serves the API of one VM on a thread of its own.
///
/// It starts before the VM does: clients that connect meanwhile wait in the socket's queue.
pub struct ControlServer {
    instance: Option<oneshot::Sender<Arc<dyn Instance>>>,
    end: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl ControlServer {
    /// Starts the thread; returns at once.
    ///
    /// # Errors
    /// What the kernel says about the thread or the socket.
    pub fn start(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let (instance, arrived) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                sandbox::begin(Kind::Control);
                if let Err(e) = run(listener, arrived, ended) {
                    tracing::error!(error = %e, "the control socket is not served");
                }
            })?;
        Ok(Self {
            instance: Some(instance),
            end,
            thread,
        })
    }

    /// Gives it the VM.
    pub fn serve(&mut self, instance: Arc<dyn Instance>) {
        if let Some(waiting) = self.instance.take() {
            let _ = waiting.send(instance);
        }
    }

    /// Ends it once the answers that are under way were given.
    pub fn finish(self) {
        let Self {
            instance,
            end,
            thread,
        } = self;
        drop(instance);
        let _ = end.send(());
        let _ = thread.join();
    }
}

fn run(
    listener: UnixListener,
    arrived: oneshot::Receiver<Arc<dyn Instance>>,
    ended: oneshot::Receiver<()>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name(REQUESTS)
        .on_thread_start(|| sandbox::inherit(Kind::Control))
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(Duration::from_secs(2))
        .build()?;
    runtime.block_on(async {
        // From here on these signals no longer end the process at once.
        let signals = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );
        let Ok(instance) = arrived.await else {
            return Ok(());
        };
        let stopper = tokio::spawn(stop_at_signal(signals, Arc::clone(&instance)));
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let (drain, draining) = oneshot::channel::<()>();
        let server = axum::serve(listener, router(instance)).with_graceful_shutdown(async move {
            let _ = draining.await;
        });
        let mut server = tokio::spawn(server.into_future());
        tokio::select! {
            _ = ended => {}
            result = &mut server => {
                return result.map_err(io::Error::other)?;
            }
        }
        let _ = drain.send(());
        let _ = tokio::time::timeout(LAST_ANSWERS, server).await;
        stopper.abort();
        Ok(())
    })?;
    runtime.shutdown_background();
    Ok(())
}

/// Stops the guest gracefully at the first signal, by force when it takes too long or at the second.
async fn stop_at_signal((mut term, mut int): (Signal, Signal), instance: Arc<dyn Instance>) {
    let stop = |mode| {
        let instance = Arc::clone(&instance);
        tokio::task::spawn_blocking(move || instance.stop(mode))
    };
    loop {
        either(&mut term, &mut int).await;
        tracing::info!("asked by a signal to stop the guest");
        let graceful = stop(StopMode::Graceful);
        tokio::select! {
            result = graceful => if matches!(result, Ok(Ok(()))) { return },
            () = tokio::time::sleep(POWER_OFF) => {}
            () = either(&mut term, &mut int) => {}
        }
        match stop(StopMode::Force).await {
            Ok(Ok(())) => return,
            Ok(Err(why)) => {
                tracing::error!(%why, "the guest cannot be stopped now");
                eprintln!("vmm: the guest cannot be stopped now: {why}");
            }
            Err(e) => tracing::error!(error = %e, "stopping the guest failed"),
        }
    }
}

async fn either(a: &mut Signal, b: &mut Signal) {
    tokio::select! {
        _ = a.recv() => {}
        _ = b.recv() => {}
    }
}
