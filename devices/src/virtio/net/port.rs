//! The end of an interface that its host has.

use std::io;
use std::sync::Weak;
use std::sync::atomic::Ordering;

use block::Buffer;
use virtio_bindings::virtio_net::VIRTIO_NET_F_GUEST_ANNOUNCE;

use super::announce;
use super::backend::HEADER;
use super::inner::Inner;
use super::limits::LARGEST;
use crate::locked::locked;
use crate::virtio::DeviceKind;
use crate::{Error, Result};

/// The end of an interface that announces it to its network. It does not keep the interface.
#[derive(Clone)]
pub struct NetPort(pub(super) Weak<Inner>);

impl NetPort {
    /// Tells the network where the interface now is, as if the guest had: once, and at once. Whether
    /// that was done: a device that is paused, or gone, says nothing.
    ///
    /// # Errors
    /// When it could not be sent.
    pub fn announce(&self) -> io::Result<bool> {
        let Some(inner) = self.0.upgrade() else {
            return Ok(false);
        };
        let mut packet = announce::rarp(inner.settings().mac);
        let passing = locked(&inner.passing);
        if *passing {
            inner.backend.send(0, &[Buffer::new(&mut packet)])?;
        }
        Ok(*passing)
    }

    /// Takes the packets that wait for a paused guest, which is known to go on elsewhere: at most so
    /// many bytes of them, each with its header.
    pub fn take_waiting(&self, most: usize) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        let Some(inner) = self.0.upgrade() else {
            return packets;
        };
        let passing = locked(&inner.passing);
        if *passing || !inner.live.load(Ordering::SeqCst) {
            return packets;
        }
        let mut memory = vec![0; LARGEST as usize];
        let mut bytes = 0;
        for pair in 0..inner.pairs.load(Ordering::SeqCst) {
            while bytes + memory.len() <= most {
                let Ok(len) = inner.backend.receive(pair, &[Buffer::new(&mut memory)]) else {
                    break;
                };
                let packet = memory[..len.min(memory.len())].to_vec();
                bytes += packet.len();
                packets.push(packet);
            }
        }
        packets
    }

    /// Gives the guest packets that waited for it elsewhere, before those that wait here.
    ///
    /// # Errors
    /// When one of them is none, and then none is given.
    pub fn give(&self, packets: Vec<Vec<u8>>) -> Result<()> {
        let fits = |packet: &Vec<u8>| (HEADER..=LARGEST).contains(&(packet.len() as u64));
        if !packets.iter().all(fits) {
            return Err(Error::BadState {
                device: DeviceKind::Net.name(),
                reason: "a packet is too short or too long".into(),
            });
        }
        if let Some(inner) = self.0.upgrade() {
            locked(&inner.forwarded).extend(packets);
            inner.has_forwarded.store(true, Ordering::SeqCst);
            if let Some(waker) = inner.wakers.get().and_then(|wakers| wakers.first()) {
                waker.wake();
            }
        }
        Ok(())
    }

    /// Asks the guest to announce itself, if its driver can be asked: it knows its IP addresses.
    pub fn ask_guest_to_announce(&self) {
        let Some(inner) = self.0.upgrade() else {
            return;
        };
        if inner.has(VIRTIO_NET_F_GUEST_ANNOUNCE) {
            inner.announcing.store(true, Ordering::SeqCst);
            if let Some(notifier) = inner.notifier.get() {
                notifier.changed();
            }
        }
    }

    /// Whether the guest was asked and has not said that it did.
    pub fn is_guest_announcing(&self) -> bool {
        self.0
            .upgrade()
            .is_some_and(|inner| inner.announcing.load(Ordering::SeqCst))
    }
}
