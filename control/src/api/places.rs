//! Connections to the control socket: so many at once, and none that says nothing keeps out one that
//! does.

use std::io::{self, Write};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};

/// Connections at once: more than can wait for something, and short ones besides.
pub(super) const PLACES: usize = 128;
/// How long nobody is taken in after that failed, as for want of descriptors.
const RESPITE: Duration = Duration::from_millis(100);
/// What one is told that finds all places taken by those who wait for an answer.
const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\
    content-type: application/json\r\ncontent-length: 76\r\n\r\n\
    {\"id\":\"api.busy\",\"message\":\"too many connections\",\"side\":\"source\",\"at_us\":0}";

/// The place of one connection.
#[derive(Debug, Clone)]
pub(super) struct Place(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Requests that are being answered.
    busy: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    idle_since: Instant,
    given_up: bool,
    reader: Option<Waker>,
}

/// As long as it lives, its connection is being answered.
pub(super) struct Busy(Place);

impl Place {
    fn new() -> Self {
        Self(Arc::new(Inner {
            busy: AtomicUsize::new(0),
            state: Mutex::new(State {
                idle_since: Instant::now(),
                given_up: false,
                reader: None,
            }),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to answer a request.
    pub(super) fn busy(&self) -> Busy {
        self.0.busy.fetch_add(1, Ordering::SeqCst);
        Busy(self.clone())
    }

    /// Since when nothing was asked of it, if nothing is.
    fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        (self.0.busy.load(Ordering::SeqCst) == 0 && !state.given_up).then_some(state.idle_since)
    }

    /// Ends its connection as if the client had.
    fn give_up(&self) {
        let mut state = self.state();
        state.given_up = true;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }

    /// Whether its connection is to end; wakes `reader` when it is.
    fn is_given_up(&self, reader: &Waker) -> bool {
        let mut state = self.state();
        state.reader = Some(reader.clone());
        state.given_up
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.state().idle_since = Instant::now();
        self.0.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Takes connections in, as many as there are places.
#[derive(Debug)]
pub(super) struct Places {
    listener: UnixListener,
    taken: Vec<Place>,
}

impl Places {
    pub(super) fn new(listener: UnixListener) -> Self {
        Self {
            listener,
            taken: Vec::new(),
        }
    }

    /// A place for one more; that of the one who has said nothing for the longest time when there is no
    /// other. `None` when all are being answered.
    fn take(&mut self) -> Option<Place> {
        // Connections hold theirs as long as they live.
        self.taken.retain(|place| Arc::strong_count(&place.0) > 1);
        if self.taken.len() >= PLACES && !self.give_up_longest_idle() {
            return None;
        }
        let place = Place::new();
        self.taken.push(place.clone());
        Some(place)
    }

    fn give_up_longest_idle(&mut self) -> bool {
        let idle = self.taken.iter().enumerate();
        let longest = idle
            .filter_map(|(at, place)| Some((place.idle_since()?, at)))
            .min();
        match longest {
            Some((_, at)) => {
                self.taken.swap_remove(at).give_up();
                true
            }
            None => false,
        }
    }
}

/// Tells a client that there is no place for it, without waiting for it.
fn refuse(stream: UnixStream) {
    // The runtime would have to learn first that it can be written to.
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(BUSY);
    }
}

impl Listener for Places {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let mut fails = false;
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => match self.take() {
                    Some(place) => return (Connection { stream, place }, address),
                    None => refuse(stream),
                },
                Err(e) => {
                    if !std::mem::replace(&mut fails, true) {
                        tracing::warn!(error = %e, "no client of the control socket can be taken in");
                    }
                    self.give_up_longest_idle();
                    tokio::time::sleep(RESPITE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when its place is needed.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    place: Place,
}

impl Connected<IncomingStream<'_, Places>> for Place {
    fn connect_info(stream: IncomingStream<'_, Places>) -> Self {
        stream.io().place.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.place.is_given_up(cx.waker()) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_too_many_is_told_has_the_length_that_it_says() {
        let text = std::str::from_utf8(BUSY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())));
        let told: migration::observation::Observation = serde_json::from_str(body).unwrap();
        assert_eq!(told.id, "api.busy");
    }
}
