//! Answers that go on for as long as there is something to tell: one JSON object a line.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::spawn_blocking;
use tokio_stream::wrappers::ReceiverStream;

use super::body::NDJSON;

/// What comes next in such an answer.
pub(super) enum Next<T> {
    /// Something to tell.
    Line(T),
    /// Something to tell, after which there is nothing more.
    Last(T),
    /// Nothing by now.
    Nothing,
    /// Nothing any more.
    End,
}

/// Whether a client would rather be told what comes of its request than that it was accepted.
pub(super) fn wants_lines(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT);
    let accept = accept.and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.contains(NDJSON))
}

/// Answers with what `next` gives, which blocks for a moment where there is nothing. At most `ahead` lines wait for a
/// client that is slow: it is asked for the next one when there is room.
pub(super) fn answer<T: Serialize>(
    permit: OwnedSemaphorePermit,
    ahead: usize,
    mut next: impl FnMut() -> Next<T> + Send + 'static,
) -> Response {
    let (lines, stream) = mpsc::channel::<Result<Bytes, Infallible>>(ahead);
    spawn_blocking(move || {
        let _permit = permit;
        loop {
            let (told, is_last) = match next() {
                Next::Line(told) => (told, false),
                Next::Last(told) => (told, true),
                Next::Nothing if lines.is_closed() => return,
                Next::Nothing => continue,
                Next::End => return,
            };
            let Ok(mut line) = serde_json::to_vec(&told) else {
                return;
            };
            line.push(b'\n');
            if lines.blocking_send(Ok(line.into())).is_err() || is_last {
                return;
            }
        }
    });
    let body = Body::from_stream(ReceiverStream::new(stream));
    ([(header::CONTENT_TYPE, NDJSON)], body).into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::BodyExt;
    use tokio::sync::Semaphore;

    use super::*;

    /// Nothing is asked for before there is room for it, however slowly it is read.
    #[test]
    fn no_more_is_made_than_the_reader_has_room_for() {
        const AHEAD: usize = 2;
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let (made, read) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let most = Arc::new(AtomicUsize::new(0));
        let lines = runtime.unwrap().block_on(async {
            let places = Arc::new(Semaphore::new(1));
            let permit = Arc::clone(&places).try_acquire_owned().unwrap();
            let (made, read, most) = (made.clone(), read.clone(), most.clone());
            let told = read.clone();
            let response = answer(permit, AHEAD, move || {
                let made = made.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(made - told.load(Ordering::SeqCst), Ordering::SeqCst);
                match made {
                    1000 => Next::Last(made),
                    _ => Next::Line(made),
                }
            });
            let mut body = response.into_body();
            let mut lines = Vec::new();
            while let Some(frame) = body.frame().await {
                read.fetch_add(1, Ordering::SeqCst);
                lines.extend_from_slice(frame.unwrap().data_ref().unwrap());
            }
            drop(body);
            // Its place is free as soon as it is over.
            let _ = places.acquire().await.unwrap();
            String::from_utf8(lines).unwrap()
        });
        let expected: String = (1..=1000).map(|n| format!("{n}\n")).collect();
        assert_eq!(lines, expected);
        // Those that wait, one on its way in, and one on its way out that is not counted yet.
        let most = most.load(Ordering::SeqCst);
        assert!(most <= AHEAD + 2, "{most}");
    }
}
