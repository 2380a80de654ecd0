//! What lies between the two hosts: loopback, or a slow link between two network namespaces.

use std::fmt;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use control::units::human_bytes;
use procfs_core::FromRead;
use procfs_core::net::InterfaceDeviceStatus;

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
    /// The loopback of a namespace of our own, which nobody else sends over.
    OwnLoopback(Namespace),
    /// Loopback at which the contenders are told to keep to the rate.
    Told,
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

    /// Loopback that is used by this alone, so that what goes over can be counted; where there is none
    /// to be had (without root), that of all.
    pub fn own_loopback() -> Self {
        let up = |namespace: &Namespace| run(namespace, "ip", "link set lo up").ok();
        let own = Namespace::new().ok().filter(|own| up(own).is_some());
        Self {
            rate: None,
            wire: own.map_or(Wire::Loopback, Wire::OwnLoopback),
        }
    }

    /// Loopback at which the contenders are told to send at most `rate` bytes a second.
    pub fn told(rate: u64) -> Self {
        Self {
            rate: Some(rate),
            wire: Wire::Told,
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
            Wire::Veth { .. } => DESTINATION,
            _ => "127.0.0.1",
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
            Wire::Loopback | Wire::LoopbackInstead(_) | Wire::Told => make(),
            Wire::OwnLoopback(own) => own.inside(make).map_err(BenchError::Namespace)?,
            Wire::Veth { source, .. } => source.inside(make).map_err(BenchError::Namespace)?,
        }
    }

    /// The same on the destination's side.
    pub fn at_destination<T>(
        &self,
        make: impl FnOnce() -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        match &self.wire {
            Wire::Loopback | Wire::LoopbackInstead(_) | Wire::Told => make(),
            Wire::OwnLoopback(own) => own.inside(make).map_err(BenchError::Namespace)?,
            Wire::Veth { destination, .. } => {
                destination.inside(make).map_err(BenchError::Namespace)?
            }
        }
    }

    /// The bandwidth that the contenders themselves are told to keep to, when the link does not.
    pub fn own_limit(&self) -> Option<u64> {
        match self.wire {
            Wire::Loopback | Wire::OwnLoopback(_) | Wire::Veth { .. } => None,
            Wire::LoopbackInstead(_) | Wire::Told => self.rate,
        }
    }

    /// A port at the destination that nobody listens at now.
    pub fn free_port(&self) -> Result<u16, BenchError> {
        let failed = |e| BenchError::Copy("find a free port", e);
        let here = (self.destination_address(), 0);
        let listener = self.at_destination(|| TcpListener::bind(here).map_err(failed))?;
        Ok(listener.local_addr().map_err(failed)?.port())
    }

    /// Bytes that went over since it is there, headers and both ways included; `None` where it is not
    /// ours alone.
    pub fn carried(&self) -> Result<Option<u64>, BenchError> {
        let Wire::OwnLoopback(own) = &self.wire else {
            return Ok(None);
        };
        let devices = own
            .inside(|| InterfaceDeviceStatus::from_file("/proc/thread-self/net/dev"))
            .map_err(BenchError::Namespace)??;
        // What is sent over loopback is received there.
        Ok(devices.0.get("lo").map(|loopback| loopback.sent_bytes))
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = human_bytes(self.rate.unwrap_or(0) as f64);
        match &self.wire {
            Wire::Loopback => f.write_str("TCP on loopback"),
            Wire::OwnLoopback(_) => f.write_str("TCP on a loopback of its own"),
            Wire::Told => write!(f, "TCP on loopback, contenders told to keep to {rate}/s"),
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
    use std::net::TcpStream;

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

    #[test]
    fn what_goes_over_a_loopback_of_our_own_is_counted() {
        let link = Link::own_loopback();
        let Some(before) = link.carried().unwrap() else {
            println!("skipped: no network namespace can be made here");
            assert!(matches!(link.wire, Wire::Loopback));
            return;
        };
        let failed = |e| BenchError::Copy("connect", e);
        let there = (link.destination_address(), link.free_port().unwrap());
        let listener = link
            .at_destination(|| TcpListener::bind(there).map_err(failed))
            .unwrap();
        let mut near = link
            .at_source(|| TcpStream::connect(there).map_err(failed))
            .unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(&[7; 100_000]).unwrap();
        drop(near);
        assert_eq!(far.read_to_end(&mut Vec::new()).unwrap(), 100_000);
        let carried = link.carried().unwrap().unwrap() - before;
        assert!((100_000..150_000).contains(&carried), "{carried}");
        assert_eq!((link.own_limit(), link.leaves_this_host()), (None, false));
    }

    #[test]
    fn contenders_are_told_what_loopback_does_not_hold_them_to() {
        let link = Link::told(1 << 20);
        assert_eq!(link.own_limit(), Some(1 << 20));
        assert_eq!(link.carried().unwrap(), None);
        assert!(link.to_string().contains("1.00 MiB/s"), "{link}");
    }
}
