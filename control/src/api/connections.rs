//! Connections to the control socket, each with its place.

use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};

use crate::places::{Place, Places, RESPITE};

/// Connections at once: more than can wait for something, and short ones besides.
const PLACES: usize = 128;
/// What one is told that finds all places taken by those who wait for an answer.
const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\
    content-type: application/json\r\ncontent-length: 76\r\n\r\n\
    {\"id\":\"api.busy\",\"message\":\"too many connections\",\"side\":\"source\",\"at_us\":0}";

/// Takes connections in, as many as there are places.
#[derive(Debug)]
pub(super) struct Connections {
    listener: UnixListener,
    places: Places,
}

impl Connections {
    pub(super) fn new(listener: UnixListener) -> Self {
        Self {
            listener,
            places: Places::new(PLACES),
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

impl Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let mut fails = false;
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => match self.places.take() {
                    Some(place) => return (Connection { stream, place }, address),
                    None => refuse(stream),
                },
                Err(e) => {
                    if !std::mem::replace(&mut fails, true) {
                        tracing::warn!(error = %e, "no client of the control socket can be taken in");
                    }
                    self.places.give_up_longest_idle();
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

impl Connected<IncomingStream<'_, Connections>> for Place {
    fn connect_info(stream: IncomingStream<'_, Connections>) -> Self {
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
