//! What this machine must have for two hosts in namespaces.

use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result};

use super::namespace::Namespace;

/// Why networks cannot be made here; `None` if they can.
///
/// Everything that a network is made of is tried once, in a namespace of its own, so that what fails
/// after this is a fault and not a lack.
pub fn lacks_network() -> Option<String> {
    static LACKS: OnceLock<Option<String>> = OnceLock::new();
    LACKS
        .get_or_init(|| {
            if !rustix::process::geteuid().is_root() {
                return Some("network namespaces need root".into());
            }
            let absent = ["ip", "tc", "bridge", "nsenter", "unshare"]
                .into_iter()
                .find(|tool| Command::new(tool).arg("-V").output().is_err());
            if let Some(tool) = absent {
                return Some(format!("{tool} is not installed"));
            }
            try_all()
                .err()
                .map(|error| format!("no network can be made here: {error:#}"))
        })
        .clone()
}

fn try_all() -> Result<()> {
    std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("open /dev/net/tun")?;
    let scratch = Namespace::new()?;
    for words in [
        "link add bridge0 type bridge",
        "link add wire0 type veth peer name wire1",
        "tuntap add tap0 mode tap vnet_hdr multi_queue",
    ] {
        scratch.ip(words)?;
    }
    scratch.tc("qdisc add dev wire0 root tbf rate 1gbit burst 256kb latency 50ms")?;
    scratch.list("bridge", "fdb show")?;
    Ok(())
}
