//! Network interfaces of a machine: what source and destination agree on, and how they are opened.

use devices::virtio::net::tap::check_name;
use devices::virtio::net::{
    MAX_PAIRS, Mac, Net, NetBackend, NetConfig, NetPort, Offloads, Tap, TapError,
};
use serde::{Deserialize, Serialize};

use crate::config;
use crate::error::MachineError;
use crate::opener;

/// Smallest MTU of IPv4 (RFC 791).
const LEAST_MTU: u16 = 68;

/// A network interface as the guest and the destination know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// Identity on the command line.
    pub id: String,
    /// Tap interface on the host that runs the guest; the destination's unless it was given another.
    pub tap: String,
    /// Address of the guest's interface.
    pub mac: Mac,
    /// Pairs of queues.
    pub queues: u16,
    /// MTU that the guest is told.
    pub mtu: u16,
    /// What the guest may leave to the host and be left to do, as bits of `TUNSETOFFLOAD`.
    pub offloads: u32,
}

/// Names the interface whose tap cannot be used.
fn of_interface(id: &str) -> impl FnOnce(TapError) -> MachineError + Send + use<> {
    let id = id.to_owned();
    move |source| MachineError::Net { id, source }
}

impl NetSpec {
    /// Looks at the tap that a guest is to be started with.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn of_tap(id: &str, tap: &str, mac: Mac, queues: u16) -> Result<Self, MachineError> {
        let name = tap.to_owned();
        let failed = of_interface(id);
        let open = opener::outside(move || Tap::open(&name, queues).map_err(failed))?;
        Ok(Self {
            id: id.to_owned(),
            tap: tap.to_owned(),
            mac,
            queues,
            mtu: open.mtu(),
            offloads: open.offloads().bits(),
        })
    }

    /// Says what is impossible about it.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Self {
            id,
            tap,
            mac,
            queues,
            mtu,
            offloads,
        } = self;
        // Before it is shown to anybody: what a peer calls an interface may be anything.
        config::check_net_id(id).map_err(|_| "an interface's id cannot be used".to_owned())?;
        check_name(tap).map_err(|e| format!("interface {id}: {e}"))?;
        if !mac.is_station() {
            return Err(format!("interface {id}: {mac} is no address of one"));
        }
        if !(1..=MAX_PAIRS).contains(queues) {
            return Err(format!(
                "interface {id}: {queues} queues are not 1 to {MAX_PAIRS}"
            ));
        }
        if *mtu < LEAST_MTU {
            return Err(format!("interface {id}: an MTU of {mtu} carries no IP"));
        }
        if Offloads::from_bits(*offloads).is_none() {
            return Err(format!(
                "interface {id}: offloads {offloads:#x} are not known"
            ));
        }
        Ok(())
    }

    /// Opens its tap and checks that the guest can go on with it.
    pub(crate) fn open_tap(&self) -> Result<Tap, MachineError> {
        let failed = of_interface(&self.id);
        let (name, queues) = (self.tap.clone(), self.queues);
        let (mtu, offloads) = (self.mtu, self.offloads());
        opener::outside(move || {
            let tap =
                Tap::open(&name, queues).and_then(|tap| tap.check(mtu, offloads).map(|()| tap));
            tap.map_err(failed)
        })
    }

    fn offloads(&self) -> Offloads {
        Offloads::from_bits(self.offloads).unwrap_or_default()
    }

    /// The device, on its tap, silent until it goes on.
    pub(crate) fn device(&self) -> Result<(Net, NetPort), MachineError> {
        let config = NetConfig {
            mac: self.mac,
            pairs: self.queues,
            mtu: Some(self.mtu),
            offloads: self.offloads(),
        };
        Net::new(config, Box::new(self.open_tap()?)).map_err(|source| MachineError::Device {
            id: self.id.clone(),
            source,
        })
    }
}
