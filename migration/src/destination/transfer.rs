//! What is known of a guest's transfer, and what of it has come. It outlives a link.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::placings::Placings;
use crate::error::Error;
use crate::frames::PassKind;
use crate::pages::digest_text;
use crate::session::Digests;
use crate::streams::receiver::{Beginning, Receiving};
use crate::wire::control::{Negotiate, PlacedSoFar, WHOLE_PASS};

/// The transfer of one guest.
pub(super) struct Transfer {
    /// What the source wants.
    pub requested: Negotiate,
    /// Where pages go.
    pub receiving: Arc<Receiving>,
    /// Of each stream of the link, how far it is.
    streams: Vec<Stream>,
    /// Where they began.
    beginning: Beginning,
    /// What the streams of earlier links add to the digests.
    before: Digests,
    /// The last pass that all of them have placed, as the source was told.
    placed: u32,
    pub placings: Placings,
    /// The machine's state.
    pub state: Option<Vec<u8>>,
    /// The last pass that there is.
    pub last_pass: Option<u32>,
}

#[derive(Clone, Copy, Default)]
struct Stream {
    /// The last pass of which its part is placed.
    pass: u32,
    /// What it has added to the digests.
    digests: Digests,
}

impl Transfer {
    /// Nothing has come yet of what goes to where `receiving` says.
    pub fn begin(requested: Negotiate, receiving: Receiving) -> Self {
        Self {
            streams: vec![Stream::default(); usize::from(requested.streams)],
            receiving: Arc::new(receiving),
            requested,
            beginning: Beginning {
                placed: 0,
                kind: PassKind::First,
            },
            before: Digests::default(),
            placed: 0,
            placings: Placings::new(),
            state: None,
            last_pass: None,
        }
    }

    /// The number of `stream`, which came in, if there is such a one.
    pub fn stream(&self, stream: u16) -> Result<u8, Error> {
        let streams = self.requested.streams;
        u8::try_from(stream)
            .ok()
            .filter(|&stream| stream < streams)
            .ok_or_else(|| Error::Protocol(format!("data stream {stream} of {streams}")))
    }

    /// `stream` has placed its part of `pass`.
    pub fn pass_done(&mut self, stream: u16, pass: u32, digests: Digests) {
        if let Some(stream) = self.streams.get_mut(usize::from(stream)) {
            *stream = Stream { pass, digests };
        }
    }

    /// Where the streams of the link begin.
    pub fn beginning(&self) -> Beginning {
        self.beginning
    }

    /// A new link begins, and nothing of the old one is placed any more; what its source is told.
    pub fn begin_again(&mut self) -> PlacedSoFar {
        let _told_now = self.newly_placed();
        let receiving = &self.receiving;
        let frames = self.streams.iter().zip(&receiving.frames);
        let frames = frames.map(|(stream, frames)| {
            let frames = frames.swap(0, Ordering::Relaxed);
            if stream.pass > self.placed {
                WHOLE_PASS
            } else {
                frames
            }
        });
        let placed = PlacedSoFar {
            pass: self.placed,
            frames: frames.collect(),
        };
        self.before = Digests {
            pages: receiving.memory.placed.begin_again(),
            blocks: receiving.disks.begin_again(),
        };
        self.beginning = Beginning {
            placed: self.placed,
            kind: match self.placed {
                0 => PassKind::Rest,
                _ => PassKind::Again,
            },
        };
        let none = Stream {
            pass: self.placed,
            ..Stream::default()
        };
        self.streams.fill(none);
        placed
    }

    /// A pass that all streams have placed by now, of which the source is to be told.
    pub fn newly_placed(&mut self) -> Option<u32> {
        let arrived = self.streams.iter().map(|stream| stream.pass).min()?;
        if arrived <= self.placed {
            return None;
        }
        self.placed = arrived;
        self.placings.push(arrived, Instant::now());
        Some(arrived)
    }

    /// The state, once nothing else is to come.
    pub fn take_state_if_complete(&mut self) -> Option<Vec<u8>> {
        self.state.take_if(|_| self.last_pass == Some(self.placed))
    }

    /// The digest of all pages that were placed.
    pub fn stream_digest(&self) -> String {
        digest_text(self.digests().pages)
    }

    /// The digest of the disks, if they are verified.
    pub fn disks_digest(&self) -> Option<String> {
        let are_verified = self.receiving.disks.are_verified();
        are_verified.then(|| digest_text(self.digests().blocks))
    }

    fn digests(&self) -> Digests {
        let streams = self.streams.iter().map(|stream| stream.digests);
        Digests::sum(streams.chain([self.before]))
    }
}
