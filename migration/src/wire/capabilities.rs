//! What an engine can do beyond the first version of the protocol.

use std::ops::{BitAnd, BitOr};

/// A set of what an engine can do beyond the first version of the protocol, as it travels: one bit each. Bits that are
/// not known here are of later engines, and not agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(u64);

impl Capabilities {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// A destination names its host, in the welcome and when it is asked what became of a guest.
    pub const NAMES_HOST: Self = Self(1);
    /// A stripe travels on any stream and stays with it; without, stripe *i* on stream *i mod N*.
    pub const ANY_STRIPE: Self = Self(1 << 1);
    /// A destination takes packets that came for the guest at its source after it was stopped.
    pub const FORWARDED_PACKETS: Self = Self(1 << 2);
    /// Both agree on how the machine's state is written.
    pub const STATE_FORM: Self = Self(1 << 3);
    /// A destination takes disks as blocks.
    pub const VOLUMES: Self = Self(1 << 4);
    /// A source may come again with a new link, and the destination tells what is placed.
    pub const NEW_LINK: Self = Self(1 << 5);
    /// A destination makes of a disk the format that its source asks for, and says which disks it holds whole and durable.
    pub const DISK_TERMS: Self = Self(1 << 8);
    /// A destination takes a disk whose content it fetches when the guest runs there.
    pub const ON_DEMAND: Self = Self(1 << 9);
    /// A destination keeps what an image held that a disk is written over, and compares blocks by their digests.
    pub const BLOCK_DIGESTS: Self = Self(1 << 10);
    /// A destination takes a disk of which the host that it leaves lacks a part, and fetches that from where it is.
    pub const CHAIN: Self = Self(1 << 11);
    /// A destination has a guest's requests fail, if its source wants that, for which whoever serves a disk is lost.
    pub const SOURCE_LOSS: Self = Self(1 << 13);
    /// A destination takes a disk of which a part goes with the guest, and fetches the rest when the guest runs there.
    pub const DISK_RESTS: Self = Self(1 << 14);
    /// What this engine can do.
    pub const OURS: Self = Self(
        Self::NAMES_HOST.0
            | Self::ANY_STRIPE.0
            | Self::FORWARDED_PACKETS.0
            | Self::STATE_FORM.0
            | Self::VOLUMES.0
            | Self::NEW_LINK.0
            | Self::DISK_TERMS.0
            | Self::ON_DEMAND.0
            | Self::BLOCK_DIGESTS.0
            | Self::CHAIN.0
            | Self::SOURCE_LOSS.0
            | Self::DISK_RESTS.0,
    );

    /// As they travel.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// As they travel.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Those of an engine that speaks `version` and tells none.
    pub fn of_version(version: u16) -> Self {
        let since = |first: u16, capability: Self| {
            if version >= first {
                capability
            } else {
                Self::NONE
            }
        };
        since(2, Self::NAMES_HOST)
            | since(3, Self::ANY_STRIPE)
            | since(3, Self::FORWARDED_PACKETS)
            | since(4, Self::STATE_FORM)
    }

    /// Whether all of `other` are among these.
    pub fn contains(self, other: Self) -> bool {
        self & other == other
    }
}

impl BitOr for Capabilities {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Capabilities {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}
