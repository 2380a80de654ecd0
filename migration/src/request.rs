//! What a user asks of a source: read from a command line, sent to a control socket and taken by the engine as one type,
//! so that an option, its default and its bounds stand here and nowhere else.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::address::Address;
use crate::disk_modes::{DiskChoice, DiskMode, StorageReach};
use crate::endpoint::Endpoint;
use crate::observation::{Observation, Side};
use crate::progress::{Limits, TimeoutAction, Verify};
use crate::units::{Rate, Span};
use crate::vm::Served;
use crate::wire::MAX_STREAMS;

/// A migration as its user asks for it; as JSON, the body of `POST /vm/migration`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = MigrateBody))]
#[cfg_attr(feature = "command-line", derive(clap::Args), group(id = "request"))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// Where to: HOST:PORT or unix:PATH.
    // Not required by itself: a command line that steers a migration has none of these options.
    #[cfg_attr(feature = "command-line", arg(long, value_name = "ADDRESS", required = false,
        value_parser = command_line::destination))]
    pub to: String,
    /// What the name of the host stands for, each as `IP:PORT`, the first to be tried first: the process of a
    /// VM looks no name up. Absent where the host is named by its number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    #[cfg_attr(feature = "command-line", arg(skip))]
    pub addresses: Vec<SocketAddr>,
    /// Longest that the guest may be stopped.
    #[serde(rename = "downtime_limit_ms", default = "default_downtime")]
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    #[cfg_attr(feature = "command-line", arg(long, value_name = "TIME",
        default_value_t = default_downtime()))]
    pub downtime_limit: Span,
    /// Most that goes over the wire; absent or 0 is unlimited.
    #[serde(
        rename = "bandwidth_bytes_per_s",
        default,
        skip_serializing_if = "Rate::is_unlimited"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    #[cfg_attr(feature = "command-line", arg(long, value_name = "RATE",
        default_value_t = Rate::default(), help = "Most that goes over the wire, as in 500MiB/s"))]
    pub bandwidth: Rate,
    /// Data connections, 1 to 16 [default: chosen].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "command-line", arg(long, value_name = "N",
        value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_STREAMS))))]
    pub streams: Option<u8>,
    /// Total time before `on_timeout` is done; absent is no limit.
    #[serde(
        rename = "timeout_ms",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    #[cfg_attr(
        feature = "command-line",
        arg(
            long,
            value_name = "TIME",
            help = "Total time before --on-timeout is done"
        )
    )]
    pub timeout: Option<Span>,
    /// What to do then: cancel, stop the guest and finish, or have disks that travel go over to mirror, or on-demand.
    #[serde(default)]
    #[cfg_attr(feature = "command-line", arg(long, value_name = "ACTION", requires = "timeout",
        default_value_t = TimeoutAction::default()))]
    pub on_timeout: TimeoutAction,
    /// How long a new link is tried when it is lost while the guest is copied, 10 minutes at most; 0s is not at all.
    // The usual one is not told: a VM that an earlier version started knows no such field.
    #[serde(
        rename = "reconnect_for_ms",
        default = "default_reconnect",
        skip_serializing_if = "is_usual_reconnect"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    #[cfg_attr(feature = "command-line", arg(long, value_name = "TIME",
        default_value_t = default_reconnect()))]
    pub reconnect_for: Span,
    /// How the moved memory is verified: stream, full or off.
    #[serde(default)]
    #[cfg_attr(feature = "command-line", arg(long, value_name = "HOW",
        default_value_t = Verify::default()))]
    pub verify: Verify,
    /// How disks move: MODE for all, or ID=MODE for one, which may be repeated. `shared`: the destination opens them where
    /// they lie; `precopy`: they are copied while the guest runs; `mirror`: so are they, and the guest's writes wait for the
    /// link, so that it ends however much is written; `snapshot`: the image is copied
    /// as it is while the guest goes on in an overlay, and what is in that follows in rounds; `on-demand`: the guest goes at once, and fetches there what it reads, from
    /// a process of this host that serves the image; the rest comes meanwhile, or not with `,pull=off`, and requests for it wait while that process is lost, or fail with
    /// `,on-source-loss=error[:TIME]`; `auto`, as without this
    /// option: shared where the destination reaches them, else copied to where it was told to put them. Of those that are copied
    /// `,format=raw|qcow2` is the format there, and `,after=keep|delete` what becomes of the image here. Of a mirrored one
    /// `,before` has memory go when the disk is there, `,after` has it go on demand, and `,writes=RATE` is the most that the guest
    /// writes to it in a second.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "command-line",
        arg(long, value_name = "[ID=]MODE[,KEY=VALUE]")
    )]
    pub disks: Vec<DiskChoice>,
    /// Who serves each disk that moves on demand, once the guest has gone. The command line has started them; a VM that is asked
    /// for such a disk without is not moved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Object>))]
    #[cfg_attr(feature = "command-line", arg(skip))]
    pub served: Vec<ServedDisk>,
    /// The overlays of each disk that moves by snapshot. The command line has made them; a VM that is asked for such a disk without
    /// is not moved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "command-line", arg(skip))]
    pub overlays: Vec<DiskOverlays>,
    /// Allow plain TCP beyond this host.
    #[serde(default)]
    #[cfg_attr(feature = "command-line", arg(long))]
    pub insecure: bool,
    /// Only say whether it would work.
    #[serde(default)]
    #[cfg_attr(feature = "command-line", arg(long))]
    pub plan: bool,
}

/// Who serves a disk that moves on demand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedDisk {
    /// Identity of the disk.
    pub disk: String,
    /// Where it is served, and as whom the destination asks for it.
    #[serde(flatten)]
    pub by: Served,
}

/// The overlays of a disk that moves by snapshot, which were made for that.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskOverlays {
    /// Identity of the disk.
    pub disk: String,
    /// Identifier by which the overlays are marked and recorded, 32 hexadecimal digits that nobody has used.
    pub job: String,
    /// Three empty qcow2 images over the image that the disk has, as they were passed, in their order: regular files, open to be
    /// read and written.
    pub files: Vec<String>,
    /// What their paths begin with; that of number N goes on with `.overlay-N.qcow2`.
    pub beginning: String,
    /// Who can reach their storage.
    pub reach: StorageReach,
    /// Bytes that there are for them: a migration whose overlays are forecast to take more does not begin.
    pub room_bytes: u64,
}

/// Longest that a new link is tried.
const MOST_RECONNECT: Duration = Duration::from_secs(600);

fn default_reconnect() -> Span {
    Span(Duration::from_secs(10))
}

fn is_usual_reconnect(time: &Span) -> bool {
    *time == default_reconnect()
}

fn default_downtime() -> Span {
    Span(Limits::default().downtime)
}

impl MigrateRequest {
    /// A migration to `to`, with all defaults.
    pub fn new(to: impl Into<String>) -> Self {
        Self {
            to: to.into(),
            addresses: Vec::new(),
            downtime_limit: default_downtime(),
            bandwidth: Rate::default(),
            streams: None,
            timeout: None,
            on_timeout: TimeoutAction::default(),
            reconnect_for: default_reconnect(),
            verify: Verify::default(),
            disks: Vec::new(),
            served: Vec::new(),
            overlays: Vec::new(),
            insecure: false,
            plan: false,
        }
    }

    /// The limits that it begins with.
    pub fn limits(&self) -> Limits {
        Limits {
            downtime: self.downtime_limit.0,
            bandwidth: self.bandwidth.0,
        }
    }

    /// Whether a disk that moves so is, or may be, fetched when the guest runs at the destination, for which somebody has to be there
    /// who serves it. One that is only read is not.
    pub fn may_go_on_demand(&self, mode: DiskMode) -> bool {
        match mode {
            DiskMode::OnDemand => true,
            DiskMode::Precopy => self.on_timeout == TimeoutAction::OnDemand,
            DiskMode::Auto | DiskMode::Shared | DiskMode::Mirror | DiskMode::Snapshot => false,
        }
    }

    /// Where it goes, of a request that may be begun.
    ///
    /// # Errors
    /// `usage.streams`, `usage.reconnect-for`, `usage.address` for what is no destination or names a host that nobody has looked up, and
    /// `usage.insecure` for plain TCP beyond this host that is not allowed.
    pub fn endpoint(&self) -> Result<Endpoint, Observation> {
        let wrong = |id: &str, what: String| Observation::new(Side::Source, id, what);
        if self
            .streams
            .is_some_and(|n| !(1..=MAX_STREAMS).contains(&n))
        {
            let what = format!("1 to {MAX_STREAMS} streams are supported");
            return Err(wrong("usage.streams", what));
        }
        if self.reconnect_for.0 > MOST_RECONNECT {
            let what = format!("a new link is tried for {MOST_RECONNECT:?} at most");
            return Err(wrong("usage.reconnect-for", what));
        }
        let address = self
            .to
            .parse()
            .and_then(Address::as_destination)
            .map_err(|e| wrong("usage.address", e.to_string()))?;
        let endpoint = Endpoint::resolved(address, self.addresses.clone()).map_err(|_| {
            let what = format!(
                "{:?} names its host: look the name up, and add `addresses`",
                self.to
            );
            wrong("usage.address", what)
        })?;
        if !endpoint.is_loopback() && !self.insecure {
            let what =
                "plain TCP beyond this host needs --insecure: guest memory is readable on the wire";
            return Err(wrong("usage.insecure", what.into()));
        }
        for ServedDisk { disk, by } in &self.served {
            let at = by.at.parse().ok().and_then(Endpoint::numeric);
            let at = at.ok_or_else(|| {
                let what = format!(
                    "disk {disk}: {:?} is no address that needs no look-up",
                    by.at
                );
                wrong("usage.address", what)
            })?;
            if !at.is_loopback() && !self.insecure {
                let what =
                    "plain TCP beyond this host needs --insecure: the disk is readable on the wire";
                return Err(wrong("usage.insecure", what.into()));
            }
        }
        Ok(endpoint)
    }
}

#[cfg(feature = "command-line")]
mod command_line {
    use crate::address::{Address, AddressError};

    /// Reads what `--to` names.
    pub(super) fn destination(text: &str) -> Result<String, String> {
        let address: Address = text.parse().map_err(|e: AddressError| e.to_string())?;
        address
            .as_destination()
            .map(|_| text.to_owned())
            .map_err(|_| format!("{text:?} is no destination: HOST:PORT or unix:PATH is"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_the_default() {
        let read: MigrateRequest = serde_json::from_str(r#"{"to":"unix:/a"}"#).unwrap();
        assert_eq!(read, MigrateRequest::new("unix:/a"));
        assert_eq!(read.limits(), Limits::default());
        for text in [
            r#"{}"#,
            r#"{"to":"unix:/a","compress":"lz4"}"#,
            r#"{"to":"unix:/a","plan":true,"plan":true}"#,
            r#"{"to":"unix:/a","downtime_limit_ms":"1s"}"#,
        ] {
            assert!(
                serde_json::from_str::<MigrateRequest>(text).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn json_has_the_names_and_numbers_that_are_documented() {
        let text = r#"{"to":"h:1","addresses":["192.0.2.1:1"],"downtime_limit_ms":50,"bandwidth_bytes_per_s":5,"streams":4,"timeout_ms":7,"on_timeout":"stop","reconnect_for_ms":0,"verify":"full","insecure":true,"plan":true}"#;
        let read: MigrateRequest = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        let least = serde_json::to_string(&MigrateRequest::new("unix:/a")).unwrap();
        let expected = r#"{"to":"unix:/a","downtime_limit_ms":300,"on_timeout":"cancel","verify":"stream","insecure":false,"plan":false}"#;
        assert_eq!(least, expected);
    }

    #[test]
    fn only_what_may_be_begun_has_an_endpoint() {
        type Change = fn(&mut MigrateRequest);
        let told = |change: Change| {
            let mut request = MigrateRequest::new("192.0.2.1:7");
            request.insecure = true;
            change(&mut request);
            request.endpoint().map_err(|why| why.id)
        };
        assert!(told(|_| {}).is_ok());
        assert!(told(|r| r.streams = Some(16)).is_ok());
        assert!(told(|r| (r.to, r.insecure) = ("127.0.0.1:7".into(), false)).is_ok());
        assert!(told(|r| r.reconnect_for = Span(MOST_RECONNECT)).is_ok());
        let cases: [(Change, &str); 7] = [
            (
                |r| r.reconnect_for = Span(MOST_RECONNECT * 2),
                "usage.reconnect-for",
            ),
            (|r| r.streams = Some(0), "usage.streams"),
            (|r| r.streams = Some(17), "usage.streams"),
            (|r| r.to = "nowhere".into(), "usage.address"),
            (|r| r.to = "fd:3".into(), "usage.address"),
            (|r| r.to = "host:7".into(), "usage.address"),
            (|r| r.insecure = false, "usage.insecure"),
        ];
        for (n, (change, id)) in cases.into_iter().enumerate() {
            assert_eq!(told(change), Err(id.into()), "case {n}");
        }
    }
}
