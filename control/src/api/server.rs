//! The thread that serves the control socket, takes files in beside it, and hears signals.

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::connections::Connections;
use super::routes::router;
use super::served::BLOCKING_THREADS;
use crate::instance::{Instance, Requester, StopMode};
use crate::passed::{self, FilesSocket, PassedFiles, Patience};
use crate::places::Place;
use crate::signals;
use crate::threads::{self, ThreadKind};

/// Name of the threads that answer; they come and go with what is asked.
const REQUESTS: &str = "requests";
/// How long answers that are under way may take once the VM has ended.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// How long a guest may take to power off after a signal that asks for its end.
const POWER_OFF: Duration = Duration::from_secs(10);

/// What `SIGHUP` does.
pub enum Hangup {
    /// It asks for the guest's end, as SIGTERM does: the terminal is gone.
    Stops,
    /// Nothing, as whoever started the process wished.
    Ignored,
    /// It has the logs opened again, which somebody moved away.
    Reopens(Arc<dyn Fn() + Send + Sync>),
}

/// Serves the API of one VM, and takes files in for it, on a thread of its own.
///
/// It starts before the VM does: clients that connect meanwhile wait in the socket's queue.
pub struct ControlServer {
    instance: Option<oneshot::Sender<Arc<dyn Instance>>>,
    end: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl ControlServer {
    /// Starts the thread; returns once it hears signals, which would end the process before.
    ///
    /// # Errors
    /// What the kernel says about the thread or the socket.
    pub fn start(listener: UnixListener, files: FilesSocket, hangup: Hangup) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let (instance, arrived) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let (hears, heard) = channel();
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                threads::STARTED.begin(ThreadKind::Server);
                if let Err(e) = run(listener, files, hangup, &hears, arrived, ended) {
                    tracing::error!(error = %e, "the control socket is not served");
                }
            })?;
        // A thread that fails says so in the log.
        let _ = heard.recv();
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
    files: FilesSocket,
    hangup: Hangup,
    hears: &Sender<()>,
    arrived: oneshot::Receiver<Arc<dyn Instance>>,
    ended: oneshot::Receiver<()>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name(REQUESTS)
        .on_thread_start(|| threads::STARTED.begin(ThreadKind::Request))
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(Duration::from_secs(2))
        .build()?;
    runtime.block_on(async {
        // From here on these signals no longer end the process at once.
        let mut ends = vec![libc::SIGTERM, libc::SIGINT];
        let mut reopens = None;
        match hangup {
            Hangup::Stops => ends.push(libc::SIGHUP),
            Hangup::Ignored => {}
            Hangup::Reopens(reopen) => reopens = Some((hear([libc::SIGHUP])?, reopen)),
        }
        let ends = hear(ends)?;
        let others = hear(signals::meaningless())?;
        let mut listeners = vec![tokio::spawn(tell(others))];
        if let Some((hangups, reopen)) = reopens {
            listeners.push(tokio::spawn(reopen_at(hangups, reopen)));
        }
        let _ = hears.send(());
        let Ok(instance) = arrived.await else {
            return Ok(());
        };
        listeners.push(tokio::spawn(stop_at(ends, Arc::clone(&instance))));
        let passed = Arc::new(PassedFiles::default());
        listeners.push(tokio::spawn(take_files(files, Arc::clone(&passed))));
        let connections = Connections::new(tokio::net::UnixListener::from_std(listener)?);
        let router = router(instance, passed).into_make_service_with_connect_info::<Place>();
        let (drain, draining) = oneshot::channel::<()>();
        let server = axum::serve(connections, router).with_graceful_shutdown(async move {
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
        for listener in listeners {
            listener.abort();
        }
        Ok(())
    })?;
    runtime.shutdown_background();
    Ok(())
}

async fn take_files(socket: FilesSocket, files: Arc<PassedFiles>) {
    if let Err(e) = passed::serve(socket, files, Patience::default()).await {
        tracing::error!(error = %e, "files cannot be passed to the VM");
    }
}

/// Hears signals from now on, one after the other.
fn hear(numbers: impl IntoIterator<Item = i32>) -> io::Result<mpsc::Receiver<i32>> {
    let (heard, receiver) = mpsc::channel(1);
    for number in numbers {
        let mut signal = signal(SignalKind::from_raw(number))?;
        let heard = heard.clone();
        tokio::spawn(async move {
            while signal.recv().await.is_some() && heard.send(number).await.is_ok() {}
        });
    }
    Ok(receiver)
}

/// Logs signals that mean nothing here, for whoever wonders why nothing happens.
async fn tell(mut others: mpsc::Receiver<i32>) {
    while let Some(signal) = others.recv().await {
        tracing::info!(signal, "a signal that means nothing to a VM is ignored");
    }
}

async fn reopen_at(mut hangups: mpsc::Receiver<i32>, reopen: Arc<dyn Fn() + Send + Sync>) {
    while hangups.recv().await.is_some() {
        let reopen = Arc::clone(&reopen);
        let _ = tokio::task::spawn_blocking(move || reopen()).await;
    }
}

/// Stops the guest gracefully at the first signal, by force when it takes too long or at the second.
async fn stop_at(mut ends: mpsc::Receiver<i32>, instance: Arc<dyn Instance>) {
    let stop = |mode, signal| {
        let instance = Arc::clone(&instance);
        tokio::task::spawn_blocking(move || instance.stop(mode, Requester::Signal(signal)))
    };
    while let Some(number) = ends.recv().await {
        let signal = signals::name(number);
        tracing::info!(signal, "asked by a signal to stop the guest");
        let graceful = stop(StopMode::Graceful, signal);
        tokio::select! {
            result = graceful => if matches!(result, Ok(Ok(()))) { return },
            () = tokio::time::sleep(POWER_OFF) => {}
            _ = ends.recv() => {}
        }
        match stop(StopMode::Force, signal).await {
            Ok(Ok(())) => return,
            Ok(Err(why)) => {
                tracing::error!(%why, "the guest cannot be stopped now");
                eprintln!("vmm: the guest cannot be stopped now: {why}");
            }
            Err(e) => tracing::error!(error = %e, "stopping the guest failed"),
        }
    }
}
