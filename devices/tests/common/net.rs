//! A network of datagram sockets, and a driver for the device on it.
#![allow(dead_code)] // Each test file uses its part.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use block::Buffer;
use devices::virtio::net::backend::NetBackend;
use devices::virtio::net::{Mac, Offloads};
use devices::virtio::{Net, NetConfig, NetPort};

use super::common::{BUFFERS, Driver, readable, writable};

pub const MAC: Mac = Mac::new([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
/// Bytes of the header of every packet.
pub const HEADER: usize = 12;
pub const F_CTRL_VQ: u64 = 1 << 17;
pub const F_MRG_RXBUF: u64 = 1 << 15;
pub const F_MQ: u64 = 1 << 22;
pub const F_GUEST_ANNOUNCE: u64 = 1 << 21;
pub const F_CTRL_RX: u64 = 1 << 18;
/// All that makes packets larger than the network's.
pub const F_GUEST_TSO: u64 = 1 << 7 | 1 << 8 | 1 << 9 | 1 << 54 | 1 << 55;

/// The far ends, one a pair, and what the device said to its backend.
#[derive(Debug)]
pub struct Wire {
    pub far: Vec<UnixDatagram>,
    near: Vec<UnixDatagram>,
    pub pairs: AtomicU16,
    pub offloads: AtomicU32,
    pub refuses: Mutex<Option<io::ErrorKind>>,
}

/// The near end, as a device's backend.
pub struct Near(pub Arc<Wire>);

impl Wire {
    pub fn new(pairs: u16) -> Arc<Self> {
        let (far, near) = (0..pairs)
            .map(|_| {
                let (far, near) = UnixDatagram::pair().unwrap();
                near.set_nonblocking(true).unwrap();
                far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                (far, near)
            })
            .unzip();
        Arc::new(Self {
            far,
            near,
            pairs: AtomicU16::new(u16::MAX),
            offloads: AtomicU32::new(u32::MAX),
            refuses: Mutex::new(None),
        })
    }

    /// Sends a packet towards the guest, to `mac`, with this content behind the addresses.
    pub fn send_to(&self, pair: usize, mac: Mac, content: &[u8]) {
        let mut packet = vec![0; HEADER];
        packet.extend(mac.bytes());
        packet.extend([2, 0, 0, 0, 0, 9]);
        packet.extend(content);
        self.far[pair].send(&packet).unwrap();
    }

    /// The next packet of the guest, with its header.
    pub fn receive(&self, pair: usize) -> Vec<u8> {
        let mut packet = vec![0; 70_000];
        let len = self.far[pair].recv(&mut packet).unwrap();
        packet.truncate(len);
        packet
    }

    pub fn is_silent(&self, pair: usize) -> bool {
        self.far[pair].set_nonblocking(true).unwrap();
        let silent = self.far[pair].recv(&mut [0]).is_err();
        self.far[pair].set_nonblocking(false).unwrap();
        silent
    }
}

impl NetBackend for Near {
    fn pairs(&self) -> u16 {
        self.0.near.len() as u16
    }

    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn set_pairs(&self, pairs: u16) -> io::Result<()> {
        if let Some(kind) = *self.0.refuses.lock().unwrap() {
            return Err(kind.into());
        }
        self.0.pairs.store(pairs, Ordering::SeqCst);
        Ok(())
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.0.offloads.store(offloads.bits(), Ordering::SeqCst);
        Ok(())
    }

    fn waiting(&self, pair: u16) -> BorrowedFd<'_> {
        self.0.near[usize::from(pair)].as_fd()
    }

    fn receive(&self, pair: u16, into: &[Buffer<'_>]) -> io::Result<usize> {
        let mut packet = [0; 70_000];
        let len = self.0.near[usize::from(pair)].recv(&mut packet)?;
        let mut at = 0;
        for buffer in into {
            let part = buffer.len().min(len - at);
            buffer
                .take(part)
                .as_volatile()
                .copy_from(&packet[at..at + part]);
            at += part;
        }
        Ok(at)
    }

    fn send(&self, pair: u16, from: &[Buffer<'_>]) -> io::Result<()> {
        let mut packet = [0; 70_000];
        let mut at = 0;
        for buffer in from {
            buffer
                .as_volatile()
                .copy_to(&mut packet[at..at + buffer.len()]);
            at += buffer.len();
        }
        self.0.near[usize::from(pair)].send(&packet[..at]).map(drop)
    }
}

pub fn device(wire: &Arc<Wire>) -> (Box<Net>, NetPort) {
    let config = NetConfig {
        mac: MAC,
        pairs: wire.far.len() as u16,
        mtu: Some(1500),
        offloads: Offloads::ALL,
    };
    let (net, port) = Net::new(config, Box::new(Near(Arc::clone(wire)))).unwrap();
    (Box::new(net), port)
}

/// A driver whose device takes part in the network.
pub fn driver(wire: &Arc<Wire>, without: u64) -> (Driver, NetPort) {
    let (net, port) = device(wire);
    let mut driver = Driver::new(net);
    driver.transport.pause().unwrap();
    driver.transport.resume().unwrap();
    driver.start(without);
    (driver, port)
}

impl Driver {
    /// Makes a receive buffer of `len` bytes at `addr` available.
    pub fn add_buffer(&mut self, queue: usize, addr: u64, len: u32) -> u16 {
        let head = self.offer(queue, &[writable(addr, len)], false);
        self.notify(queue);
        head
    }

    /// Sends a packet with an empty header; waits until it is completed.
    pub fn transmit(&mut self, queue: usize, frame: &[u8]) {
        let at = BUFFERS + 0x20_0000;
        self.put(at, &[0; HEADER]);
        self.put(at + HEADER as u64, frame);
        let len = self.request(queue, &[readable(at, (HEADER + frame.len()) as u32)], false);
        assert_eq!(len, 0);
    }

    /// Carries out a command of the control queue; whether the device did it.
    pub fn control(&mut self, queue: usize, class: u8, command: u8, data: &[u8]) -> bool {
        let at = BUFFERS + 0x30_0000;
        let mut request = vec![class, command];
        request.extend(data);
        self.put(at, &request);
        let ack = at + 0x8000;
        self.put(ack, &[0xff]);
        let segments = [readable(at, request.len() as u32), writable(ack, 1)];
        assert_eq!(self.request(queue, &segments, false), 1);
        match self.bytes(ack, 1)[0] {
            0 => true,
            1 => false,
            other => panic!("acknowledged with {other}"),
        }
    }
}
