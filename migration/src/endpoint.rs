//! An address with what its host's name stands for.
//!
//! Names are looked up by whoever asks for a migration, not by the process that has the guest: a resolver
//! reads files that may be replaced while the guest runs, makes system calls of many kinds, and cannot be
//! bounded in time.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, ToSocketAddrs};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::address::Address;
use crate::os;

/// Most numeric addresses of one name that are kept.
pub const MAX_SOCKETS: usize = 16;

/// Where to connect to or to listen: nothing is left to be looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    address: Address,
    /// What a host's name stands for, the first to be tried first; empty for what is no TCP address.
    sockets: Vec<SocketAddr>,
}

impl Endpoint {
    /// The endpoint of an address that names no host, or names it by its number.
    pub fn numeric(address: Address) -> Option<Self> {
        let sockets = match &address {
            Address::Tcp { host, port } => vec![numeric_socket(host, *port)?],
            Address::Unix(_) | Address::Fd(_) => Vec::new(),
        };
        Some(Self { address, sockets })
    }

    /// The endpoint of `address`, whose host's name stands for `sockets`, of which the first
    /// [`MAX_SOCKETS`] are kept.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when these are none, though the address names a host.
    pub fn resolved(address: Address, mut sockets: Vec<SocketAddr>) -> io::Result<Self> {
        if let Some(endpoint) = Self::numeric(address.clone()) {
            return Ok(endpoint);
        }
        if sockets.is_empty() {
            let message = "the name has no address";
            return Err(io::Error::new(io::ErrorKind::NotFound, message));
        }
        sockets.truncate(MAX_SOCKETS);
        Ok(Self { address, sockets })
    }

    /// Asks the system's resolver what the host's name stands for.
    ///
    /// The system's look-up cannot be bounded, so it is left to itself when it takes longer than `patience`.
    ///
    /// # Errors
    /// What the resolver says; [`io::ErrorKind::TimedOut`].
    pub fn look_up(address: Address, patience: Duration) -> io::Result<Self> {
        if let Some(endpoint) = Self::numeric(address.clone()) {
            return Ok(endpoint);
        }
        let Address::Tcp { host, port } = &address else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // Written with the root's dot it is the same name, which no file of names lists.
        let name = match host.strip_suffix('.') {
            Some(bare) if bare.eq_ignore_ascii_case("localhost") => bare.to_owned(),
            _ => host.clone(),
        };
        let port = *port;
        let (found, answer) = channel();
        std::thread::Builder::new()
            .name("look-up".into())
            .spawn(move || {
                let sockets = (name.as_str(), port).to_socket_addrs();
                // Nobody may be waiting any more.
                let _ = found.send(sockets.map(Iterator::collect));
            })
            .map_err(os::no_thread)?;
        let sockets = match answer.recv_timeout(patience) {
            Ok(sockets) => sockets?,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let message = "the name is not looked up in time";
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
        };
        Self::resolved(address, sockets)
    }

    /// As its user wrote it.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What its host's name stands for, the first to be tried first; empty for what is no TCP address.
    pub fn sockets(&self) -> &[SocketAddr] {
        &self.sockets
    }

    /// Whether nothing leaves this host.
    pub fn is_loopback(&self) -> bool {
        self.sockets
            .iter()
            .all(|socket| socket.ip().to_canonical().is_loopback())
    }
}

/// The host at the other end of a connection, as far as this one can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteHost {
    /// This one, by a unix socket or loopback; a tunnel that ends here looks the same.
    Here,
    /// The one that has this address; the port is any.
    At(SocketAddr),
    /// It cannot be told.
    Unknown,
}

impl RemoteHost {
    /// The host that connects from `address`.
    pub fn from(address: SocketAddr) -> Self {
        match address.ip().to_canonical().is_loopback() {
            true => Self::Here,
            false => Self::At(address),
        }
    }

    /// Whether whoever connects to `endpoint` reaches this host and no other.
    pub fn is_at(&self, endpoint: &Endpoint) -> bool {
        match self {
            Self::Here => endpoint.is_loopback(),
            Self::At(host) => {
                let sockets = endpoint.sockets();
                !sockets.is_empty() && sockets.iter().all(|socket| is_same_host(host, socket))
            }
            Self::Unknown => false,
        }
    }
}

/// Whether both are addresses of one host; the same number in another scope may be somebody else's.
fn is_same_host(one: &SocketAddr, other: &SocketAddr) -> bool {
    let scope = |address: &SocketAddr| match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(address) => address.scope_id(),
    };
    one.ip().to_canonical() == other.ip().to_canonical() && scope(one) == scope(other)
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// The socket address of a host that is named by its number, for IPv6 with the number of a scope
/// (RFC 4007, 11.2); that of an interface by its name has to be looked up.
fn numeric_socket(host: &str, port: u16) -> Option<SocketAddr> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Some((ip, port).into());
    }
    let scoped: SocketAddrV6 = format!("[{host}]:{port}").parse().ok()?;
    Some(scoped.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn numbers_need_no_look_up() {
        for (text, socket) in [
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("[::1]:80", "[::1]:80"),
            ("[fe80::1%7]:80", "[fe80::1%7]:80"),
        ] {
            let endpoint = Endpoint::numeric(address(text)).unwrap();
            assert_eq!(endpoint.sockets(), [socket.parse().unwrap()], "{text}");
            assert_eq!(endpoint.to_string(), text);
        }
        assert_eq!(Endpoint::numeric(address("unix:/s")).unwrap().sockets(), []);
        for name in ["example.org:80", "[fe80::1%eth0]:80", "127.1:80"] {
            assert_eq!(Endpoint::numeric(address(name)), None, "{name}");
        }
    }

    #[test]
    fn this_host_is_known_however_it_is_written() {
        for text in [
            "127.0.0.1:1",
            "127.1:1",
            "127.8.9.10:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
            "localhost:1",
            "LocalHost:1",
            "localhost.:1",
            "unix:/x",
            "fd:3",
        ] {
            let endpoint = Endpoint::look_up(address(text), PATIENCE).unwrap();
            assert!(endpoint.is_loopback(), "{text}: {endpoint:?}");
        }
        for text in [
            "10.1.1.1:1",
            "[::ffff:10.1.1.1]:1",
            "[fe80::1%1]:1",
            "0.0.0.0:1",
        ] {
            let endpoint = Endpoint::look_up(address(text), PATIENCE).unwrap();
            assert!(!endpoint.is_loopback(), "{text}");
        }
    }

    #[test]
    fn a_name_is_this_host_only_if_all_that_it_stands_for_is() {
        let sockets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let of = |texts: &[&str]| Endpoint::resolved(address("name:7"), sockets(texts)).unwrap();
        assert!(of(&["127.0.0.1:7", "[::1]:7"]).is_loopback());
        assert!(!of(&["127.0.0.1:7", "10.0.0.1:7"]).is_loopback());
        assert!(Endpoint::resolved(address("name:7"), Vec::new()).is_err());
        let many = of(&["127.0.0.1:7"; 100]);
        assert_eq!(many.sockets().len(), MAX_SOCKETS);
    }

    #[test]
    fn an_endpoint_is_of_a_remote_host_only_if_nobody_else_is_reached_there() {
        let here = RemoteHost::from("127.0.0.1:9".parse().unwrap());
        let there = RemoteHost::from("10.0.0.1:9".parse().unwrap());
        let mapped = RemoteHost::from("[::ffff:10.0.0.1]:9".parse().unwrap());
        let linked = RemoteHost::from("[fe80::1%7]:9".parse().unwrap());
        for (host, text, is_there) in [
            (here, "127.0.0.3:1", true),
            (here, "[::1]:1", true),
            (here, "unix:/s", true),
            (here, "10.0.0.1:1", false),
            (there, "10.0.0.1:1", true),
            (mapped, "10.0.0.1:1", true),
            (there, "10.0.0.2:1", false),
            (there, "127.0.0.1:1", false),
            (there, "unix:/s", false),
            (linked, "[fe80::1%7]:1", true),
            (linked, "[fe80::1%8]:1", false),
            (RemoteHost::Unknown, "127.0.0.1:1", false),
        ] {
            let endpoint = Endpoint::numeric(address(text)).unwrap();
            assert_eq!(host.is_at(&endpoint), is_there, "{host:?} {text}");
        }
        let sockets = ["10.0.0.1:7", "10.0.0.2:7"].map(|text| text.parse().unwrap());
        let both = Endpoint::resolved(address("name:7"), sockets.to_vec()).unwrap();
        assert!(!there.is_at(&both));
    }
}
