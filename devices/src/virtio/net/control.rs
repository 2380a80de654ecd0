//! Commands of the control queue (virtio 1.2, 5.1.6.5).

use virtio_bindings::virtio_net::*;

use super::backend::Offloads;
use super::filter::{FilterV1, MOST_ADDRESSES, TableV1};
use super::inner::Inner;
use super::mac::Mac;
use crate::virtio::chain::{BadRequest, Chain};

/// Class and command, before what belongs to it.
const HEAD: u64 = 2;

/// Carries out one command and says in its last byte whether it was.
pub(super) fn command(inner: &Inner, chain: &mut Chain<'_>) -> Result<u32, BadRequest> {
    if chain.writable_len() == 0 {
        return Err(chain.too_short());
    }
    let done = carry_out(inner, chain).is_some();
    let status = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
    // 0 or 1.
    chain.write_at(0, &[status as u8])?;
    Ok(1)
}

/// What a command does; nothing at all when it is wrong.
fn carry_out(inner: &Inner, chain: &Chain<'_>) -> Option<()> {
    let [class, command] = read(chain, 0)?;
    match u32::from(class) {
        VIRTIO_NET_CTRL_RX if inner.has(VIRTIO_NET_F_CTRL_RX) => {
            set_mode(inner, command, read(chain, HEAD)?)
        }
        VIRTIO_NET_CTRL_MAC => match u32::from(command) {
            VIRTIO_NET_CTRL_MAC_TABLE_SET if inner.has(VIRTIO_NET_F_CTRL_RX) => {
                set_table(inner, chain)
            }
            VIRTIO_NET_CTRL_MAC_ADDR_SET if inner.has(VIRTIO_NET_F_CTRL_MAC_ADDR) => {
                let mac = Some(Mac::new(read(chain, HEAD)?)).filter(|mac| mac.is_station())?;
                inner.change_settings(|settings| settings.mac = mac);
                Some(())
            }
            _ => None,
        },
        VIRTIO_NET_CTRL_ANNOUNCE
            if inner.has(VIRTIO_NET_F_GUEST_ANNOUNCE)
                && u32::from(command) == VIRTIO_NET_CTRL_ANNOUNCE_ACK =>
        {
            inner
                .announcing
                .store(false, std::sync::atomic::Ordering::SeqCst);
            Some(())
        }
        VIRTIO_NET_CTRL_MQ
            if inner.has(VIRTIO_NET_F_MQ)
                && u32::from(command) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET =>
        {
            let pairs = u16::from_le_bytes(read(chain, HEAD)?);
            if !(1..=inner.config.pairs).contains(&pairs) {
                return None;
            }
            logged(inner.set_pairs(pairs))
        }
        VIRTIO_NET_CTRL_GUEST_OFFLOADS
            if inner.has(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)
                && u32::from(command) == VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET =>
        {
            let wanted = u64::from_le_bytes(read(chain, HEAD)?);
            let features = inner.features.load(std::sync::atomic::Ordering::SeqCst);
            let agreed = features & inner.config.offloads.guest_bits();
            if wanted & !agreed != 0 {
                return None;
            }
            logged(inner.set_offloads(Offloads::of_guest(wanted)))
        }
        _ => None,
    }
}

fn logged(done: std::io::Result<()>) -> Option<()> {
    if let Err(error) = &done {
        tracing::warn!(%error, "the network does not do what its driver asked for");
    }
    done.ok()
}

/// Bytes of the command, if it has so many.
fn read<const N: usize>(chain: &Chain<'_>, offset: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    chain.read_at(offset, &mut bytes).ok()?;
    Some(bytes)
}

fn set_mode(inner: &Inner, command: u8, [on]: [u8; 1]) -> Option<()> {
    let on = on != 0;
    let set: fn(&mut FilterV1, bool) = match u32::from(command) {
        VIRTIO_NET_CTRL_RX_PROMISC => |filter, on| filter.promiscuous = on,
        VIRTIO_NET_CTRL_RX_ALLMULTI => |filter, on| filter.all_multicast = on,
        _ if !inner.has(VIRTIO_NET_F_CTRL_RX_EXTRA) => return None,
        VIRTIO_NET_CTRL_RX_ALLUNI => |filter, on| filter.all_unicast = on,
        VIRTIO_NET_CTRL_RX_NOMULTI => |filter, on| filter.no_multicast = on,
        VIRTIO_NET_CTRL_RX_NOUNI => |filter, on| filter.no_unicast = on,
        VIRTIO_NET_CTRL_RX_NOBCAST => |filter, on| filter.no_broadcast = on,
        _ => return None,
    };
    inner.change_settings(|settings| set(&mut settings.filter, on));
    Some(())
}

/// Two tables, unicast and multicast, each a count and as many addresses.
fn set_table(inner: &Inner, chain: &Chain<'_>) -> Option<()> {
    let mut at = HEAD;
    let unicast = read_table(chain, &mut at)?;
    let multicast = read_table(chain, &mut at)?;
    inner.change_settings(|settings| {
        settings.filter.unicast = unicast;
        settings.filter.multicast = multicast;
    });
    Some(())
}

fn read_table(chain: &Chain<'_>, at: &mut u64) -> Option<TableV1> {
    let count = u64::from(u32::from_le_bytes(read(chain, *at)?));
    let first = *at + 4;
    *at = first + count * 6;
    if *at > chain.readable_len() {
        return None;
    }
    if count > MOST_ADDRESSES as u64 {
        return Some(TableV1::All);
    }
    (0..count)
        .map(|i| read(chain, first + i * 6))
        .collect::<Option<_>>()
        .map(TableV1::These)
}
