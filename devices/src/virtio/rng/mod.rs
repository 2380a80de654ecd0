//! The virtio entropy source (virtio 1.2, 5.4), fed by the host's.

pub(super) mod state;

use rustix::rand::{GetRandomFlags, getrandom};

use super::chain::{BadRequest, Chain};
use super::{DeviceKind, DeviceStateV1, VirtioDevice};
use crate::{Error, Result};

pub use state::RngStateV1;

/// Entries of the queue.
const QUEUE_SIZE: u16 = 64;
/// Most bytes given for one request; a driver takes fewer than it asked for.
const MOST: u64 = 4096;

/// Bytes taken from the host at once; up to 256 are never cut short nor interrupted (getrandom(2)).
const PIECE: usize = 256;

/// An entropy source.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rng {}

impl Rng {
    /// A source fed by the host's.
    pub const fn new() -> Self {
        Self {}
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn process(
        &self,
        _queue: usize,
        chain: &mut Chain<'_>,
        _features: u64,
    ) -> std::result::Result<u32, BadRequest> {
        let wanted = chain.writable_len().min(MOST);
        if wanted == 0 {
            return Err(chain.too_short());
        }
        let mut given = 0;
        let mut piece = [0; PIECE];
        while given < wanted {
            // At most the length of the piece.
            let len = (wanted - given).min(PIECE as u64) as usize;
            match getrandom(&mut piece[..len], GetRandomFlags::empty()) {
                Ok(len) => {
                    chain.write_at(given, &piece[..len])?;
                    given += len as u64;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::warn!(%error, "host gives no entropy");
                    break;
                }
            }
        }
        // At most MOST.
        Ok(given as u32)
    }

    fn save(&self) -> DeviceStateV1 {
        DeviceStateV1::Rng(RngStateV1 {})
    }

    fn load(&self, state: DeviceStateV1) -> Result<()> {
        match state {
            DeviceStateV1::Rng(RngStateV1 {}) => Ok(()),
            DeviceStateV1::Block(_) | DeviceStateV1::Console(_) | DeviceStateV1::Net(_) => {
                Err(Error::BadState {
                    device: DeviceKind::Rng.name(),
                    reason: "it is of another kind of device".into(),
                })
            }
        }
    }
}
