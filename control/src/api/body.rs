//! Bodies of requests and answers that are not types of the VM itself.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::instance::{StopMode, VmState};

/// Header of an answer that carries events: identifier of their migration.
pub const MIGRATION_ID: &str = "vmm-migration-id";

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
