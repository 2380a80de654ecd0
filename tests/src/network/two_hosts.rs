//! The network that two hosts, a switch and a client outside make.
//!
//! ```text
//!   a ──────────────┐   switch   ┌────────────── b
//!   line0 10.77.0.1 ├── line ────┤ line0 10.77.0.2      migrations; tbf at line0, relays in `switch`
//!                   │ 10.77.0.254│
//!   guests          │            │ guests
//!   ├ tap0 (guest)  │            │ ├ tap0 (guest)
//!   └ up0 ──────────┴── lan ─────┴─┴ up0                the guest's network
//!                        │
//!                 client: lan0 10.78.0.1
//! ```

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::namespace::Namespace;
use super::requirements::lacks_network;
use crate::Host;
use crate::blackbox::relay::{Link, Relay};
use crate::blackbox::{Vms, holds};

/// Where relays are reached by both hosts.
const MIDDLE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);
/// The client outside.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
/// An address for a guest.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 10);
/// The port on which the probe guest echoes.
pub const ECHO: u16 = 7;
/// A MAC address for a guest.
pub const GUEST_MAC: &str = "52:54:00:4d:00:0a";

/// A host with a network of its own.
pub struct Site {
    /// Where VMs are run.
    pub host: Host,
    /// Its network: `line0` for migrations; bridge `guests` with `tap0` for a guest and `up0`.
    pub namespace: Arc<Namespace>,
    /// Its address on the line of migrations.
    pub address: Ipv4Addr,
    interfaces: Vec<String>,
}

impl Site {
    fn new(address: Ipv4Addr, queues: &str) -> Result<Self> {
        let namespace = Arc::new(Namespace::new()?);
        bridge(&namespace, "guests")?;
        namespace.ip(&format!("tuntap add dev tap0 mode tap vnet_hdr {queues}"))?;
        namespace.ip("link set tap0 master guests up")?;
        Ok(Self {
            host: Host::new()?.within(namespace.clone()),
            namespace,
            address,
            interfaces: Vec::new(),
        })
    }

    /// Waits for a guest under the name `vm`, at this host's address on the line; where it listens.
    #[track_caller]
    pub fn receive(&self, vm: &str) -> String {
        self.host.receive(vm, &format!("{}:0", self.address))
    }

    /// Checks that VMs have left nothing: no process, no file, no socket, no interface, no tap in use.
    ///
    /// # Panics
    /// When they have.
    #[track_caller]
    pub fn is_clean(&self) {
        self.host.is_clean();
        self.network_is_clean();
    }

    /// As [`Site::is_clean`], for the network alone.
    ///
    /// # Panics
    /// When something is left.
    #[track_caller]
    pub fn network_is_clean(&self) {
        // The kernel closes sockets and tap queues of a process a moment after it is gone.
        holds("sockets are closed", || self.sockets().is_empty());
        holds("nobody holds the tap", || !self.tap_is_in_use());
        let interfaces = self.namespace.interfaces().expect("interfaces");
        assert_eq!(interfaces, self.interfaces, "interfaces of the host");
    }

    /// Whether a process has the tap open.
    ///
    /// # Panics
    /// When there is no tap.
    pub fn tap_is_in_use(&self) -> bool {
        let links = self.namespace.list("ip", "link show dev tap0");
        let links = links.expect("tap0");
        let flags = links[0]["flags"].as_array().expect("flags of tap0");
        flags.iter().any(|flag| flag == "LOWER_UP")
    }

    /// TCP sockets that some process of the host has open.
    ///
    /// A connection that both ends have closed is remembered by the kernel for a minute (TIME_WAIT), and
    /// holds nothing.
    ///
    /// # Panics
    /// When they cannot be listed.
    pub fn sockets(&self) -> Vec<String> {
        const TIME_WAIT: &str = "06";
        ["tcp", "tcp6"]
            .iter()
            .flat_map(|file| {
                // tcp6 is absent where there is no IPv6.
                let text = self.namespace.proc_net(file).unwrap_or_default();
                text.lines()
                    .skip(1)
                    .filter(|line| line.split_whitespace().nth(3) != Some(TIME_WAIT))
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .collect()
    }
}

/// Two hosts, the switch between them and a client outside; all of it is gone when this is dropped.
pub struct TwoHosts {
    /// One host.
    pub a: Site,
    /// The other.
    pub b: Site,
    /// What lies between: bridge `line` for migrations, bridge `lan` for guests, with a port `a` or `b`
    /// to each host (`line-a`, `lan-a`, ...) and `lan-client`.
    pub switch: Arc<Namespace>,
    /// Somebody who is neither host nor guest: `lan0`, with the address [`CLIENT`].
    pub client: Arc<Namespace>,
}

impl TwoHosts {
    /// Two hosts on which nothing runs; `None`, with the reason printed, where networks cannot be made.
    ///
    /// # Panics
    /// When the network cannot be made though its parts can, or the binary does not build.
    #[track_caller]
    pub fn new() -> Option<Self> {
        if let Some(reason) = lacks_network() {
            println!("{}", crate::skip::line(format_args!("{reason}")));
            return None;
        }
        Some(Self::build().unwrap_or_else(|e| panic!("{e:#}")))
    }

    fn build() -> Result<Self> {
        let switch = Arc::new(Namespace::new()?);
        let client = Arc::new(Namespace::new()?);
        bridge(&switch, "line")?;
        bridge(&switch, "lan")?;
        switch.ip(&format!("address add {MIDDLE}/24 dev line"))?;
        // The kernel keeps a tap of one queue and one of several in different ways, and so do we.
        let mut a = Site::new(Ipv4Addr::new(10, 77, 0, 1), "multi_queue")?;
        let mut b = Site::new(Ipv4Addr::new(10, 77, 0, 2), "")?;
        for (site, name) in [(&mut a, "a"), (&mut b, "b")] {
            wire(
                &switch,
                &format!("line-{name}"),
                "line",
                &site.namespace,
                "line0",
            )?;
            wire(
                &switch,
                &format!("lan-{name}"),
                "lan",
                &site.namespace,
                "up0",
            )?;
            let address = site.address;
            site.namespace
                .ip(&format!("address add {address}/24 dev line0"))?;
            site.namespace.ip("link set up0 master guests")?;
            site.interfaces = site.namespace.interfaces()?;
        }
        wire(&switch, "lan-client", "lan", &client, "lan0")?;
        client.ip(&format!("address add {CLIENT}/24 dev lan0"))?;
        Ok(Self {
            a,
            b,
            switch,
            client,
        })
    }

    /// Limits the line of migrations, in either direction, to so many bytes a second.
    ///
    /// # Panics
    /// When the limit cannot be set.
    pub fn limit(&self, bytes_per_s: u64) {
        for site in [&self.a, &self.b] {
            limit(&site.namespace, "line0", bytes_per_s).unwrap_or_else(|e| panic!("{e:#}"));
        }
    }

    /// Takes the limit away.
    ///
    /// # Panics
    /// When there is none.
    pub fn unlimit(&self) {
        for site in [&self.a, &self.b] {
            let done = site.namespace.tc("qdisc del dev line0 root");
            let _ = done.unwrap_or_else(|e| panic!("{e:#}"));
        }
    }

    /// A relay in the switch, which both hosts reach by the line.
    ///
    /// # Panics
    /// When `to` is no socket address.
    pub fn relay(&self, to: &str, link: Link) -> Relay {
        let to: SocketAddr = to.parse().expect("address of the destination");
        Relay::within(self.switch.clone(), MIDDLE, to, link)
    }

    /// Port of the bridge `lan` behind which a MAC address was seen last.
    ///
    /// # Panics
    /// When the switch cannot be asked.
    pub fn port_of(&self, mac: &str) -> Option<String> {
        port_of(&self.switch, "lan", mac)
    }

    /// Checks that VMs have left nothing on either host.
    ///
    /// # Panics
    /// When they have.
    #[track_caller]
    pub fn is_clean(&self) {
        self.a.is_clean();
        self.b.is_clean();
    }
}

impl Drop for TwoHosts {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (site, name) in [(&self.a, "a"), (&self.b, "b")] {
                eprintln!("--- host {name}");
                site.host.tell();
            }
        }
    }
}

/// Port of `bridge` behind which a MAC address was seen last.
///
/// # Panics
/// When the bridge cannot be asked.
pub fn port_of(namespace: &Namespace, bridge: &str, mac: &str) -> Option<String> {
    let entries = namespace.list("bridge", &format!("fdb show br {bridge}"));
    let entries = entries.unwrap_or_else(|e| panic!("{e:#}"));
    let entry = entries
        .iter()
        .find(|entry| entry["mac"] == mac && entry["state"] != "permanent")?;
    entry["ifname"].as_str().map(str::to_owned)
}

/// Limits what leaves by an interface to so many bytes a second.
///
/// A queue of 50 ms, as a switch may have, and a burst that large segments fit into.
///
/// # Errors
/// When the kernel refuses.
pub fn limit(namespace: &Namespace, interface: &str, bytes_per_s: u64) -> Result<()> {
    let bits = bytes_per_s.checked_mul(8).context("rate too high")?;
    namespace.tc(&format!(
        "qdisc replace dev {interface} root tbf rate {bits}bit burst 256kb latency 50ms"
    ))?;
    Ok(())
}

/// A bridge that forwards from its first moment on.
fn bridge(namespace: &Namespace, name: &str) -> Result<()> {
    namespace.ip(&format!(
        "link add {name} type bridge forward_delay 0 mcast_snooping 0"
    ))?;
    namespace.ip(&format!("link set {name} up"))?;
    Ok(())
}

/// A wire from a port of a bridge to an interface elsewhere.
fn wire(
    switch: &Namespace,
    port: &str,
    bridge: &str,
    other: &Namespace,
    interface: &str,
) -> Result<()> {
    let there = other.path();
    switch.ip(&format!(
        "link add {port} type veth peer name {interface} netns {}",
        there.display()
    ))?;
    switch.ip(&format!("link set {port} master {bridge} up"))?;
    other.ip(&format!("link set {interface} up"))?;
    Ok(())
}
