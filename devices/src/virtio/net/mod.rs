//! The virtio network device (virtio 1.2, 5.1).
//!
//! Queues: receive and transmit of each pair in turn, then control. Packets pass between guest memory
//! and the [`NetBackend`] in one call of the kernel, without a copy here; headers go through as they
//! are, since the kernel checks what a guest says in them.

mod announce;
pub mod backend;
mod config;
mod control;
pub mod filter;
mod inner;
mod limits;
pub mod mac;
mod port;
mod receive;
pub(super) mod state;
pub mod tap;
mod tap_error;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use virtio_bindings::virtio_net::*;

use super::available::Packets;
use super::chain::{BadRequest, Chain};
use super::device::read_config_space;
use super::{ConfigNotifier, DeviceKind, DeviceStateV1, QueueWaker, VirtioDevice};
use crate::locked::locked;
use crate::{Error, Result};
pub use backend::{NetBackend, Offloads};
pub use config::NetConfig;
use filter::FilterV1;
use inner::{Inner, Settings};
pub use limits::MAX_PAIRS;
pub use mac::{Mac, MacError};
pub use port::NetPort;
use receive::Receiver;
pub use state::NetStateV1;
pub use tap::Tap;
pub use tap_error::TapError;

/// Entries of a receive or transmit queue.
const DATA_QUEUE: u16 = 256;
/// Entries of the control queue.
const CONTROL_QUEUE: u16 = 64;

/// A network interface: multi-queue, with offloads, filters and announcements.
pub struct Net {
    inner: Arc<Inner>,
    /// The receiving ends of the pairs.
    receivers: Vec<Receiver>,
    queue_sizes: Vec<u16>,
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum QueueKind {
    Receive(u16),
    Transmit(u16),
    Control,
    /// Not one that the driver can use with its features.
    None,
}

impl Net {
    /// An interface on `backend`, silent until the device goes on; and the end that announces it.
    ///
    /// # Errors
    /// When the backend cannot do what is offered, or refuses to be silent.
    pub fn new(config: NetConfig, backend: Box<dyn NetBackend>) -> Result<(Self, NetPort)> {
        let pairs = config.pairs;
        if !(1..=MAX_PAIRS).contains(&pairs) || backend.pairs() < pairs {
            return Err(Error::Unfit {
                device: DeviceKind::Net.name(),
                reason: format!("{pairs} pairs of queues on {}", backend.pairs()),
            });
        }
        if !config.offloads.are_in(backend.offloads()) {
            return Err(Error::Unfit {
                device: DeviceKind::Net.name(),
                reason: format!(
                    "offloads {:#x} on {:#x}",
                    config.offloads.bits(),
                    backend.offloads().bits()
                ),
            });
        }
        backend.set_pairs(0).map_err(failed("silence"))?;
        let mut queue_sizes = vec![DATA_QUEUE; 2 * usize::from(pairs)];
        queue_sizes.push(CONTROL_QUEUE);
        let settings = Settings {
            mac: config.mac,
            filter: FilterV1::default(),
        };
        let inner = Arc::new(Inner {
            config,
            backend,
            settings: RwLock::new(settings),
            features: AtomicU64::new(0),
            pairs: AtomicU16::new(1),
            live: AtomicBool::new(false),
            announcing: AtomicBool::new(false),
            offloads: AtomicU32::new(0),
            passing: Mutex::new(false),
            forwarded: Mutex::default(),
            has_forwarded: AtomicBool::new(false),
            notifier: OnceLock::new(),
            wakers: OnceLock::new(),
            complaints: AtomicU32::new(0),
        });
        let receiver = |pair| Receiver {
            inner: Arc::clone(&inner),
            pair,
        };
        let port = NetPort(Arc::downgrade(&inner));
        let net = Self {
            receivers: (0..pairs).map(receiver).collect(),
            queue_sizes,
            inner,
        };
        Ok((net, port))
    }

    fn queue_kind(&self, queue: usize, features: u64) -> QueueKind {
        let pairs = if features & (1 << VIRTIO_NET_F_MQ) != 0 {
            self.inner.config.pairs
        } else {
            1
        };
        // At most a few.
        let index = queue as u16;
        if index < 2 * pairs {
            if index.is_multiple_of(2) {
                QueueKind::Receive(index / 2)
            } else {
                QueueKind::Transmit(index / 2)
            }
        } else if index == 2 * pairs && features & (1 << VIRTIO_NET_F_CTRL_VQ) != 0 {
            QueueKind::Control
        } else {
            QueueKind::None
        }
    }
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Network { operation, source }
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        let config = &self.inner.config;
        let always = (1 << VIRTIO_NET_F_MAC)
            | (1 << VIRTIO_NET_F_MRG_RXBUF)
            | (1 << VIRTIO_NET_F_STATUS)
            | (1 << VIRTIO_NET_F_CTRL_VQ)
            | (1 << VIRTIO_NET_F_CTRL_RX)
            | (1 << VIRTIO_NET_F_CTRL_RX_EXTRA)
            | (1 << VIRTIO_NET_F_CTRL_MAC_ADDR)
            | (1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)
            | (1 << VIRTIO_NET_F_GUEST_ANNOUNCE);
        let mtu = config.mtu.map_or(0, |_| 1 << VIRTIO_NET_F_MTU);
        let mq = if config.pairs > 1 {
            1 << VIRTIO_NET_F_MQ
        } else {
            0
        };
        always | mtu | mq | config.offloads.features()
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.inner.config_space(), offset, data);
    }

    fn attach(&self, wakers: Vec<QueueWaker>) {
        // Once, as the trait says; a second time changes nothing.
        let _first = self.inner.wakers.set(wakers);
    }

    fn attach_config(&self, notifier: ConfigNotifier) {
        let _first = self.inner.notifier.set(notifier);
    }

    fn packets(&self, queue: usize, features: u64) -> Option<&dyn Packets> {
        match self.queue_kind(queue, features) {
            QueueKind::Receive(pair) => Some(self.receivers.get(usize::from(pair))?),
            QueueKind::Transmit(_) | QueueKind::Control | QueueKind::None => None,
        }
    }

    fn started(&self, features: u64) {
        self.inner.start(features, Offloads::of_guest(features));
    }

    fn took_over(&self, features: u64) {
        // The driver may have changed them since it started.
        let offloads = Offloads::from_bits(self.inner.offloads.load(Ordering::SeqCst));
        self.inner.start(features, offloads.unwrap_or_default());
    }

    fn go_on(&self) -> Result<()> {
        let inner = &self.inner;
        let mut passing = locked(&inner.passing);
        if !inner.live.load(Ordering::SeqCst) {
            inner
                .backend
                .set_pairs(inner.pairs.load(Ordering::SeqCst))
                .map_err(failed("join"))?;
            inner.live.store(true, Ordering::SeqCst);
        }
        *passing = true;
        Ok(())
    }

    fn quiesce(&self) {
        *locked(&self.inner.passing) = false;
    }

    fn process(
        &self,
        queue: usize,
        chain: &mut Chain<'_>,
        features: u64,
    ) -> std::result::Result<u32, BadRequest> {
        match self.queue_kind(queue, features) {
            QueueKind::Transmit(pair) => self.inner.transmit(pair, chain),
            QueueKind::Control => control::command(&self.inner, chain),
            QueueKind::Receive(_) | QueueKind::None => Ok(0),
        }
    }

    fn reset(&self) {
        let inner = &self.inner;
        inner.features.store(0, Ordering::SeqCst);
        inner.announcing.store(false, Ordering::SeqCst);
        inner.change_settings(|settings| {
            *settings = Settings {
                mac: inner.config.mac,
                filter: FilterV1::default(),
            }
        });
        let reset = inner
            .set_pairs(1)
            .and_then(|()| inner.set_offloads(Offloads::NONE));
        if let Err(error) = reset {
            tracing::error!(%error, "the network was not reset");
        }
    }

    fn save(&self) -> DeviceStateV1 {
        let inner = &self.inner;
        let Settings { mac, filter } = inner.settings().clone();
        DeviceStateV1::Net(NetStateV1 {
            mac: mac.bytes(),
            pairs: inner.pairs.load(Ordering::SeqCst),
            announcing: inner.announcing.load(Ordering::SeqCst),
            offloads: inner.offloads.load(Ordering::SeqCst),
            filter,
        })
    }

    fn load(&self, state: DeviceStateV1) -> Result<()> {
        let bad = |reason: String| Error::BadState {
            device: DeviceKind::Net.name(),
            reason,
        };
        let DeviceStateV1::Net(NetStateV1 {
            mac,
            pairs,
            announcing,
            offloads,
            filter,
        }) = state
        else {
            return Err(bad("it is of another kind of device".into()));
        };
        let inner = &self.inner;
        let mac = Mac::new(mac);
        if !mac.is_station() {
            return Err(bad(format!("{mac} is no address of an interface")));
        }
        if !(1..=inner.config.pairs).contains(&pairs) {
            let most = inner.config.pairs;
            return Err(bad(format!("{pairs} pairs of queues of {most}")));
        }
        if Offloads::from_bits(offloads).is_none_or(|o| !o.are_in(inner.config.offloads)) {
            return Err(bad(format!("offloads {offloads:#x} are not offered here")));
        }
        if !filter.unicast.is_sound() || !filter.multicast.is_sound() {
            return Err(bad("too many addresses".into()));
        }
        inner.change_settings(|settings| *settings = Settings { mac, filter });
        inner.announcing.store(announcing, Ordering::SeqCst);
        inner.offloads.store(offloads, Ordering::SeqCst);
        inner.set_pairs(pairs).map_err(failed("set the queues of"))
    }
}
