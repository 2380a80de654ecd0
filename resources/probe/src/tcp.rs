//! An echo server on TCP (RFC 9293, RFC 862): what comes in goes out again, in order.
//!
//! It never opens a connection. What it has received is what it has to send, so that one buffer a
//! connection holds both, and its free part is the window. Segments out of order are left to the peer to
//! send again. A peer that is not heard is sent to again after 300 ms, then after twice as long each
//! time, and given up after some minutes.

use crate::clock::{Clock, tsc};
use crate::net::{PORT, Sender};
use crate::packet::{IP, MTU, Peer, TCP, checksum, get16, get32, pseudo_header, put16, put32};

const CONNECTIONS: usize = 8;
const CAPACITY: usize = 16384;
const HEADER: usize = 20;
/// Most bytes of ours in a segment, and what a peer that says nothing takes (RFC 9293, 3.7.1).
const MOST: usize = MTU - IP - HEADER;
const LEAST: usize = 536;
const PATIENCE_US: u64 = 300_000;
const MOST_PATIENCE_US: u64 = 10_000_000;
const TRIES: u32 = 20;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;

static mut BUFFERS: [[u8; CAPACITY]; CONNECTIONS] = [[0; CAPACITY]; CONNECTIONS];

fn buffer(connection: usize) -> &'static mut [u8; CAPACITY] {
    // SAFETY: only CPU 0 comes here, and keeps no buffer from one call to the next.
    unsafe { &mut (*(&raw mut BUFFERS))[connection] }
}

/// How far `a` is before `b`, in the circle of sequence numbers.
fn ahead(a: u32, b: u32) -> i32 {
    b.wrapping_sub(a) as i32
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    SynReceived,
    Established,
}

/// What passed, since boot.
#[derive(Default)]
pub struct Counters {
    pub accepted: u64,
    /// Both sides have said that they are done.
    pub closed: u64,
    /// Ended otherwise: by the peer, or given up.
    pub reset: u64,
    /// Bytes received, in order.
    pub bytes: u64,
    /// Segments sent again.
    pub resent: u64,
}

#[derive(Clone, Copy)]
struct Connection {
    state: State,
    peer: Peer,
    port: u16,
    /// First byte that the peer has not acknowledged, next one to be sent, and behind the last one
    /// that ever was.
    unacknowledged: u32,
    next: u32,
    last: u32,
    /// Where the unacknowledged bytes lie in the buffer, and how many there are, sent or not.
    start: usize,
    len: usize,
    /// The next byte that is expected.
    expected: u32,
    /// Behind the last byte that the peer was allowed to send.
    edge: u32,
    window: usize,
    segment: usize,
    /// The peer is done; our own end has this number.
    end: Option<u32>,
    duplicates: u32,
    tries: u32,
    /// When something is sent again; 0 for never.
    due: u64,
}

const FREE: Connection = Connection {
    state: State::Free,
    peer: Peer {
        mac: [0; 6],
        ip: [0; 4],
    },
    port: 0,
    unacknowledged: 0,
    next: 0,
    last: 0,
    start: 0,
    len: 0,
    expected: 0,
    edge: 0,
    window: 0,
    segment: LEAST,
    end: None,
    duplicates: 0,
    tries: 0,
    due: 0,
};

/// A segment as it came.
struct Segment<'a> {
    from: Peer,
    port: u16,
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    window: usize,
    options: &'a [u8],
    data: &'a [u8],
}

impl<'a> Segment<'a> {
    fn read(from: Peer, bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() < HEADER || get16(bytes, 2) != PORT {
            return None;
        }
        let header = usize::from(bytes[12] >> 4) * 4;
        if header < HEADER || bytes.len() < header {
            return None;
        }
        Some(Self {
            from,
            port: get16(bytes, 0),
            sequence: get32(bytes, 4),
            acknowledged: get32(bytes, 8),
            flags: bytes[13],
            window: usize::from(get16(bytes, 14)),
            options: &bytes[HEADER..header],
            data: &bytes[header..],
        })
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Numbers that it takes.
    fn len(&self) -> u32 {
        self.data.len() as u32 + u32::from(self.has(SYN)) + u32::from(self.has(FIN))
    }

    /// Most bytes that the peer wants in a segment.
    fn most(&self) -> usize {
        let mut options = self.options;
        while let [kind, rest @ ..] = options {
            options = match (kind, rest) {
                (0, _) => break,
                (1, _) => rest,
                (2, [4, high, low, ..]) => {
                    let most = usize::from(*high) << 8 | usize::from(*low);
                    return most.clamp(64, MOST);
                }
                (_, [len, ..]) if usize::from(*len) >= 2 => {
                    options.get(usize::from(*len)..).unwrap_or(&[])
                }
                _ => break,
            };
        }
        LEAST
    }
}

pub struct Tcp {
    connections: [Connection; CONNECTIONS],
    pub counters: Counters,
    clock: Clock,
}

impl Tcp {
    pub fn new(clock: &Clock) -> Self {
        Self {
            connections: [FREE; CONNECTIONS],
            counters: Counters::default(),
            clock: *clock,
        }
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.connections
            .iter()
            .filter(|connection| connection.state != State::Free)
            .count()
    }

    /// Answers a segment whose checksum is right; false when it is not for this port.
    pub fn answer(&mut self, from: Peer, bytes: &[u8], sender: &mut Sender) -> bool {
        let Some(segment) = Segment::read(from, bytes) else {
            return false;
        };
        let known = self.connections.iter().position(|connection| {
            connection.state != State::Free
                && connection.peer.ip == from.ip
                && connection.port == segment.port
        });
        match known {
            Some(index) => self.go_on(index, &segment, sender),
            None => self.begin(&segment, sender),
        }
        true
    }

    /// Sends again what is due.
    pub fn tend(&mut self, sender: &mut Sender) {
        let now = tsc();
        for index in 0..CONNECTIONS {
            let connection = &mut self.connections[index];
            if connection.state == State::Free || connection.due == 0 || now < connection.due {
                continue;
            }
            connection.tries += 1;
            if connection.tries > TRIES {
                connection.send(RST | ACK, connection.next, index, 0, sender);
                *connection = FREE;
                self.counters.reset += 1;
                continue;
            }
            self.counters.resent += 1;
            connection.due = 0;
            connection.send_again(index, sender);
            connection.arm(&self.clock);
        }
    }

    fn begin(&mut self, segment: &Segment<'_>, sender: &mut Sender) {
        if segment.has(RST) {
            return;
        }
        let free = self
            .connections
            .iter()
            .position(|connection| connection.state == State::Free);
        let (Some(index), true) = (free, segment.flags & (SYN | ACK) == SYN) else {
            // Nobody is here.
            let mut stranger = FREE;
            stranger.peer = segment.from;
            stranger.port = segment.port;
            if segment.has(ACK) {
                stranger.send(RST, segment.acknowledged, 0, 0, sender);
            } else {
                stranger.expected = segment.sequence.wrapping_add(segment.len());
                stranger.send(RST | ACK, 0, 0, 0, sender);
            }
            return;
        };
        // A number that nobody guesses easily, and that goes on from one connection to the next.
        let first = (tsc() >> 6) as u32 ^ u32::from(segment.port).wrapping_mul(0x9e37_79b9);
        let connection = &mut self.connections[index];
        *connection = FREE;
        connection.state = State::SynReceived;
        connection.peer = segment.from;
        connection.port = segment.port;
        connection.unacknowledged = first;
        connection.next = first.wrapping_add(1);
        connection.last = connection.next;
        connection.expected = segment.sequence.wrapping_add(1);
        connection.window = segment.window;
        connection.segment = segment.most();
        connection.send(SYN | ACK, first, index, 0, sender);
        connection.arm(&self.clock);
    }

    /// Processes a segment of a connection, in the order of RFC 9293, 3.10.7.4.
    fn go_on(&mut self, index: usize, segment: &Segment<'_>, sender: &mut Sender) {
        let connection = &mut self.connections[index];
        connection.peer = segment.from;
        if !connection.accepts(segment) {
            if !segment.has(RST) {
                connection.acknowledge(index, sender);
            }
            return;
        }
        if segment.has(RST) {
            // RFC 5961: only with the very number that is expected.
            if segment.sequence == connection.expected {
                *connection = FREE;
                self.counters.reset += 1;
            } else {
                connection.acknowledge(index, sender);
            }
            return;
        }
        if segment.has(SYN) {
            // Ours was lost, or it is of another time: the peer finds out by our answer.
            if connection.state == State::SynReceived {
                connection.send(SYN | ACK, connection.unacknowledged, index, 0, sender);
            } else {
                connection.acknowledge(index, sender);
            }
            return;
        }
        if !segment.has(ACK) {
            return;
        }
        let known = connection.state;
        if !connection.take_acknowledgement(index, segment, &self.clock, sender) {
            return;
        }
        if known == State::SynReceived {
            self.counters.accepted += 1;
        }
        if connection.is_over() {
            *connection = FREE;
            self.counters.closed += 1;
            return;
        }
        self.counters.resent += u64::from(connection.duplicates == 3);
        let taken = connection.take_data(index, segment);
        self.counters.bytes += taken as u64;
        let sent = connection.push(index, sender);
        connection.arm(&self.clock);
        if !sent && (segment.len() > 0 || connection.should_tell_window()) {
            connection.acknowledge(index, sender);
        }
    }
}

impl Connection {
    /// Room for what the peer sends.
    fn room(&self) -> usize {
        CAPACITY - self.len
    }

    /// Whether a segment has anything that lies in the window.
    fn accepts(&self, segment: &Segment<'_>) -> bool {
        let from = ahead(self.expected, segment.sequence);
        let to = from.wrapping_add(segment.len() as i32);
        let room = self.room() as i32;
        // Also what begins before and ends in the window, and, into a full window, only acknowledges.
        from <= room
            && to >= 0
            && (from < room || segment.len() == 0 || from <= 0)
            && (to > 0 || segment.len() == 0)
    }

    /// Whether everything of both sides is received by the other.
    fn is_over(&self) -> bool {
        self.end
            .is_some_and(|end| ahead(end, self.unacknowledged) > 0)
    }

    /// Takes note of what the peer has; false when it cannot be.
    fn take_acknowledgement(
        &mut self,
        index: usize,
        segment: &Segment<'_>,
        clock: &Clock,
        sender: &mut Sender,
    ) -> bool {
        let acknowledged = segment.acknowledged;
        let advance = ahead(self.unacknowledged, acknowledged);
        if ahead(acknowledged, self.last) < 0 {
            // More than was sent.
            if self.state == State::SynReceived {
                self.send(RST, acknowledged, index, 0, sender);
            } else {
                self.acknowledge(index, sender);
            }
            return false;
        }
        if self.state == State::SynReceived {
            if advance <= 0 {
                return false;
            }
            // Our SYN takes a number and no byte.
            self.state = State::Established;
            self.unacknowledged = self.unacknowledged.wrapping_add(1);
        }
        let advance = ahead(self.unacknowledged, acknowledged);
        if advance > 0 {
            let bytes = (advance as usize).min(self.len);
            self.start = (self.start + bytes) % CAPACITY;
            self.len -= bytes;
            self.unacknowledged = acknowledged;
            if ahead(self.next, acknowledged) > 0 {
                self.next = acknowledged;
            }
        }
        if advance >= 0 {
            let repeated = advance == 0
                && segment.len() == 0
                && segment.window == self.window
                && self.next != self.unacknowledged;
            self.window = segment.window;
            if repeated {
                self.duplicates += 1;
                if self.duplicates == 3 {
                    // RFC 5681: the next segment was lost, those behind it were not.
                    self.send_first(index, sender);
                }
            } else if advance > 0 {
                self.duplicates = 0;
                self.tries = 0;
                self.due = 0;
                self.arm(clock);
            }
        }
        true
    }

    /// Takes what comes next, as far as there is room; how many bytes.
    fn take_data(&mut self, index: usize, segment: &Segment<'_>) -> usize {
        let before = ahead(segment.sequence, self.expected);
        if before < 0 || self.end.is_some() {
            return 0;
        }
        let fresh = segment.data.get(before as usize..).unwrap_or(&[]);
        let taken = fresh.len().min(self.room());
        let buffer = buffer(index);
        for (i, byte) in fresh[..taken].iter().enumerate() {
            buffer[(self.start + self.len + i) % CAPACITY] = *byte;
        }
        self.len += taken;
        self.expected = self.expected.wrapping_add(taken as u32);
        let end = segment.sequence.wrapping_add(segment.data.len() as u32);
        if segment.has(FIN) && end == self.expected {
            self.expected = self.expected.wrapping_add(1);
            // Behind what is still to be sent back.
            self.end = Some(self.unacknowledged.wrapping_add(self.len as u32));
        }
        taken
    }

    /// Sends what the peer has room for; whether anything was.
    fn push(&mut self, index: usize, sender: &mut Sender) -> bool {
        let mut sent = false;
        loop {
            let before = self.next;
            if !self.send_next(index, self.window, sender) || self.next == before {
                return sent;
            }
            sent = true;
        }
    }

    /// Sends the next segment, of what lies in `window`; false when it could not be.
    fn send_next(&mut self, index: usize, window: usize, sender: &mut Sender) -> bool {
        let offset = self.next.wrapping_sub(self.unacknowledged) as usize;
        let bytes = self
            .len
            .min(window)
            .saturating_sub(offset)
            .min(self.segment);
        if bytes > 0 {
            if !self.send(ACK | PSH, self.next, index, bytes, sender) {
                return false;
            }
            self.next = self.next.wrapping_add(bytes as u32);
        } else if self.end == Some(self.next) {
            if !self.send(FIN | ACK, self.next, index, 0, sender) {
                return false;
            }
            self.next = self.next.wrapping_add(1);
        }
        if ahead(self.last, self.next) > 0 {
            self.last = self.next;
        }
        true
    }

    /// Sends the first unacknowledged segment once more, and goes on from where it was.
    fn send_first(&mut self, index: usize, sender: &mut Sender) {
        let next = self.next;
        self.next = self.unacknowledged;
        self.send_next(index, self.window.max(1), sender);
        if ahead(self.next, next) > 0 {
            self.next = next;
        }
    }

    /// Begins again with what the peer has not acknowledged, by one segment; into a closed window one
    /// byte.
    fn send_again(&mut self, index: usize, sender: &mut Sender) {
        if self.state == State::SynReceived {
            self.send(SYN | ACK, self.unacknowledged, index, 0, sender);
            return;
        }
        self.next = self.unacknowledged;
        self.send_next(index, self.window.max(1), sender);
    }

    /// Sets the time after which something is sent again, if anything is under way or held back.
    fn arm(&mut self, clock: &Clock) {
        let waits = self.next != self.unacknowledged || self.len > 0 || self.end.is_some();
        if !waits {
            self.due = 0;
        } else if self.due == 0 {
            let patience = (PATIENCE_US << self.tries.min(16)).min(MOST_PATIENCE_US);
            self.due = tsc() + clock.cycles_of_us(patience);
        }
    }

    /// Whether the peer may send much more than it knows.
    fn should_tell_window(&self) -> bool {
        let edge = self.expected.wrapping_add(self.room() as u32);
        ahead(self.edge, edge) >= (CAPACITY / 2) as i32
    }

    fn acknowledge(&mut self, index: usize, sender: &mut Sender) {
        self.send(ACK, self.next, index, 0, sender);
    }

    /// Sends a segment with so many bytes from the buffer.
    fn send(
        &mut self,
        flags: u8,
        sequence: u32,
        index: usize,
        bytes: usize,
        sender: &mut Sender,
    ) -> bool {
        let header = if flags & SYN != 0 { HEADER + 4 } else { HEADER };
        let room = self.room();
        self.edge = self.expected.wrapping_add(room as u32);
        let at = self.start + sequence.wrapping_sub(self.unacknowledged) as usize;
        let (own, peer, port, expected) = (sender.ip, self.peer, self.port, self.expected);
        sender.ip(peer, TCP, header + bytes, |segment| {
            put16(segment, 0, PORT);
            put16(segment, 2, port);
            put32(segment, 4, sequence);
            put32(segment, 8, if flags & ACK != 0 { expected } else { 0 });
            segment[12] = (header as u8 / 4) << 4;
            segment[13] = flags;
            put16(segment, 14, room as u16);
            if flags & SYN != 0 {
                segment[HEADER..HEADER + 2].copy_from_slice(&[2, 4]);
                put16(segment, HEADER + 2, MOST as u16);
            }
            let buffer = buffer(index);
            for (i, byte) in segment[header..].iter_mut().enumerate() {
                *byte = buffer[(at + i) % CAPACITY];
            }
            let sum = pseudo_header(own, peer.ip, TCP, header + bytes);
            let sum = checksum(segment, sum);
            put16(segment, 16, sum);
        })
    }
}
