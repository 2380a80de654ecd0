//! A data stream of the destination: hands on what comes to the volume that it is of.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use zerocopy::IntoBytes;

use crate::bandwidth::FixedLimit;
use crate::blocks::receiver::{BlockReceiver, DisksHere};
use crate::error::Error;
use crate::frames::{Counters, PassKind};
use crate::pages::receiver::{MemoryHere, PageReceiver};
use crate::session::{Digests, Note, SLICE, Session};
use crate::transport::Connection;
use crate::wire::MAX_STREAMS;
use crate::wire::batch::{BATCH_LEN, BatchHeader, BatchKind, BatchRange, MAX_RANGES, PageRange};
use crate::wire::blocks::BlockRange;

/// Where all volumes of a guest are placed, by all streams of a destination; it outlives each of them.
pub(crate) struct Receiving {
    pub memory: MemoryHere,
    pub disks: Arc<DisksHere>,
    pub counters: Arc<Counters>,
    pub inbound: FixedLimit,
    /// Batches of the pass that it is at that each stream has placed, each of them whole.
    pub frames: [AtomicU32; MAX_STREAMS as usize],
}

/// Where the streams of a link begin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beginning {
    /// The last pass that is placed.
    pub placed: u32,
    /// Of the one after that.
    pub kind: PassKind,
}

/// One data stream.
pub(crate) struct StreamReceiver<'a> {
    session: &'a Session,
    counters: &'a Counters,
    inbound: &'a FixedLimit,
    frames: &'a AtomicU32,
    stream: u16,
    connection: Arc<dyn Connection>,
    /// The last pass that it has placed, and of what kind the next is.
    pass: u32,
    kind: PassKind,
    pages: PageReceiver<'a>,
    blocks: BlockReceiver<'a>,
    page_ranges: Vec<PageRange>,
    block_ranges: Vec<BlockRange>,
}

impl<'a> StreamReceiver<'a> {
    pub fn new(
        shared: &'a Receiving,
        session: &'a Session,
        stream: u16,
        connection: Arc<dyn Connection>,
        beginning: Beginning,
    ) -> Self {
        let counters = &*shared.counters;
        Self {
            pages: PageReceiver::new(&shared.memory, stream, counters),
            blocks: BlockReceiver::new(&shared.disks, stream, counters),
            session,
            counters,
            inbound: &shared.inbound,
            stream,
            connection,
            pass: beginning.placed,
            kind: beginning.kind,
            frames: &shared.frames[usize::from(stream)],
            page_ranges: Vec::with_capacity(MAX_RANGES),
            block_ranges: Vec::new(),
        }
    }

    /// Places batches until the session ends.
    pub fn run(mut self) {
        let session = self.session;
        loop {
            match self.connection.wait_readable(SLICE) {
                // The control connection knows whether the peer lives: silence here is no failure.
                Ok(false) if session.is_stopped() => return,
                Ok(false) => {}
                Ok(true) => {
                    if let Err(error) = self.receive() {
                        return session.fail(error);
                    }
                }
                Err(error) => return session.fail(Error::link("waiting for pages")(error)),
            }
        }
    }

    fn receive(&mut self) -> Result<(), Error> {
        let mut header = [0; BATCH_LEN];
        self.connection
            .receive(&mut header)
            .map_err(Error::link("receiving pages"))?;
        let header: BatchHeader = zerocopy::transmute!(header);
        let kind = header.kind()?;
        if let BatchKind::Pages { payload, .. } | BatchKind::Blocks { payload, .. } = kind {
            // What is not read here is not sent there.
            self.inbound
                .acquire(payload as usize, || self.session.is_stopped());
        }
        let placing = self.session.begin_placing()?;
        match kind {
            BatchKind::PassEnd => {
                // Before it is told, as nothing is being placed when all passes have ended.
                drop(placing);
                self.end_pass(header)
            }
            BatchKind::Pages { ranges, payload } => {
                let connection = self.connection.clone();
                let table = &mut self.page_ranges;
                read_ranges(&*connection, header, ranges, table)?;
                let placed = self.pages.place(&*connection, self.kind, table);
                self.count::<PageRange>(ranges, payload);
                self.note_frame(placed)
            }
            BatchKind::Blocks { ranges, payload } => {
                let connection = self.connection.clone();
                let table = &mut self.block_ranges;
                read_ranges(&*connection, header, ranges, table)?;
                let placed = self.blocks.place(&*connection, table);
                self.count::<BlockRange>(ranges, payload);
                self.note_frame(placed)
            }
        }
    }

    /// A batch was `placed`, or was not.
    fn note_frame(&self, placed: Result<(), Error>) -> Result<(), Error> {
        if placed.is_ok() {
            self.frames.fetch_add(1, Ordering::Relaxed);
        }
        placed
    }

    fn end_pass(&mut self, header: BatchHeader) -> Result<(), Error> {
        header.verify::<PageRange>(&[])?;
        let session = self.session;
        if header.pass() != self.pass + 1 || !session.may_end(header.pass()) {
            return Err(Error::Protocol(format!(
                "pass {} ended on stream {} after pass {}",
                header.pass(),
                self.stream,
                self.pass
            )));
        }
        self.pass = header.pass();
        self.kind = PassKind::Again;
        self.frames.store(0, Ordering::Relaxed);
        session.note(Note::PassDone {
            stream: self.stream,
            pass: self.pass,
            digests: Digests {
                pages: self.pages.digest(),
                blocks: self.blocks.digest(),
            },
        });
        Ok(())
    }

    fn count<R: BatchRange>(&self, ranges: usize, payload: u64) {
        let described = BATCH_LEN + ranges * size_of::<R>();
        Counters::add(&self.counters.wire_bytes, described as u64 + payload);
    }
}

/// Reads the ranges of a batch, and checks them against its header.
fn read_ranges<R: BatchRange>(
    connection: &dyn Connection,
    header: BatchHeader,
    count: usize,
    table: &mut Vec<R>,
) -> Result<(), Error> {
    table.resize(count, R::new_zeroed());
    connection
        .receive(table.as_mut_slice().as_mut_bytes())
        .map_err(Error::link("receiving pages"))?;
    header.verify(table)
}
