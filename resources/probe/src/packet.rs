//! Fields and checksums of packets; all of them big-endian.

/// Bytes of a header of virtio-net, before every frame.
pub const VNET: usize = 12;
/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of an IP header without options.
pub const IP: usize = 20;
/// Most bytes of an IP packet.
pub const MTU: usize = 1500;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

pub fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from(bytes[at]) << 8 | u16::from(bytes[at + 1])
}

pub fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from(get16(bytes, at)) << 16 | u32::from(get16(bytes, at + 2))
}

pub fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

pub fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

pub fn address<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut address = [0; N];
    address.copy_from_slice(&bytes[at..at + N]);
    address
}

/// Where a packet comes from, and its answer goes to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub mac: [u8; 6],
    pub ip: [u8; 4],
}

/// The Internet checksum (RFC 1071) of `bytes`, on top of `sum`; 0 for what has a right one in it.
pub fn checksum(bytes: &[u8], mut sum: u64) -> u16 {
    let mut words = bytes.chunks_exact(2);
    for word in &mut words {
        sum += u64::from(word[0]) << 8 | u64::from(word[1]);
    }
    if let [last] = words.remainder() {
        sum += u64::from(*last) << 8;
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// What the checksums of UDP and TCP cover besides their own bytes.
pub fn pseudo_header(from: [u8; 4], to: [u8; 4], protocol: u8, len: usize) -> u64 {
    let word = |ip: [u8; 4]| u64::from(get16(&ip, 0)) + u64::from(get16(&ip, 2));
    word(from) + word(to) + u64::from(protocol) + len as u64
}
