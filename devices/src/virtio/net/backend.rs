//! What carries the packets of a network device.

use std::io;
use std::os::fd::BorrowedFd;

use block::Buffer;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_net::*;

/// Bytes before every packet: `struct virtio_net_hdr` with the number of buffers (virtio 1.2, 5.1.6).
pub const HEADER: u64 = 12;

/// The network behind a device. Packets carry a header of [`HEADER`] bytes in either direction.
///
/// Calls come from the queues' threads, at most two per pair of queues at a time.
pub trait NetBackend: Send + Sync {
    /// Pairs of queues that it can be asked for.
    fn pairs(&self) -> u16;

    /// What the guest may leave to it, and may be given to do itself.
    fn offloads(&self) -> Offloads;

    /// Lets so many pairs take part, the others not; none at all is silent in both directions, and
    /// what arrived meanwhile is not told later.
    ///
    /// # Errors
    /// When the host refuses.
    fn set_pairs(&self, pairs: u16) -> io::Result<()>;

    /// Says what may be left to the guest from here on.
    ///
    /// # Errors
    /// When the host refuses.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// A file that is readable while packets wait for `pair`.
    fn waiting(&self, pair: u16) -> BorrowedFd<'_>;

    /// Puts the next packet for `pair` into memory; its length, or more than the memory when it does
    /// not fit.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when none waits; anything else when none can be had.
    fn receive(&self, pair: u16, into: &[Buffer<'_>]) -> io::Result<usize>;

    /// Sends a packet of `pair`.
    ///
    /// # Errors
    /// When it was not sent.
    fn send(&self, pair: u16, packet: &[Buffer<'_>]) -> io::Result<()>;
}

/// Work on packets that one side may leave to the other: bits of `TUNSETOFFLOAD`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offloads(u32);

/// Bits, each with what it is as a feature of the guest and of the host.
const KINDS: [(u32, u32, Option<u32>); 6] = [
    (0x01, VIRTIO_NET_F_GUEST_CSUM, Some(VIRTIO_NET_F_CSUM)),
    (0x02, VIRTIO_NET_F_GUEST_TSO4, Some(VIRTIO_NET_F_HOST_TSO4)),
    (0x04, VIRTIO_NET_F_GUEST_TSO6, Some(VIRTIO_NET_F_HOST_TSO6)),
    (0x08, VIRTIO_NET_F_GUEST_ECN, Some(VIRTIO_NET_F_HOST_ECN)),
    (0x20, VIRTIO_NET_F_GUEST_USO4, Some(VIRTIO_NET_F_HOST_USO)),
    (0x40, VIRTIO_NET_F_GUEST_USO6, None),
];

impl Offloads {
    /// None: every packet is whole and has its checksum.
    pub const NONE: Self = Self(0);
    /// Checksums.
    pub const CHECKSUM: Self = Self(0x01);
    /// Checksums and segmentation of TCP.
    pub const TCP: Self = Self(0x0f);
    /// All of the above, and segmentation of UDP (Linux 6.2).
    pub const ALL: Self = Self(0x6f);

    /// The bits, if they are known ones.
    pub fn from_bits(bits: u32) -> Option<Self> {
        (bits & !Self::ALL.0 == 0).then_some(Self(bits))
    }

    /// The bits of `TUNSETOFFLOAD`.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether these are all among `others`.
    pub const fn are_in(self, others: Self) -> bool {
        self.0 & !others.0 == 0
    }

    /// Whether a packet may be larger than what the network carries.
    pub const fn segments(self) -> bool {
        self.0 & !Self::CHECKSUM.0 != 0
    }

    /// As features that a device offers.
    pub fn features(self) -> u64 {
        KINDS
            .iter()
            .filter(|(bit, ..)| self.0 & bit != 0)
            .fold(0, |features, (_, guest, host)| {
                features | 1 << guest | host.map_or(0, |host| 1 << host)
            })
    }

    /// What a driver with these features takes upon itself, without what is nothing alone: segmentation
    /// without checksums, and that of UDP for one version of IP.
    pub fn of_guest(features: u64) -> Self {
        let bits = KINDS
            .iter()
            .filter(|(_, guest, _)| features & (1 << guest) != 0)
            .fold(0, |bits, (bit, ..)| bits | bit);
        if bits & Self::CHECKSUM.0 == 0 {
            return Self::NONE;
        }
        let both = Self::ALL.0 & !Self::TCP.0;
        Self(if bits & both == both {
            bits
        } else {
            bits & !both
        })
    }

    /// As bits of the command that sets them while the device runs (virtio 1.2, 5.1.6.5.6): all that
    /// there may be.
    pub(super) fn guest_bits(self) -> u64 {
        KINDS
            .iter()
            .filter(|(bit, ..)| self.0 & bit != 0)
            .fold(0, |features, (_, guest, _)| features | 1 << guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_takes_upon_itself_follows_from_its_features() {
        assert_eq!(Offloads::of_guest(Offloads::ALL.features()), Offloads::ALL);
        assert_eq!(Offloads::of_guest(Offloads::TCP.features()), Offloads::TCP);
        assert_eq!(Offloads::of_guest(0), Offloads::NONE);
        let alone = Offloads::ALL.features() & !(1 << VIRTIO_NET_F_GUEST_CSUM);
        assert_eq!(Offloads::of_guest(alone), Offloads::NONE);
        let half = Offloads::ALL.features() & !(1 << VIRTIO_NET_F_GUEST_USO6);
        assert_eq!(Offloads::of_guest(half), Offloads::TCP);
    }

    #[test]
    fn only_known_bits_are_offloads() {
        assert_eq!(Offloads::from_bits(0x6f), Some(Offloads::ALL));
        // UFO, which hosts no longer do.
        assert_eq!(Offloads::from_bits(0x10), None);
    }
}
