//! A network interface on a network that exists only here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use block::Buffer;
use devices::virtio::net::{Net, NetBackend, NetConfig, Offloads};

use super::descriptors::{describe, plain_seeds};

/// Packets that wait for the guest, by their length with the header; some are too short or too long.
const PACKETS: [usize; 8] = [72, 12, 1526, 13, 65_562, 5, 70_000, 300];
/// Packets that it has to give at all.
const MOST: usize = 64;
/// Pairs of queues.
const PAIRS: u16 = 2;

/// A network that has some packets to give, and takes all.
struct Network {
    given: AtomicUsize,
    /// Never readable: the packets are there from the beginning.
    silence: OwnedFd,
    _other_end: OwnedFd,
}

impl NetBackend for Network {
    fn pairs(&self) -> u16 {
        PAIRS
    }

    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn set_pairs(&self, pairs: u16) -> io::Result<()> {
        assert!(pairs <= PAIRS);
        Ok(())
    }

    fn set_offloads(&self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn waiting(&self, pair: u16) -> BorrowedFd<'_> {
        assert!(pair < PAIRS);
        self.silence.as_fd()
    }

    fn receive(&self, pair: u16, into: &[Buffer<'_>]) -> io::Result<usize> {
        assert!(pair < PAIRS);
        let given = self.given.fetch_add(1, Ordering::Relaxed);
        if given >= MOST {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let len = PACKETS[given % PACKETS.len()];
        let mut left = len;
        for buffer in into {
            let part = buffer.take(left);
            part.as_volatile().copy_from(&vec![0xa5_u8; part.len()]);
            left -= part.len();
        }
        Ok(len)
    }

    fn send(&self, pair: u16, packet: &[Buffer<'_>]) -> io::Result<()> {
        assert!(pair < PAIRS);
        for buffer in packet {
            let mut bytes = vec![0_u8; buffer.len()];
            buffer.as_volatile().copy_to(&mut bytes);
        }
        Ok(())
    }
}

/// An interface on such a network.
pub(super) fn interface() -> Net {
    let (silence, other_end) = rustix::pipe::pipe().expect("a pipe");
    let network = Network {
        given: AtomicUsize::new(0),
        silence,
        _other_end: other_end,
    };
    let config = NetConfig {
        mac: "52:54:00:12:34:56".parse().expect("an address"),
        pairs: PAIRS,
        mtu: Some(1500),
        offloads: Offloads::ALL,
    };
    let (net, _port) = Net::new(config, Box::new(network)).expect("an interface");
    net
}

/// Packets on each queue, a packet with offloads, and each command (virtio 1.2, 5.1.6).
pub(super) fn seeds() -> Vec<Vec<u8>> {
    const AT: u16 = 0x8000;
    const STATUS: u16 = 0x9000;
    // A driver that takes all features, and what it has at `AT`.
    let begin = |content: &[u8]| {
        let mut seed = vec![0, 0, 0, 0, 0, 3];
        seed.extend((AT / 4).to_le_bytes());
        seed.push(content.len() as u8);
        seed.extend_from_slice(content);
        seed
    };
    let mut seeds = plain_seeds(5);
    let table = [
        2, 0, 0, 0, 2, 1, 2, 3, 4, 5, 2, 1, 2, 3, 4, 6, 1, 0, 0, 0, 3, 0, 0, 0, 0, 1,
    ];
    let commands: [(u8, u8, &[u8]); 8] = [
        (0, 0, &[1]),
        (0, 5, &[1]),
        (1, 0, &table),
        (1, 1, &[0x52, 0x54, 0, 1, 2, 3]),
        (3, 0, &[]),
        (4, 0, &[2, 0]),
        (5, 0, &[2, 0, 0, 0, 0, 0, 0, 0]),
        (9, 9, &[]),
    ];
    for (class, command, content) in commands {
        let content = [&[class, command], content].concat();
        let mut seed = begin(&content);
        seed.extend(describe(4, 0, AT, content.len() as u8, 1));
        seed.extend(describe(4, 1, STATUS, 1, 2));
        seed.extend([6, 4, 0, 7, 4]);
        // Packets on all queues as the command left them, and another process that takes over.
        for queue in 0..4 {
            let flags = if queue % 2 == 1 { 0 } else { 2 };
            seed.extend(describe(queue, 0, 0xa000, 136, flags));
            seed.extend([6, queue, 0, 7, queue]);
        }
        seed.extend([9, 6, 4, 0, 7, 4]);
        seeds.push(seed);
    }
    // Checksum to be filled in, and segments of TCP over IPv4.
    let mut packet = vec![1, 1, 54, 0, 0, 2, 34, 0, 16, 0, 0, 0];
    packet.resize(120, 0x5a);
    let mut seed = begin(&packet);
    seed.extend(describe(1, 0, AT, 12, 1));
    seed.extend(describe(1, 1, AT + 12, 108, 0));
    seed.extend([6, 1, 0, 7, 1, 9, 6, 1, 0, 7, 1]);
    seeds.push(seed);
    seeds
}
