//! Which packets a driver wants (virtio 1.2, 5.1.6.5.1 and 5.1.6.5.2).

use serde::{Deserialize, Serialize};

use super::mac::Mac;

/// Most addresses of each kind that are told apart; with more, all of that kind are let through.
pub(super) const MOST_ADDRESSES: usize = 64;

/// What is let through besides the device's own address; saved as it is, version 1, frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterV1 {
    /// Everything.
    pub promiscuous: bool,
    /// Every multicast packet.
    pub all_multicast: bool,
    /// Every unicast packet.
    pub all_unicast: bool,
    /// No multicast packet.
    pub no_multicast: bool,
    /// No unicast packet.
    pub no_unicast: bool,
    /// No broadcast.
    pub no_broadcast: bool,
    /// Unicast addresses, or that they are too many to tell apart.
    pub unicast: TableV1,
    /// Multicast addresses, or that they are too many to tell apart.
    pub multicast: TableV1,
}

/// Addresses of one kind; saved as it is, version 1, frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableV1 {
    /// These.
    These(Vec<[u8; 6]>),
    /// Too many: all.
    All,
}

impl Default for FilterV1 {
    /// Everything passes until the driver says otherwise.
    fn default() -> Self {
        Self {
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: TableV1::These(Vec::new()),
            multicast: TableV1::These(Vec::new()),
        }
    }
}

impl TableV1 {
    fn holds(&self, mac: Mac) -> bool {
        match self {
            Self::These(addresses) => addresses.contains(&mac.bytes()),
            Self::All => true,
        }
    }

    /// Whether it is one that is ever made.
    pub(super) fn is_sound(&self) -> bool {
        match self {
            Self::These(addresses) => addresses.len() <= MOST_ADDRESSES,
            Self::All => true,
        }
    }
}

impl FilterV1 {
    /// Whether a packet to `to` is for the driver of an interface that has `own`.
    pub(super) fn passes(&self, to: Mac, own: Mac) -> bool {
        if self.promiscuous {
            return true;
        }
        if to == Mac::BROADCAST {
            return !self.no_broadcast;
        }
        if to.is_multicast() {
            return !self.no_multicast && (self.all_multicast || self.multicast.holds(to));
        }
        !self.no_unicast && (self.all_unicast || to == own || self.unicast.holds(to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac::new([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac::new([2, 0, 0, 0, 0, 2]);
    const GROUP: Mac = Mac::new([1, 0, 0x5e, 0, 0, 1]);

    fn passing(change: impl FnOnce(&mut FilterV1)) -> [bool; 4] {
        let mut filter = FilterV1 {
            promiscuous: false,
            ..FilterV1::default()
        };
        change(&mut filter);
        [OWN, OTHER, GROUP, Mac::BROADCAST].map(|to| filter.passes(to, OWN))
    }

    #[test]
    fn a_driver_gets_what_it_asked_for() {
        assert_eq!(passing(|_| ()), [true, false, false, true]);
        assert_eq!(passing(|f| f.promiscuous = true), [true; 4]);
        assert_eq!(passing(|f| f.all_unicast = true), [true, true, false, true]);
        assert_eq!(
            passing(|f| f.all_multicast = true),
            [true, false, true, true]
        );
        assert_eq!(
            passing(|f| f.no_unicast = true),
            [false, false, false, true]
        );
        assert_eq!(
            passing(|f| f.no_broadcast = true),
            [true, false, false, false]
        );
        let table = TableV1::These(vec![GROUP.bytes()]);
        assert_eq!(
            passing(|f| f.multicast = table.clone()),
            [true, false, true, true]
        );
        let none = |f: &mut FilterV1| {
            f.multicast = table.clone();
            f.no_multicast = true;
        };
        assert_eq!(passing(none), [true, false, false, true]);
        assert_eq!(
            passing(|f| f.unicast = TableV1::All),
            [true, true, false, true]
        );
    }
}
