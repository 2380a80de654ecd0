//! A disk that another host serves, as the origin of what is not here yet.

use std::sync::Arc;
use std::time::Duration;

use block::Arrived;
use block::on_demand::{Allocation, BLOCK, Class, Origin, OriginError};
use migration::pull::client::Options;
use migration::pull::{self, Presence, PullClient, PullError, PulledVolume, Units};
use migration::transport::Connect;
use migration::vm::BLOCK_SIZE;
use migration::wire::pull::{MAX_MAPPED, MAX_UNITS};
use migration::{Error, MigrationId, PullSecret};

const _: () = assert!(BLOCK == BLOCK_SIZE);

/// A disk at a host that serves it.
pub struct PulledOrigin {
    client: PullClient,
    volume: PulledVolume,
    name: String,
}

impl PulledOrigin {
    /// Disk `disk` of `size` bytes, of whom `connect` leads to, who serves it under this identifier and secret; `presence` says
    /// which of its blocks are here. The host need not be there yet.
    ///
    /// # Errors
    /// When the system has no room for its threads.
    pub fn new(
        connect: Box<dyn Connect>,
        secret: (MigrationId, PullSecret),
        disk: &str,
        size: u64,
        presence: Arc<dyn Presence>,
    ) -> Result<Self, Error> {
        let volume = PulledVolume {
            id: disk.to_owned(),
            size,
            unit: BLOCK_SIZE as u32,
        };
        let name = format!("disk {disk} at {}", connect.address());
        let wanted = vec![volume.clone()];
        let client = PullClient::start(connect, secret, wanted, presence, Options::default())?;
        Ok(Self {
            client,
            volume,
            name,
        })
    }

    /// Tells the host that the disk is whole and durable here, and waits until it has recorded that.
    ///
    /// # Errors
    /// [`OriginError::Lost`] when it has not answered in time; it is told again as long as this is there.
    pub fn finish(&self, patience: Duration) -> Result<(), OriginError> {
        self.client
            .finish(0, patience)
            .map_err(|error| self.failed(error))
    }

    fn failed(&self, error: PullError) -> OriginError {
        let origin = self.name.clone();
        let lost = self.client.lost().and_then(|lost| lost.why);
        match error {
            PullError::Lost => OriginError::Lost {
                origin,
                why: lost.unwrap_or_else(|| error.to_string()),
            },
            // Storage may come back.
            PullError::Unreadable | PullError::Stopped => OriginError::Lost {
                origin,
                why: error.to_string(),
            },
            PullError::Released | PullError::Range => OriginError::Wrong {
                origin,
                why: error.to_string(),
            },
        }
    }

    /// Which blocks the host has.
    ///
    /// # Errors
    /// As for [`Origin::fetch`].
    pub(crate) fn held(&self) -> Result<Allocation, OriginError> {
        self.mapped(|units| self.client.held(units))
    }

    /// Whether the host has recorded that nothing is needed of it.
    pub(crate) fn is_released(&self) -> bool {
        self.client.is_released(0)
    }

    /// Why the host is not reached, if it is not.
    pub(crate) fn lost(&self) -> Option<String> {
        let lost = self.client.lost()?;
        Some(lost.why.unwrap_or_else(|| PullError::Lost.to_string()))
    }

    /// Whether the host is reached.
    pub(crate) fn is_up(&self) -> bool {
        self.client.is_up()
    }

    /// Nothing comes any more, and the host is told nothing.
    pub(crate) fn stop(&self) {
        self.client.stop();
    }

    /// What is said of all blocks, a bit each, by `asked`.
    fn mapped(
        &self,
        asked: impl Fn(Units) -> Result<Vec<u8>, PullError>,
    ) -> Result<Allocation, OriginError> {
        let allocation = Allocation::none(self.volume.size);
        for units in Self::pieces(0..self.volume.size, MAX_MAPPED) {
            let map = asked(units).map_err(|e| self.failed(e))?;
            let bits = map.iter().enumerate().flat_map(|(at, byte)| {
                let at = at as u64 * 8;
                (0..8)
                    .filter(move |bit| byte & 1 << bit != 0)
                    .map(move |bit| at + bit)
            });
            for bit in bits {
                let start = (units.first + bit) * BLOCK;
                allocation.add(&(start..start + BLOCK));
            }
        }
        Ok(allocation)
    }

    /// The blocks of `bytes`, in pieces of `most`.
    fn pieces(bytes: std::ops::Range<u64>, most: u32) -> impl Iterator<Item = Units> {
        let blocks = bytes.start / BLOCK..bytes.end.div_ceil(BLOCK);
        let end = blocks.end;
        blocks.step_by(most as usize).map(move |first| Units {
            volume: 0,
            first,
            count: (end - first).min(most.into()) as u32,
        })
    }
}

impl Origin for PulledOrigin {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn allocation(&self) -> Result<Allocation, OriginError> {
        self.mapped(|units| self.client.data(units))
    }

    fn fetch(&self, offset: u64, into: &mut [u8], class: Class) -> Result<(), OriginError> {
        let class = match class {
            Class::Demand => pull::Class::Demand,
            Class::Background => pull::Class::Background,
        };
        let end = offset.saturating_add(into.len() as u64);
        if !offset.is_multiple_of(BLOCK) || end > self.volume.size {
            return Err(self.failed(PullError::Range));
        }
        let mut room = into;
        for units in Self::pieces(offset..end, MAX_UNITS) {
            let bytes = self.volume.bytes(&units).unwrap_or_default();
            let len = ((bytes.end - bytes.start) as usize).min(room.len());
            let (piece, rest) = room.split_at_mut(len);
            let fetched = self.client.fetch(units, class, piece);
            fetched.map_err(|error| self.failed(error))?;
            room = rest;
        }
        Ok(())
    }

    fn tell_return(&self, returned: Arrived) {
        self.client.tell_return(returned);
    }
}
