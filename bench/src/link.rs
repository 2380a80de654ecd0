//! What lies between the two hosts: loopback, or a slow link between two network namespaces.

use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use control::units::human_bytes;

use super::error::BenchError;
use super::namespace::Namespace;

/// Addresses of the two ends, of the block set aside for benchmarks (RFC 2544).
const SOURCE: &str = "198.18.0.1";
const DESTINATION: &str = "198.18.0.2";
/// Bytes that may pass at once above the rate: about two milliseconds' worth of a gigabit.
const BURST: &str = "256kb";
/// Longest that a byte may wait in the link's queue.
const QUEUE: &str = "50ms";

/// The way from the source to the destination.
pub(super) struct Link {
    rate: Option<u64>,
    wire: Wire,
}

enum Wire {
    Loopback,
    /// Why there is no slow link, where one was wanted.
    LoopbackInstead(String),
    /// A pair of virtual Ethernet ports, one in each namespace; the source's is slow.
    Veth {
        source: Namespace,
        destination: Namespace,
    },
}

impl Link {
    /// Loopback: as fast as the machine copies.
    pub fn loopback() -> Self {
        Self {
            rate: None,
            wire: Wire::Loopback,
        }
    }

    /// A link that carries `rate` bytes a second, or loopback. Where no such link can be made, the
    /// contenders themselves are to keep to the rate.
    pub fn of(rate: Option<u64>) -> Self {
        let Some(bytes_per_s) = rate else {
            return Self::loopback();
        };
        let wire = match veth(bytes_per_s) {
            Ok((source, destination)) => Wire::Veth {
                source,
                destination,
            },
            Err(why) => Wire::LoopbackInstead(why),
        };
        Self { rate, wire }
    }

    /// The address at which the destination listens, without its port.
    pub fn destination_address(&self) -> &'static str {
        match self.wire {
            Wire::Loopback | Wire::LoopbackInstead(_) => "127.0.0.1",
            Wire::Veth { .. } => DESTINATION,
        }
    }

    /// Whether its addresses are others than loopback's.
    pub fn leaves_this_host(&self) -> bool {
        matches!(self.wire, Wire::Veth { .. })
    }

    /// Does something on the source's side of the link: sockets and processes made there stay there.
    pub fn at_source<T>(
        &self,
        make: impl FnOnce() -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        match &self.wire {
            Wire::Loopback | Wire::LoopbackInstead(_) => make(),
            Wire::Veth { source, .. } => source.inside(make).map_err(BenchError::Namespace)?,
        }
    }

    /// The same on the destination's side.
    pub fn at_destination<T>(
        &self,
        make: impl FnOnce() -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        match &self.wire {
            Wire::Loopback | Wire::LoopbackInstead(_) => make(),
            Wire::Veth { destination, .. } => {
                destination.inside(make).map_err(BenchError::Namespace)?
            }
        }
    }

    /// The bandwidth that the contenders themselves are told to keep to, when the link does not.
    pub fn own_limit(&self) -> Option<u64> {
        match self.wire {
            Wire::Loopback | Wire::Veth { .. } => None,
            Wire::LoopbackInstead(_) => self.rate,
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = human_bytes(self.rate.unwrap_or(0) as f64);
        match &self.wire {
            Wire::Loopback => f.write_str("TCP on loopback"),
            Wire::LoopbackInstead(why) => write!(
                f,
                "TCP on loopback, contenders told to keep to {rate}/s (no slow link: {why})"
            ),
            Wire::Veth { .. } => {
                write!(f, "TCP between two network namespaces, a link of {rate}/s")
            }
        }
    }
}

/// Two namespaces joined by a link, or why there are none.
fn veth(bytes_per_s: u64) -> Result<(Namespace, Namespace), String> {
    let namespace = || Namespace::new().map_err(|e| format!("no network namespace: {e}"));
    let (source, destination) = (namespace()?, namespace()?);
    let far = destination.path();
    run(
        &source,
        "ip",
        &format!(
            "link add vmm0 type veth peer name vmm1 netns {}",
            far.display()
        ),
    )?;
    for (end, port, address) in [
        (&source, "vmm0", SOURCE),
        (&destination, "vmm1", DESTINATION),
    ] {
        run(end, "ip", "link set lo up")?;
        run(end, "ip", &format!("address add {address}/30 dev {port}"))?;
        run(end, "ip", &format!("link set {port} up"))?;
    }
    let bits = bytes_per_s.saturating_mul(8);
    run(
        &source,
        "tc",
        &format!("qdisc add dev vmm0 root tbf rate {bits}bit burst {BURST} latency {QUEUE}"),
    )?;
    Ok((source, destination))
}

/// Runs a command of iproute2 in a namespace.
fn run(namespace: &Namespace, program: &str, arguments: &str) -> Result<(), String> {
    let mut command = Command::new(find(program));
    command
        .args(arguments.split_ascii_whitespace())
        .stdin(Stdio::null());
    let output = namespace
        .inside(|| command.output())
        .and_then(|output| output)
        .map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("`{program} {arguments}`: {}", said.trim()))
}

/// Where Debian keeps programs for root, which may not be in PATH.
fn find(program: &str) -> PathBuf {
    ["/usr/sbin", "/sbin"]
        .iter()
        .map(|folder| PathBuf::from(folder).join(program))
        .find(|path| path.is_file())
        .unwrap_or_else(|| program.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_slow_link_joins_two_namespaces_and_leaves_this_one_alone() {
        let link = Link::of(Some(125_000_000));
        if let Wire::LoopbackInstead(why) = &link.wire {
            println!("skipped: {why}");
            assert_eq!(link.own_limit(), Some(125_000_000));
            assert!(link.to_string().contains(why));
            return;
        }
        assert_eq!(link.own_limit(), None);
        let address = link.destination_address();
        let failed = |e| BenchError::Copy("connect", e);
        let listener = link
            .at_destination(|| TcpListener::bind((address, 0)).map_err(failed))
            .unwrap();
        let there = listener.local_addr().unwrap();
        let mut near = link
            .at_source(|| TcpStream::connect(there).map_err(failed))
            .unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(b"through").unwrap();
        let mut read = [0; 7];
        far.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"through");
        // Nobody has that address out here.
        assert!(TcpListener::bind((address, 0)).is_err());
    }

    #[test]
    fn loopback_limits_nobody() {
        let link = Link::of(None);
        assert_eq!(link.own_limit(), None);
        assert!(!link.leaves_this_host());
    }
}
