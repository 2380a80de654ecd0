//! A data stream of the source: sends its share of each pass, disks first.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use zerocopy::IntoBytes;

use super::marks::Marks;
use crate::blocks::sender::{BlockSender, Disks};
use crate::error::Error;
use crate::frames::{Outgoing, Outlet, PassKind};
use crate::pages::sender::{Beside, Memory, PageSender};
use crate::raw::HashKey;
use crate::session::{Digests, Note};
use crate::transport::Connection;
use crate::wire::batch::BatchHeader;

/// How often a stream that has sent its share looks for what mirrored disks have to send, until all have.
const LOOK: Duration = Duration::from_millis(1);

/// A pass over what is to be sent of all volumes.
pub(crate) struct Pass {
    pub number: u32,
    /// Of disks.
    pub kind: PassKind,
    /// Of memory; none while that waits for disks that go before it.
    pub memory: Option<PassKind>,
    pub marks: Marks,
    /// Streams that have not sent their share of it.
    pub under_way: AtomicUsize,
}

/// What all streams of a source share.
pub(crate) struct Sending<'a> {
    pub memory: Memory<'a>,
    pub disks: Arc<Disks>,
    /// Key of the disks' digest; `None` when they are not verified.
    pub disks_key: Option<Arc<HashKey>>,
    pub outgoing: Outgoing<'a>,
}

/// One data stream.
pub(crate) struct StreamSender<'a> {
    stream: u16,
    outlet: Outlet<'a>,
    pages: PageSender<'a>,
    blocks: BlockSender<'a>,
}

impl<'a> StreamSender<'a> {
    pub fn new(shared: &'a Sending<'a>, stream: u16, connection: Arc<dyn Connection>) -> Self {
        let key = shared.disks_key.as_deref();
        Self {
            stream,
            outlet: Outlet::new(shared.outgoing.clone(), connection),
            pages: PageSender::new(&shared.memory, stream),
            blocks: BlockSender::new(&shared.disks, stream, key),
        }
    }

    /// Sends pass after pass until there are no more.
    pub fn run(mut self, passes: &Receiver<Arc<Pass>>) {
        while let Ok(pass) = passes.recv() {
            let number = pass.number;
            self.outlet.session().pass_begins(number);
            self.outlet.begin_pass();
            let sent = self.send_pass(&pass);
            // The bitmaps are used again once nobody holds them.
            drop(pass);
            match sent {
                Ok(()) => self.outlet.session().note(Note::PassDone {
                    stream: self.stream,
                    pass: number,
                    digests: Digests {
                        pages: self.pages.digest(),
                        blocks: self.blocks.digest(),
                    },
                }),
                Err(error) => return self.outlet.session().fail(error),
            }
        }
    }

    /// Disks go first: they take longer, and pages that the guest writes before their marks are cleared travel once. What is
    /// written to mirrored disks meanwhile goes before either, until all streams are at the end of the pass.
    fn send_pass(&mut self, pass: &Pass) -> Result<(), Error> {
        let (blocks, outlet) = (&mut self.blocks, &mut self.outlet);
        blocks.send_echo(outlet, pass.number)?;
        blocks.send_pass(outlet, (pass.number, pass.kind), &pass.marks.blocks)?;
        let may_be_mirrored = blocks.are_any();
        let mut beside = |outlet: &mut Outlet<'_>| blocks.send_echo(outlet, pass.number);
        let beside: Option<Beside<'_>> = may_be_mirrored.then_some(&mut beside);
        if let Some(kind) = pass.memory {
            self.pages
                .send_pass(outlet, (pass.number, kind), &pass.marks.pages, beside)?;
        }
        pass.under_way.fetch_sub(1, Ordering::SeqCst);
        while blocks.are_mirrored() && pass.under_way.load(Ordering::SeqCst) > 0 {
            outlet.check()?;
            blocks.send_echo(outlet, pass.number)?;
            std::thread::sleep(LOOK);
        }
        let header = BatchHeader::pass_end(pass.number);
        self.outlet.send(header.as_bytes())
    }
}
