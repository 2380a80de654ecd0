//! How the ranges of a batch come into guest memory: a plan is made of all of them, then what travels is read
//! in one go, then the rest is filled in.

use std::io;

use crate::error::Error;
use crate::raw::{Piece, Ram, RamSlice, Span};
use crate::transport::Connection;
use crate::wire::batch::{Encoding, MAX_RANGES};

/// From this many zero pages on, the memory is given back instead of being filled.
const PUNCH_PAGES: u64 = 128;

/// Makes pages of the bytes that came for them, which may be anything.
type Decoder = fn(&[u8], RamSlice<'_>) -> Result<(), Error>;

/// How the pages of a range are received.
#[derive(Debug, Clone, Copy)]
pub(super) enum Receipt {
    /// Their bytes come and land in guest memory.
    Direct,
    /// Bytes come into the scratch buffer, of which pages are made.
    #[cfg_attr(not(test), expect(dead_code, reason = "nobody sends such pages yet"))]
    Decode(Decoder),
    /// Nothing comes: they are a copy of what is there.
    Copy(Origin),
}

/// What pages are a copy of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A page of zeroes.
    Zeroes,
}

impl From<Encoding> for Receipt {
    fn from(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Raw => Self::Direct,
            Encoding::Zero => Self::Copy(Origin::Zeroes),
            #[cfg(test)]
            Encoding::Filled => Self::Decode(tests::repeat),
        }
    }
}

/// What is done for one range.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub span: Span,
    pub receipt: Receipt,
    /// The range's part of the scratch buffer: where it begins and how long it is.
    scratch: (usize, usize),
}

/// What is done for a batch, in buffers that are used again from one batch to the next.
///
/// All that travels has been read before anything is decoded or copied. So a batch names a page once, and a
/// copy of a page is one of what the batch left there.
pub(super) struct Plan<'a> {
    ram: &'a Ram,
    steps: Vec<Step>,
    pieces: Vec<Piece<'a>>,
    /// Encoded bytes; at most [`crate::wire::batch::MAX_PAYLOAD`], the payload of a batch.
    scratch: Vec<u8>,
    scratch_used: usize,
}

impl<'a> Plan<'a> {
    /// Nothing to do.
    pub fn new(ram: &'a Ram) -> Self {
        Self {
            ram,
            steps: Vec::with_capacity(MAX_RANGES),
            pieces: Vec::with_capacity(MAX_RANGES),
            scratch: Vec::new(),
            scratch_used: 0,
        }
    }

    /// Forgets what was to be done.
    pub fn clear(&mut self) {
        self.steps.clear();
        self.pieces.clear();
        self.scratch_used = 0;
    }

    /// Adds the pages of `span`, for which `payload` bytes come in a way that `encoding` says. That both fit
    /// each other was checked, as was that the batch is not too long; nothing is read yet.
    pub fn push(&mut self, span: Span, encoding: Encoding, payload: usize) {
        let receipt = Receipt::from(encoding);
        let mut scratch = (0, 0);
        match receipt {
            Receipt::Direct => self.pieces.push(Piece::Ram(self.ram.slice(span))),
            Receipt::Decode(_) => {
                scratch = (self.scratch_used, payload);
                self.scratch_used += payload;
                let (at, len) = scratch;
                self.pieces.push(Piece::Bytes { at, len });
            }
            Receipt::Copy(_) => {}
        }
        self.steps.push(Step {
            span,
            receipt,
            scratch,
        });
    }

    /// Reads all that comes for the batch.
    ///
    /// # Errors
    /// As of [`Connection::receive_pieces`].
    pub fn receive(&mut self, connection: &dyn Connection) -> io::Result<()> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        if self.scratch.len() < self.scratch_used {
            self.scratch.resize(self.scratch_used, 0);
        }
        connection.receive_pieces(&mut self.scratch, &self.pieces)
    }

    /// What is to be done for each range, in order.
    pub fn steps(&self) -> impl Iterator<Item = Step> {
        self.steps.iter().copied()
    }

    /// Brings the pages of `step` into guest memory, once all has been read.
    ///
    /// # Errors
    /// [`Error::Protocol`] when what came for them makes no pages.
    pub fn fill(&self, step: Step) -> Result<(), Error> {
        let Step { span, receipt, .. } = step;
        match receipt {
            Receipt::Direct => Ok(()),
            Receipt::Decode(decode) => {
                let (at, len) = step.scratch;
                decode(&self.scratch[at..at + len], self.ram.slice(span))
            }
            Receipt::Copy(Origin::Zeroes) => {
                let region = &self.ram.regions()[span.region];
                if span.pages < PUNCH_PAGES || !region.punch(span.page, span.pages) {
                    self.ram.slice(span).zero();
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::time::Duration;

    use vm_memory::GuestAddress;
    use zerocopy::FromBytes;

    use super::super::batch::Batch;
    use super::*;
    use crate::transport::memory;
    use crate::transport::socket::SocketConnection;
    use crate::transport::{Connect, Listen, Patience};
    use crate::vm::RamRegion;
    use crate::wire::batch::{BATCH_LEN, BatchHeader, BatchKind, PageRange, RANGE_LEN};
    use crate::{GuestRam, PAGE_SIZE};

    const PAGES: u64 = 256;
    /// No page is full of it.
    const NO_PAGE: u8 = 0xee;

    /// The decoder of [`Encoding::Filled`].
    pub(super) fn repeat(bytes: &[u8], pages: RamSlice<'_>) -> Result<(), Error> {
        for (page, &byte) in bytes.iter().enumerate() {
            if byte == NO_PAGE {
                return Err(Error::Protocol("no page is full of that".into()));
            }
            let page = pages.part(page * PAGE_SIZE as usize, PAGE_SIZE as usize);
            page.copy_from(&[byte; PAGE_SIZE as usize]);
        }
        Ok(())
    }

    fn ram() -> Ram {
        let len = PAGES * PAGE_SIZE;
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), len as usize)]).unwrap();
        Ram::new(&ram, &[RamRegion { gpa: 0, len }]).unwrap()
    }

    fn span(page: u64, pages: u64) -> Span {
        Span {
            region: 0,
            page,
            pages,
        }
    }

    fn set(ram: &Ram, page: u64, byte: u8) {
        ram.slice(span(page, 1))
            .copy_from(&[byte; PAGE_SIZE as usize]);
    }

    /// The byte of which each page is full.
    fn pages(ram: &Ram) -> Vec<u8> {
        let mut page = [0; PAGE_SIZE as usize];
        let byte = |at| {
            ram.slice(span(at, 1)).copy_to(&mut page);
            assert!(page.iter().all(|&byte| byte == page[0]), "page {at}");
            page[0]
        };
        (0..PAGES).map(byte).collect()
    }

    fn connections() -> [(&'static str, [Arc<dyn Connection>; 2]); 2] {
        let patience = Patience {
            timeout: Duration::from_secs(10),
            give_up: &|| false,
        };
        let (connect, listen) = memory::network(&[]);
        let here = connect.connect(patience).unwrap();
        let there = listen.accept(patience.timeout).unwrap().unwrap();
        let (one, other) = UnixStream::pair().unwrap();
        let socket = |end: UnixStream| Arc::new(SocketConnection::new(end.into()).unwrap());
        [
            ("memory", [here.into(), there.into()]),
            ("socket", [socket(one), socket(other)]),
        ]
    }

    /// Has `plan` receive a batch as a stream of the destination does.
    fn receive(
        plan: &mut Plan<'_>,
        ram: &Ram,
        connection: &dyn Connection,
    ) -> Result<Vec<Receipt>, Error> {
        let mut header = [0; BATCH_LEN];
        connection.receive(&mut header).unwrap();
        let header = BatchHeader::read_from_bytes(&header).unwrap();
        let BatchKind::Pages { ranges, .. } = header.kind().unwrap() else {
            panic!("{header:?}")
        };
        let mut table = vec![0; ranges * RANGE_LEN];
        connection.receive(&mut table).unwrap();
        let table = <[PageRange]>::ref_from_bytes(&table).unwrap();
        header.verify(table).unwrap();
        plan.clear();
        for range in table {
            let place = ram.find(range.gpa(), range.pages()).unwrap();
            plan.push(place, range.encoding().unwrap(), range.payload() as usize);
        }
        plan.receive(connection).unwrap();
        plan.steps().try_for_each(|step| plan.fill(step))?;
        Ok(plan.steps().map(|step| step.receipt).collect())
    }

    #[test]
    fn ranges_of_each_kind_are_read_in_one_go_and_land_where_they_belong() {
        use Encoding::{Filled, Raw, Zero};
        let rounds: [&[(u64, u64, Encoding)]; 3] = [
            &[
                (3, 2, Raw),
                (10, 4, Filled),
                (1, 1, Zero),
                (40, 20, Raw),
                (20, 1, Filled),
                (30, 1, Raw),
                (70, 140, Zero),
            ],
            &[(9, 1, Filled), (5, 1, Raw)],
            &[(9, 1, Zero)],
        ];
        for (name, [ours, theirs]) in connections() {
            let (from, to) = (ram(), ram());
            let mut batch = Batch::new();
            let mut plan = Plan::new(&to);
            let mut expected = vec![0xaa; PAGES as usize];
            (0..PAGES).for_each(|page| set(&to, page, 0xaa));
            for (round, ranges) in rounds.into_iter().enumerate() {
                batch.clear();
                for &(first, count, encoding) in ranges {
                    for page in first..first + count {
                        let byte = match encoding {
                            Zero => 0,
                            Raw | Filled => (page as u8).wrapping_mul(7) + round as u8 + 1,
                        };
                        set(&from, page, byte);
                        expected[page as usize] = byte;
                    }
                    batch.push(&from, span(first, count), encoding);
                }
                let (bytes, pieces) = batch.frame(1);
                ours.send_pieces(bytes, pieces).unwrap();
                let length: usize = pieces.iter().map(Piece::len).sum();
                assert_eq!(length, batch.len(), "{name}");
                let receipts = receive(&mut plan, &to, &*theirs).unwrap();
                for (receipt, &(_, _, encoding)) in receipts.iter().zip(ranges) {
                    let fits = match encoding {
                        Raw => matches!(receipt, Receipt::Direct),
                        Filled => matches!(receipt, Receipt::Decode(_)),
                        Zero => matches!(receipt, Receipt::Copy(Origin::Zeroes)),
                    };
                    assert!(fits, "{encoding:?} by {receipt:?}");
                }
                assert_eq!(pages(&to), expected, "{name}, round {round}");
            }
            assert!(!theirs.wait_readable(Duration::ZERO).unwrap(), "{name}");
        }
    }

    #[test]
    fn what_makes_no_page_is_refused_and_the_next_batch_is_read_from_its_beginning() {
        let (from, to) = (ram(), ram());
        let mut plan = Plan::new(&to);
        let [(_, [ours, theirs]), _] = connections();
        for byte in [NO_PAGE, 5] {
            set(&from, 8, byte);
            let mut batch = Batch::new();
            batch.push(&from, span(8, 1), Encoding::Filled);
            batch.push(&from, span(8, 1), Encoding::Raw);
            let (bytes, pieces) = batch.frame(1);
            ours.send_pieces(bytes, pieces).unwrap();
            let received = receive(&mut plan, &to, &*theirs);
            assert_eq!(received.is_err(), byte == NO_PAGE, "{received:?}");
        }
        assert_eq!(pages(&to)[8], 5);
    }
}
