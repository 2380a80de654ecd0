//! Addresses of network interfaces.

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A MAC address; written as `52:54:00:12:34:56`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

/// A text that is no address which an interface can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no MAC address of an interface: six bytes as in 52:54:00:12:34:56, the first one even"
)]
pub struct MacError(String);

impl Mac {
    /// Every station.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The address of these bytes, whatever it addresses.
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// An address of an interface, drawn at random from those that virtual machines use
    /// (52:54:00, locally administered).
    ///
    /// # Errors
    /// When there is no randomness to be had.
    pub fn random() -> io::Result<Self> {
        let mut low = [0; 3];
        rustix::rand::getrandom(&mut low, rustix::rand::GetRandomFlags::empty())?;
        Ok(Self([0x52, 0x54, 0, low[0], low[1], low[2]]))
    }

    /// Its bytes, as they are on the wire.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// Whether it addresses a group, of which all stations are one.
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether an interface can have it.
    pub fn is_station(self) -> bool {
        !self.is_multicast() && self.0 != [0; 6]
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let wrong = || MacError(text.chars().take(32).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2);
            let part = part.filter(|part| part.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = part
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(wrong)?;
        }
        let mac = Self(bytes);
        if parts.next().is_some() || !mac.is_station() {
            return Err(wrong());
        }
        Ok(mac)
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_interfaces_are_read_and_written_alike() {
        for text in [
            "52:54:00:12:34:56",
            "02:00:00:00:00:01",
            "fe:ff:ff:ff:ff:ff",
        ] {
            assert_eq!(text.parse::<Mac>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5",
            "52-54-00-12-34-56",
            "52:54:00:12:34:+5",
            "53:54:00:12:34:56",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    #[test]
    fn random_addresses_are_of_interfaces_and_differ() {
        let (a, b) = (Mac::random().unwrap(), Mac::random().unwrap());
        assert!(a.is_station() && b.is_station());
        assert_ne!(a, b, "one in sixteen million");
    }
}
