//! virtio-net with one pair of queues, and what is answered on it: ARP, ICMP echo, UDP echo and TCP echo.

use core::sync::atomic::{Ordering, fence};

use crate::clock::{Clock, peek, poke};
use crate::options::Address;
use crate::packet::{
    ETHERNET, ICMP, IP, MTU, Peer, TCP, UDP, VNET, address, checksum, get16, pseudo_header, put16,
    put64,
};
use crate::serial::Serial;
use crate::shared::fault;
use crate::tcp::Tcp;
use crate::virtio::{self, AVAILABLE, QueueMemory, USED};

/// Entries of each queue, and buffers.
const SIZE: u16 = 64;
const BUFFER: usize = 2048;
/// The echo service (RFC 862).
pub const PORT: u16 = 7;
/// What a reply of the UDP echo has behind the request: its number, the tick's, and the time.
const TRAILER: usize = 24;
/// Most frames that one pass of the loop takes.
const FRAMES: usize = 16;

#[repr(C, align(4096))]
struct Buffers([[u8; BUFFER]; SIZE as usize]);

static mut RECEIVE_QUEUE: QueueMemory = QueueMemory::NEW;
static mut TRANSMIT_QUEUE: QueueMemory = QueueMemory::NEW;
static mut RECEIVE_BUFFERS: Buffers = Buffers([[0; BUFFER]; SIZE as usize]);
static mut TRANSMIT_BUFFERS: Buffers = Buffers([[0; BUFFER]; SIZE as usize]);

/// A queue whose entry `i` always uses buffer `i`.
struct Ring {
    base: u64,
    queue: u32,
    memory: u64,
    buffers: *mut Buffers,
    available: u16,
    used: u16,
}

impl Ring {
    fn new(
        base: u64,
        queue: u32,
        memory: *mut QueueMemory,
        buffers: *mut Buffers,
        device_writes: bool,
    ) -> Option<Self> {
        let memory = memory as u64;
        virtio::set_up(base, queue, SIZE, memory)?;
        for i in 0..u64::from(SIZE) {
            let descriptor = memory + i * 16;
            poke(descriptor, buffers as u64 + i * BUFFER as u64);
            poke(descriptor + 8, BUFFER as u32);
            poke(descriptor + 12, u16::from(device_writes) << 1);
            poke(descriptor + 14, 0u16);
        }
        Some(Self {
            base,
            queue,
            memory,
            buffers,
            available: 0,
            used: 0,
        })
    }

    /// Memory of a buffer that the device does not have.
    #[allow(clippy::mut_from_ref)]
    fn buffer(&self, entry: u16) -> &mut [u8; BUFFER] {
        // SAFETY: only CPU 0 comes here, with entries below SIZE that the device has given back, and
        // keeps no two buffers of the same entry.
        unsafe { &mut (&mut *self.buffers).0[usize::from(entry % SIZE)] }
    }

    /// Gives a buffer to the device, which is told by `notify`.
    fn give(&mut self, entry: u16) {
        let slot = u64::from(self.available % SIZE);
        poke(self.memory + AVAILABLE + 4 + slot * 2, entry);
        fence(Ordering::SeqCst);
        self.available = self.available.wrapping_add(1);
        poke(self.memory + AVAILABLE + 2, self.available);
    }

    /// Tells the device of given buffers, unless it looks by itself (VIRTQ_USED_F_NO_NOTIFY).
    fn notify(&self) {
        fence(Ordering::SeqCst);
        if peek::<u16>(self.memory + USED) & 1 == 0 {
            poke(self.base + 0x50, self.queue);
        }
    }

    /// A buffer that the device is done with, and the bytes in it.
    fn take(&mut self) -> Option<(u16, usize)> {
        if peek::<u16>(self.memory + USED + 2) == self.used {
            return None;
        }
        fence(Ordering::SeqCst);
        let element = self.memory + USED + 4 + u64::from(self.used % SIZE) * 8;
        self.used = self.used.wrapping_add(1);
        let len = peek::<u32>(element + 4) as usize;
        Some((peek::<u32>(element) as u16 % SIZE, len.min(BUFFER)))
    }
}

/// What passed, since boot.
#[derive(Default)]
struct Counters {
    received: u64,
    sent: u64,
    /// No buffer was free.
    unsent: u64,
    arp: u64,
    icmp: u64,
    udp: u64,
    /// Not for us, or nothing that we know.
    ignored: u64,
    /// Damaged, by their checksums.
    damaged: u64,
}

/// The sending half: all that an answer needs.
pub struct Sender {
    ring: Ring,
    free: u64,
    pub mac: [u8; 6],
    pub ip: [u8; 4],
    identification: u16,
    sent: u64,
    unsent: u64,
    waiting: bool,
}

impl Sender {
    /// Sends a frame of `len` bytes from its Ethernet header on, which `fill` writes; false when
    /// there is no free buffer.
    fn frame(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> bool {
        while let Some((entry, _)) = self.ring.take() {
            self.free |= 1 << entry;
        }
        if self.free == 0 {
            self.unsent += 1;
            return false;
        }
        let entry = self.free.trailing_zeros() as u16;
        self.free &= !(1 << entry);
        let buffer = self.ring.buffer(entry);
        let padded = len.max(60);
        buffer[..VNET + padded].fill(0);
        fill(&mut buffer[VNET..VNET + len]);
        poke(
            self.ring.memory + u64::from(entry) * 16 + 8,
            (VNET + padded) as u32,
        );
        self.ring.give(entry);
        self.sent += 1;
        self.waiting = true;
        true
    }

    /// Sends an IP packet with `len` bytes of payload, which `fill` writes.
    pub fn ip(&mut self, to: Peer, protocol: u8, len: usize, fill: impl FnOnce(&mut [u8])) -> bool {
        self.identification = self.identification.wrapping_add(1);
        let (mac, ip, identification) = (self.mac, self.ip, self.identification);
        self.frame(ETHERNET + IP + len, |frame| {
            frame[..6].copy_from_slice(&to.mac);
            frame[6..12].copy_from_slice(&mac);
            put16(frame, 12, 0x0800);
            let header = &mut frame[ETHERNET..];
            // Version 4, five words of header; do not fragment; 64 hops.
            header[0] = 0x45;
            put16(header, 2, (IP + len) as u16);
            put16(header, 4, identification);
            put16(header, 6, 0x4000);
            header[8] = 64;
            header[9] = protocol;
            header[12..16].copy_from_slice(&ip);
            header[16..20].copy_from_slice(&to.ip);
            let sum = checksum(&header[..IP], 0);
            put16(header, 10, sum);
            fill(&mut header[IP..]);
        })
    }
}

pub struct Net {
    receive: Ring,
    sender: Sender,
    address: Address,
    counters: Counters,
    tcp: Tcp,
    clock: Clock,
    pub ticks: u64,
}

impl Net {
    pub fn new(base: u64, address: Address, clock: &Clock) -> Option<Self> {
        // VIRTIO_NET_F_MAC
        if virtio::begin(base, 1 << 5)? == 0 {
            return None;
        }
        let mut mac = [0; 6];
        for (i, byte) in mac.iter_mut().enumerate() {
            *byte = peek(base + 0x100 + i as u64);
        }
        let (memory, buffers) = (&raw mut RECEIVE_QUEUE, &raw mut RECEIVE_BUFFERS);
        let mut receive = Ring::new(base, 0, memory, buffers, true)?;
        let (memory, buffers) = (&raw mut TRANSMIT_QUEUE, &raw mut TRANSMIT_BUFFERS);
        let transmit = Ring::new(base, 1, memory, buffers, false)?;
        for entry in 0..SIZE {
            receive.give(entry);
        }
        virtio::go(base);
        receive.notify();
        let mut net = Self {
            receive,
            sender: Sender {
                ring: transmit,
                free: u64::MAX,
                mac,
                ip: address.ip,
                identification: 0,
                sent: 0,
                unsent: 0,
                waiting: false,
            },
            address,
            counters: Counters::default(),
            tcp: Tcp::new(clock),
            clock: *clock,
            ticks: 0,
        };
        // So that everybody knows from the beginning: a request for our own address (RFC 5227).
        let everyone = Peer {
            mac: [0xff; 6],
            ip: address.ip,
        };
        net.arp(1, everyone);
        net.notify();
        Some(net)
    }

    /// Says where it is.
    pub fn introduce(&self, out: &mut Serial) {
        let [a, b, c, d, e, f] = self.sender.mac;
        let [g, h, i, j] = self.address.ip;
        out.line(format_args!(
            "link mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} ip={g}.{h}.{i}.{j}"
        ));
    }

    pub fn print(&self, n: u64, out: &mut Serial) {
        let counters = &self.counters;
        let tcp = &self.tcp.counters;
        out.line(format_args!(
            "net n={n} received={} sent={} unsent={} arp={} icmp={} udp={} ignored={} damaged={} \
             tcp_open={} tcp_accepted={} tcp_closed={} tcp_reset={} tcp_bytes={} tcp_resent={}",
            counters.received,
            self.sender.sent,
            self.sender.unsent,
            counters.arp,
            counters.icmp,
            counters.udp,
            counters.ignored,
            counters.damaged,
            self.tcp.open(),
            tcp.accepted,
            tcp.closed,
            tcp.reset,
            tcp.bytes,
            tcp.resent,
        ));
    }

    fn notify(&mut self) {
        if core::mem::take(&mut self.sender.waiting) {
            self.sender.ring.notify();
        }
    }

    /// Answers what has come; never waits.
    pub fn poll(&mut self) {
        let mut given = false;
        for _ in 0..FRAMES {
            let Some((entry, len)) = self.receive.take() else {
                break;
            };
            self.counters.received += 1;
            let mut frame = [0; BUFFER];
            frame[..len].copy_from_slice(&self.receive.buffer(entry)[..len]);
            self.receive.give(entry);
            given = true;
            if len < VNET + ETHERNET || !self.answer(&frame[VNET..len]) {
                self.counters.ignored += 1;
            }
        }
        if given {
            self.receive.notify();
        }
        self.tcp.tend(&mut self.sender);
        self.notify();
    }

    fn answer(&mut self, frame: &[u8]) -> bool {
        let mac = address(frame, 6);
        match get16(frame, 12) {
            0x0806 => self.answer_arp(mac, &frame[ETHERNET..]),
            0x0800 => self.answer_ip(mac, &frame[ETHERNET..]),
            _ => false,
        }
    }

    fn answer_arp(&mut self, mac: [u8; 6], packet: &[u8]) -> bool {
        // A request for our address, of Ethernet and IPv4.
        let ours = packet.len() >= 28
            && packet[..8] == [0, 1, 8, 0, 6, 4, 0, 1]
            && packet[24..28] == self.address.ip;
        if ours {
            self.counters.arp += 1;
            let ip = address(packet, 14);
            self.arp(2, Peer { mac, ip });
        }
        ours
    }

    fn arp(&mut self, operation: u16, to: Peer) {
        let (mac, ip) = (self.sender.mac, self.address.ip);
        self.sender.frame(ETHERNET + 28, |frame| {
            frame[..6].copy_from_slice(&to.mac);
            frame[6..12].copy_from_slice(&mac);
            put16(frame, 12, 0x0806);
            let packet = &mut frame[ETHERNET..];
            packet[..6].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
            put16(packet, 6, operation);
            packet[8..14].copy_from_slice(&mac);
            packet[14..18].copy_from_slice(&ip);
            // Whose address is asked for is what a request is to tell.
            if operation != 1 {
                packet[18..24].copy_from_slice(&to.mac);
            }
            packet[24..28].copy_from_slice(&to.ip);
        });
    }

    fn answer_ip(&mut self, mac: [u8; 6], packet: &[u8]) -> bool {
        if packet.len() < IP || packet[0] >> 4 != 4 {
            return false;
        }
        let header = usize::from(packet[0] & 15) * 4;
        let total = usize::from(get16(packet, 2));
        if header < IP || total < header || packet.len() < total {
            return false;
        }
        if checksum(&packet[..header], 0) != 0 {
            return self.damaged("net-ip");
        }
        let from = Peer {
            mac,
            ip: address(packet, 12),
        };
        let to: [u8; 4] = address(packet, 16);
        // No fragments: neither more of them, nor an offset.
        if get16(packet, 6) & 0x3fff != 0 {
            return false;
        }
        let payload = &packet[header..total];
        let broadcast = u32::from_be_bytes(to) == self.address.broadcast();
        match packet[9] {
            ICMP if to == self.address.ip || broadcast => self.answer_icmp(from, payload),
            UDP if to == self.address.ip => self.answer_udp(from, payload),
            TCP if to == self.address.ip => {
                let sum = pseudo_header(from.ip, to, TCP, payload.len());
                if checksum(payload, sum) != 0 {
                    return self.damaged("net-tcp");
                }
                self.tcp.answer(from, payload, &mut self.sender)
            }
            _ => false,
        }
    }

    fn damaged(&mut self, kind: &'static str) -> bool {
        self.counters.damaged += 1;
        fault(kind, 0, 0, self.counters.damaged);
        true
    }

    fn answer_icmp(&mut self, from: Peer, message: &[u8]) -> bool {
        if message.len() < 8 || message[0] != 8 || message.len() > MTU - IP {
            return false;
        }
        if checksum(message, 0) != 0 {
            return self.damaged("net-icmp");
        }
        let sent = self.sender.ip(from, ICMP, message.len(), |reply| {
            reply.copy_from_slice(message);
            reply[0] = 0;
            put16(reply, 2, 0);
            let sum = checksum(reply, 0);
            put16(reply, 2, sum);
        });
        self.counters.icmp += u64::from(sent);
        true
    }

    fn answer_udp(&mut self, from: Peer, datagram: &[u8]) -> bool {
        if datagram.len() < 8 || get16(datagram, 2) != PORT {
            return false;
        }
        let len = usize::from(get16(datagram, 4));
        // Room for what a reply has more than its request.
        if len < 8 || datagram.len() < len || len + TRAILER > MTU - IP {
            return false;
        }
        let own = self.address.ip;
        let sum = pseudo_header(from.ip, own, UDP, len);
        if get16(datagram, 6) != 0 && checksum(&datagram[..len], sum) != 0 {
            return self.damaged("net-udp");
        }
        let (number, ticks) = (self.counters.udp + 1, self.ticks);
        let now = self.clock.mono_ns();
        let all = len + TRAILER;
        let sent = self.sender.ip(from, UDP, all, |reply| {
            put16(reply, 0, PORT);
            reply[2..4].copy_from_slice(&datagram[..2]);
            put16(reply, 4, all as u16);
            reply[8..len].copy_from_slice(&datagram[8..len]);
            put64(reply, len, number);
            put64(reply, len + 8, ticks);
            put64(reply, len + 16, now);
            let sum = pseudo_header(own, from.ip, UDP, all);
            let sum = checksum(reply, sum);
            // 0 would say that there is none.
            put16(reply, 6, if sum == 0 { 0xffff } else { sum });
        });
        self.counters.udp += u64::from(sent);
        true
    }
}
