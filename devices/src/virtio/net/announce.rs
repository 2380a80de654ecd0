//! The frame that tells a network where an address now is.

use super::backend::HEADER;
use super::mac::Mac;

/// Shortest frame of Ethernet, without its checksum.
const FRAME: usize = 60;
/// Length of an announcement with its header.
pub(super) const LEN: usize = HEADER as usize + FRAME;

/// A reverse ARP request (RFC 903) of `mac` for its own address, as a bridge or switch learns from: no
/// IP address has to be known for it. The header says that nothing is left to do.
pub(super) fn rarp(mac: Mac) -> [u8; LEN] {
    let mut packet = [0; LEN];
    let mut at = HEADER as usize;
    let mut put = |bytes: &[u8]| {
        packet[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&Mac::BROADCAST.bytes());
    put(&mac.bytes());
    // Type RARP; Ethernet, IPv4, lengths of their addresses, request reverse.
    put(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    put(&mac.bytes());
    put(&[0; 4]);
    put(&mac.bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_comes_from_the_address_that_it_announces() {
        let mac = Mac::new([0x52, 0x54, 0, 1, 2, 3]);
        let packet = rarp(mac);
        assert_eq!(packet[..12], [0; 12]);
        assert_eq!(packet[12..18], [0xff; 6]);
        assert_eq!(packet[18..24], mac.bytes());
        assert_eq!(packet[24..26], [0x80, 0x35]);
        assert_eq!(packet[34..40], mac.bytes());
        assert_eq!(packet[44..50], mac.bytes());
    }
}
