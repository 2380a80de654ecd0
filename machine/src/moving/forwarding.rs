//! Packets that come to the host which a guest has left.
//!
//! Until the network has learnt where the guest is, it sends to where the guest was. What waits there is
//! sent after the guest, so that whoever speaks with it need not find out by a time-out.

use devices::virtio::NetPort;
use migration::wire::control::MAX_FORWARDED;
use serde::{Deserialize, Serialize};

use crate::error::MachineError;
use crate::snapshot::codec;

/// Version of [`ForwardedV1`].
const VERSION: u32 = 1;
/// Most bytes of packets; the rest of what may be sent is for their lengths.
const MOST: usize = MAX_FORWARDED / 2;
/// Most packets, so that their lengths fit.
const MOST_PACKETS: usize = 64 << 10;

/// Packets by interface; frozen: a change makes a `V2`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ForwardedV1 {
    /// Identity of the interface, and its packets with their headers.
    nets: Vec<(String, Vec<Vec<u8>>)>,
}

/// What waits for a guest that is gone; empty when nothing does, `None` when nothing can.
pub(crate) fn collect(ports: &[(String, NetPort)]) -> Option<Vec<u8>> {
    if ports.is_empty() {
        return None;
    }
    let mut left = MOST;
    let mut nets = Vec::new();
    for (id, port) in ports {
        let mut packets = port.take_waiting(left);
        packets.truncate(MOST_PACKETS / ports.len());
        left -= packets.iter().map(Vec::len).sum::<usize>().min(left);
        if !packets.is_empty() {
            nets.push((id.clone(), packets));
        }
    }
    if nets.is_empty() {
        return Some(Vec::new());
    }
    codec::encode(VERSION, &ForwardedV1 { nets })
        .inspect_err(
            |e| tracing::warn!(error = %e, "packets that came after the guest had gone are lost"),
        )
        .ok()
}

/// Gives the guest, which runs here, what waited for it elsewhere.
pub(crate) fn give(ports: &[(String, NetPort)], forwarded: &[u8]) -> Result<(), MachineError> {
    let ForwardedV1 { nets } = codec::decode(VERSION, forwarded)?;
    for (id, packets) in nets {
        let Some((_, port)) = ports.iter().find(|(here, _)| *here == id) else {
            return Err(MachineError::Mismatch(format!(
                "it has packets for interface {id:?}"
            )));
        };
        tracing::debug!(net = %id, packets = packets.len(), "packets came after the guest");
        port.give(packets)
            .map_err(|source| MachineError::Device { id, source })?;
    }
    Ok(())
}
