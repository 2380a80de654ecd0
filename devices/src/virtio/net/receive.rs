//! Packets on their way to the guest.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_net::*;

use super::backend::{HEADER, Offloads};
use super::inner::Inner;
use super::limits::{DEFAULT_MTU, ETHERNET, LARGEST};
use super::mac::Mac;
use crate::virtio::available::{AvailableBuffers, Packets, Received, Room};

/// The receiving end of a pair.
pub(super) struct Receiver {
    pub(super) inner: Arc<Inner>,
    pub(super) pair: u16,
}

impl Packets for Receiver {
    fn waiting(&self) -> BorrowedFd<'_> {
        self.inner.backend.waiting(self.pair)
    }

    fn header(&self) -> u64 {
        HEADER
    }

    fn room(&self) -> Room {
        if !self.inner.has(VIRTIO_NET_F_MRG_RXBUF) {
            return Room::OneChain;
        }
        let offloads = Offloads::from_bits(self.inner.offloads.load(Ordering::Relaxed));
        Room::Bytes(if offloads.is_some_and(Offloads::segments) {
            LARGEST
        } else {
            HEADER + ETHERNET + u64::from(self.inner.config.mtu.unwrap_or(DEFAULT_MTU))
        })
    }

    fn receive(&self, available: &mut AvailableBuffers<'_>) -> io::Result<Received> {
        if self.pair >= self.inner.pairs.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let (len, room) = self.fetch(available)?;
        if len > room || len < HEADER {
            self.inner
                .complain(&format_args!("{len} bytes for {room} bytes of buffers"));
            return Ok(Received::Dropped);
        }
        if !self.is_wanted(available, len) {
            return Ok(Received::Dropped);
        }
        // Number of buffers, at the end of the header. What is not there cannot be written.
        let chains = available.chains_for(len).to_le_bytes();
        let written = available.write_at(HEADER - 2, &chains);
        if written.is_ok() && !self.inner.has(VIRTIO_NET_F_GUEST_CSUM) {
            // Such a driver wants no flags; it gets whole packets.
            let _same = available.write_at(0, &[0]);
        }
        Ok(Received::Packet(len))
    }
}

impl Receiver {
    /// Puts the next packet into the available memory: its length, and that of the memory.
    fn fetch(&self, available: &mut AvailableBuffers<'_>) -> io::Result<(u64, u64)> {
        if self.pair == 0
            && self.inner.has_forwarded.load(Ordering::SeqCst)
            && let Some(packet) = self.inner.next_forwarded()
        {
            let (len, room) = (packet.len() as u64, available.len());
            if len <= room {
                available.write_at(0, &packet).map_err(io::Error::other)?;
            }
            return Ok((len, room));
        }
        let (buffers, room) = available.buffers();
        let len = self.inner.backend.receive(self.pair, buffers)? as u64;
        available.mark_written(len.min(room));
        Ok((len, room))
    }

    /// Whether the driver wants the packet that was put into the available memory.
    fn is_wanted(&self, available: &AvailableBuffers<'_>, len: u64) -> bool {
        let mut to = [0; 6];
        if !self.inner.has(VIRTIO_NET_F_CTRL_RX) || len < HEADER + to.len() as u64 {
            return true;
        }
        let read = available.read_at(HEADER, &mut to);
        let settings = self.inner.settings();
        read.is_err() || settings.filter.passes(Mac::new(to), settings.mac)
    }
}
