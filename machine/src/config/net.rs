//! Network interfaces on the command line and in a file.

use std::str::FromStr;

use devices::virtio::net::tap::check_name;
use devices::virtio::net::{MAX_PAIRS, Mac};
use migration::observation::Observation;
use serde::Deserialize;

use super::check::{check_id, set_once, usage};

/// A network interface of the guest, on a tap of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// Tap interface of this host.
    pub tap: String,
    /// Address that the guest sees; drawn at random where absent.
    pub mac: Option<Mac>,
    /// Pairs of queues.
    pub queues: u16,
    /// Name of the interface in `receive --net ID=TAP` and in messages.
    pub id: String,
}

/// A network interface as it is written on the command line: `tap=IF[,mac=MAC][,queues=N][,id=ID]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetArg {
    /// Tap interface of this host.
    pub tap: String,
    /// Address that the guest sees.
    pub mac: Option<Mac>,
    /// Pairs of queues; one where absent.
    pub queues: Option<u16>,
    /// Where absent, `net0`, `net1`, … by position.
    pub id: Option<String>,
}

impl FromStr for NetArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const SHAPE: &str = "tap=IF[,mac=MAC][,queues=N][,id=ID]";
        let (mut tap, mut mac, mut queues, mut id) = (None, None, None, None);
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("tap", name)) => {
                    check_name(name).map_err(|e| e.to_string())?;
                    set_once(&mut tap, "tap", name.into())?;
                }
                Some(("mac", text)) => {
                    let read: Mac = text.parse().map_err(|e| format!("mac: {e}"))?;
                    set_once(&mut mac, "mac", read)?;
                }
                Some(("queues", count)) => {
                    set_once(&mut queues, "queues", parse_queues(count)?)?;
                }
                Some(("id", name)) => set_once(&mut id, "id", name.into())?,
                _ => return Err(format!("{part:?} is not understood: write {SHAPE}")),
            }
        }
        let tap = tap.ok_or_else(|| format!("a network interface needs a tap: {SHAPE}"))?;
        Ok(Self {
            tap,
            mac,
            queues,
            id,
        })
    }
}

fn parse_queues(text: &str) -> Result<u16, String> {
    text.parse()
        .ok()
        .filter(|queues| (1..=MAX_PAIRS).contains(queues))
        .ok_or_else(|| format!("queues={text}: 1 to {MAX_PAIRS} are supported"))
}

/// A network interface in a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileNet {
    tap: String,
    mac: Option<String>,
    queues: Option<u16>,
    id: Option<String>,
}

impl FileNet {
    pub(super) fn into_arg(self) -> Result<NetArg, String> {
        let Self {
            tap,
            mac,
            queues,
            id,
        } = self;
        check_name(&tap).map_err(|e| e.to_string())?;
        let mac = mac
            .map(|text| text.parse().map_err(|e| format!("mac: {e}")))
            .transpose()?;
        let queues = queues
            .map(|queues| parse_queues(&queues.to_string()))
            .transpose()?;
        Ok(NetArg {
            tap,
            mac,
            queues,
            id,
        })
    }
}

impl NetArg {
    /// What is meant, for the interface at `position`.
    pub(super) fn into_config(self, position: usize) -> Result<NetConfig, Observation> {
        let Self {
            tap,
            mac,
            queues,
            id,
        } = self;
        let id = id.unwrap_or_else(|| format!("net{position}"));
        check_net_id(&id)?;
        Ok(NetConfig {
            tap,
            mac,
            queues: queues.unwrap_or(1),
            id,
        })
    }
}

/// Reads `ID=TAP` of `receive --net`.
///
/// # Errors
/// A sentence for the user.
pub fn parse_net_override(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((id, tap)) if !id.is_empty() => {
            check_name(tap).map_err(|e| e.to_string())?;
            Ok((id.into(), tap.into()))
        }
        _ => Err("write ID=TAP: the id of an interface at the source and its tap here".into()),
    }
}

pub(crate) fn check_net_id(id: &str) -> Result<(), Observation> {
    check_id(id).map_err(|what| usage("net", format!("interface id {what}")))
}
