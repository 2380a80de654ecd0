//! Bodies of requests and answers that are not types of the VM itself.

use std::net::SocketAddr;
use std::time::Duration;

use migration::address::Address;
use migration::endpoint::Endpoint;
use migration::observation::{Observation, Side};
use migration::progress::{Limits, TimeoutAction, Verify};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::instance::{LimitChange, MigrateRequest, StopMode, VmState};

/// Header of an answer that carries events: identifier of their migration.
pub const MIGRATION_ID: &str = "vmm-migration-id";

/// Downtime budget of a migration that does not name one, in milliseconds.
pub const DEFAULT_DOWNTIME_MS: u64 = 300;

fn default_downtime() -> u64 {
    DEFAULT_DOWNTIME_MS
}

/// `POST /vm/migration`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrateBody {
    /// `HOST:PORT` or `unix:PATH`.
    pub to: String,
    /// What the name of the host stands for, each as `IP:PORT`, the first to be tried first: the process of a
    /// VM looks no name up. Absent where the host is named by its number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<SocketAddr>,
    /// Budget for the time in which the guest is stopped.
    #[serde(default = "default_downtime")]
    pub downtime_limit_ms: u64,
    /// Most bytes per second on the wire; absent or 0 is unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Data connections, 1 to 16; absent lets the engine choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<u8>,
    /// Total time before `on_timeout` is done; absent is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// What to do when the time has run out.
    #[serde(default)]
    pub on_timeout: TimeoutAction,
    /// How the moved memory is verified.
    #[serde(default)]
    pub verify: Verify,
    /// Allows plain TCP beyond loopback.
    #[serde(default)]
    pub insecure: bool,
    /// Only say whether it would work, and change nothing.
    #[serde(default)]
    pub plan: bool,
}

impl TryFrom<MigrateBody> for MigrateRequest {
    type Error = Observation;

    /// Fails with `usage.address`.
    fn try_from(body: MigrateBody) -> Result<Self, Observation> {
        Ok(Self {
            to: destination(&body.to, body.addresses)?,
            limits: Limits {
                downtime: Duration::from_millis(body.downtime_limit_ms),
                bandwidth: body.bandwidth_bytes_per_s.filter(|rate| *rate > 0),
            },
            streams: body.streams,
            timeout: body.timeout_ms.map(Duration::from_millis),
            on_timeout: body.on_timeout,
            verify: body.verify,
            insecure: body.insecure,
            plan: body.plan,
        })
    }
}

/// Where `to` is, whose name stands for `sockets`.
fn destination(to: &str, sockets: Vec<SocketAddr>) -> Result<Endpoint, Observation> {
    let wrong = |what: String| Observation::new(Side::Source, "usage.address", what);
    let address = to
        .parse()
        .and_then(Address::as_destination)
        .map_err(|e| wrong(e.to_string()))?;
    Endpoint::resolved(address, sockets).map_err(|_| {
        wrong(format!(
            "{to:?} names its host: look the name up, and add `addresses`"
        ))
    })
}

/// `POST /vm/migration/resolve`; may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveBody {
    /// What the name of the destination stands for by now, each as `IP:PORT`; where absent, what it stood for
    /// when the guest left.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<SocketAddr>,
}

/// `PATCH /vm/migration/limits`; what is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsBody {
    /// New downtime budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_limit_ms: Option<u64>,
    /// New bandwidth; 0 is unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_bytes_per_s: Option<u64>,
}

impl From<LimitsBody> for LimitChange {
    fn from(body: LimitsBody) -> Self {
        Self {
            downtime: body.downtime_limit_ms.map(Duration::from_millis),
            bandwidth: body.bandwidth_bytes_per_s,
        }
    }
}

/// `POST /vm/stop`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopBody {
    /// `graceful` presses the power button, `force` ends the VM now.
    pub mode: StopMode,
}

/// Answer to `POST /vm/migration`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationStarted {
    /// Identifier of the migration, 32 hexadecimal digits.
    pub id: String,
}

/// Answer to `GET /vm/wait` and `POST /vm/migration/resolve`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StateAnswer {
    /// The state now.
    pub state: VmState,
}

/// Query of `GET /vm/wait`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub struct WaitQuery {
    /// The state that the client knows of.
    pub seen: VmState,
    /// Longest wait in milliseconds, at most an hour.
    pub timeout_ms: u64,
}

/// A request that was accepted and has nothing to tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Accepted {}
