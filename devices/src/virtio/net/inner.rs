//! What the queues of an interface and its port have in common: the backend, and what the driver has set.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};

use virtio_bindings::virtio_net::*;

use super::backend::{HEADER, NetBackend, Offloads};
use super::config::NetConfig;
use super::filter::FilterV1;
use super::limits::LARGEST;
use super::mac::Mac;
use crate::locked::locked;
use crate::virtio::chain::{BadRequest, Chain};
use crate::virtio::notify::{ConfigNotifier, QueueWaker};

/// Length of the configuration space: MAC, status, pairs, MTU.
const CONFIG: usize = 12;
/// Unusable packets that are logged; a guest can cause any number.
const MOST_COMPLAINTS: u32 = 16;

/// What is the driver's to change.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) mac: Mac,
    pub(super) filter: FilterV1,
}

/// An interface as all its ends see it; each of them may change it at any time.
pub(super) struct Inner {
    pub(super) config: NetConfig,
    pub(super) backend: Box<dyn NetBackend>,
    pub(super) settings: RwLock<Settings>,
    /// Features of the driver that has started; 0 when none has.
    pub(super) features: AtomicU64,
    /// Pairs that the driver uses.
    pub(super) pairs: AtomicU16,
    /// Whether the backend takes part; a paused device leaves it so, that packets wait there.
    pub(super) live: AtomicBool,
    pub(super) announcing: AtomicBool,
    /// As [`Offloads::bits`].
    pub(super) offloads: AtomicU32,
    /// Whether packets pass now; locked while the backend changes, or is used beside the queues.
    pub(super) passing: Mutex<bool>,
    /// Packets that waited for the guest elsewhere; whether there are any spares a lock per packet.
    pub(super) forwarded: Mutex<VecDeque<Vec<u8>>>,
    pub(super) has_forwarded: AtomicBool,
    pub(super) notifier: OnceLock<ConfigNotifier>,
    pub(super) wakers: OnceLock<Vec<QueueWaker>>,
    pub(super) complaints: AtomicU32,
}

impl Inner {
    pub(super) fn settings(&self) -> std::sync::RwLockReadGuard<'_, Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change_settings(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self
            .settings
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        change(&mut settings);
    }

    pub(super) fn has(&self, feature: u32) -> bool {
        self.features.load(Ordering::Relaxed) & (1 << feature) != 0
    }

    pub(super) fn complain(&self, what: &dyn std::fmt::Display) {
        if self.complaints.fetch_add(1, Ordering::Relaxed) < MOST_COMPLAINTS {
            tracing::warn!(%what, "packet lost");
        } else {
            // Stays far from wrapping around.
            self.complaints.store(MOST_COMPLAINTS, Ordering::Relaxed);
        }
    }

    /// Uses so many pairs, from when the device is live on.
    pub(super) fn set_pairs(&self, pairs: u16) -> io::Result<()> {
        let _unchanged = locked(&self.passing);
        if self.live.load(Ordering::SeqCst) {
            self.backend.set_pairs(pairs)?;
        }
        self.pairs.store(pairs, Ordering::SeqCst);
        // Receivers that take part again have not looked for packets since they ceased to.
        for waker in self.wakers.get().into_iter().flatten() {
            waker.wake();
        }
        Ok(())
    }

    pub(super) fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let _unchanged = locked(&self.passing);
        self.backend.set_offloads(offloads)?;
        self.offloads.store(offloads.bits(), Ordering::SeqCst);
        Ok(())
    }

    pub(super) fn start(&self, features: u64, offloads: Offloads) {
        self.features.store(features, Ordering::SeqCst);
        if let Err(error) = self.set_offloads(offloads) {
            tracing::error!(%error, "the network does not leave to the guest what was agreed");
        }
    }

    pub(super) fn next_forwarded(&self) -> Option<Vec<u8>> {
        let mut forwarded = locked(&self.forwarded);
        let packet = forwarded.pop_front();
        self.has_forwarded
            .store(!forwarded.is_empty(), Ordering::SeqCst);
        packet
    }

    pub(super) fn config_space(&self) -> [u8; CONFIG] {
        let announcing = self.announcing.load(Ordering::SeqCst);
        let announce = if announcing { VIRTIO_NET_S_ANNOUNCE } else { 0 };
        // Two bits.
        let status = (VIRTIO_NET_S_LINK_UP | announce) as u16;
        let mut space = [0; CONFIG];
        space[..6].copy_from_slice(&self.settings().mac.bytes());
        space[6..8].copy_from_slice(&status.to_le_bytes());
        space[8..10].copy_from_slice(&self.config.pairs.to_le_bytes());
        space[10..].copy_from_slice(&self.config.mtu.unwrap_or(0).to_le_bytes());
        space
    }

    pub(super) fn transmit(&self, pair: u16, chain: &mut Chain<'_>) -> Result<u32, BadRequest> {
        let len = chain.readable_len();
        if len < HEADER {
            return Err(chain.too_short());
        }
        if len > LARGEST {
            self.complain(&format_args!("{len} bytes are more than a packet may have"));
            return Ok(0);
        }
        if let Err(error) = self.backend.send(pair, chain.readable_buffers(0, len)) {
            // As on a cable: who sent it hears nothing of it.
            self.complain(&error);
        }
        Ok(0)
    }
}
