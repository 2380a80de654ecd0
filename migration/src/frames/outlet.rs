//! The way out of a data stream: within the limit on bandwidth, and counted.

use std::io;
use std::sync::Arc;

use super::Counters;
use crate::bandwidth::Bucket;
use crate::error::Error;
use crate::raw::Piece;
use crate::session::Session;
use crate::steering::Steering;
use crate::transport::Connection;

/// Payload of a batch at most; half a megabyte of hashed pages is still in the cache when it is sent.
const BATCH: usize = 512 << 10;
/// Payload of a batch at least, when a limit makes batches smaller so that it is kept evenly.
const MIN_BATCH: usize = 64 << 10;

/// What the outlets of all streams of a source share.
#[derive(Clone)]
pub(crate) struct Outgoing<'a> {
    pub session: Arc<Session>,
    pub steering: &'a Steering,
    pub bucket: Arc<Bucket>,
    pub counters: Arc<Counters>,
}

/// The way out of one stream.
pub(crate) struct Outlet<'a> {
    shared: Outgoing<'a>,
    connection: Arc<dyn Connection>,
    most: usize,
    /// Frames of the pass under way.
    frames: u32,
}

impl<'a> Outlet<'a> {
    pub fn new(shared: Outgoing<'a>, connection: Arc<dyn Connection>) -> Self {
        Self {
            shared,
            connection,
            most: BATCH,
            frames: 0,
        }
    }

    /// A pass begins: its frames are counted from 1.
    pub fn begin_pass(&mut self) {
        self.frames = 0;
    }

    /// Number of the frame with which all has left that was pushed so far, some of which may still be `pending`.
    pub fn frame_of(&self, pending: bool) -> u32 {
        self.frames + u32::from(pending)
    }

    /// Payload of a batch at most, of now.
    pub fn most(&self) -> usize {
        self.most
    }

    pub fn session(&self) -> &Session {
        &self.shared.session
    }

    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Whether what is being done is still wanted.
    pub fn check(&self) -> Result<(), Error> {
        match self.session().is_stopped() {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }

    /// Sends a frame of plain bytes.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.pace(bytes.len());
        let sent = self.connection.send(bytes);
        self.count(bytes.len(), sent)
    }

    /// Sends a frame of `pieces`, `length` bytes in all.
    pub fn send_pieces(
        &mut self,
        bytes: &[u8],
        pieces: &[Piece<'_>],
        length: usize,
    ) -> Result<(), Error> {
        self.pace(length);
        let sent = self.connection.send_pieces(bytes, pieces);
        self.count(length, sent)
    }

    /// Waits until a frame of `length` bytes may be sent, and notes how long the next one may be.
    fn pace(&mut self, length: usize) {
        let Outgoing {
            bucket,
            steering,
            session,
            ..
        } = &self.shared;
        bucket.acquire(length, steering, || session.is_stopped());
        self.most = match steering.limits().bandwidth {
            Some(rate) => usize::try_from(rate / 50)
                .unwrap_or(BATCH)
                .clamp(MIN_BATCH, BATCH),
            None => BATCH,
        };
    }

    /// Counts a frame of `length` bytes, if it was sent.
    fn count(&mut self, length: usize, sent: io::Result<()>) -> Result<(), Error> {
        sent.map_err(Error::link("sending on a data connection"))?;
        Counters::add(&self.counters().wire_bytes, length as u64);
        self.frames += 1;
        Ok(())
    }
}
