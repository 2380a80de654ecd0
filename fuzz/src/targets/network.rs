//! A network interface on a network that exists only here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use block::Buffer;
use devices::virtio::net::{Net, NetBackend, NetConfig, Offloads};

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
