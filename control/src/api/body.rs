//! Bodies of requests and answers that are not types of the VM itself.

use std::net::SocketAddr;

use migration::request::MigrateRequest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::disk_move::DiskMoveRequest;
use crate::instance::{StopMode, VmState};

/// What an answer is, and what a client accepts, that tells one JSON object a line.
pub const NDJSON: &str = "application/x-ndjson";

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

/// `POST /vm/jobs`: a job of any kind, and what is asked of that kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum JobRequest {
    /// The guest moves to another host.
    Migration(MigrateRequest),
    /// A disk moves to another image on this host.
    DiskMove(DiskMoveJob),
}

/// A move of a disk that says which.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskMoveJob {
    /// Identity of the disk.
    pub disk: String,
    /// How it moves.
    #[serde(flatten)]
    pub request: DiskMoveRequest,
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The fields of a move are those of the job: what serde says of a struct that is flattened into another is that
    /// it does not promise to find those that nobody knows.
    #[test]
    fn a_request_for_a_job_has_the_fields_of_its_kind_and_no_other() {
        let migration = json!({ "kind": "migration", "to": "h:1", "streams": 4 });
        let disk_move = json!({
            "kind": "disk-move", "disk": "data", "id": "0".repeat(32), "file": "1".repeat(32), "path": "/b",
            "format": "raw", "content": "blank", "reach": "this-host", "bandwidth_bytes_per_s": 7,
            "downtime_limit_ms": 50,
        });
        for told in [migration, disk_move] {
            let read: JobRequest = serde_json::from_value(told.clone()).unwrap();
            let written = serde_json::to_value(&read).unwrap();
            let again: JobRequest = serde_json::from_value(written).unwrap();
            assert_eq!(again, read);
            let mut with_more = told.clone();
            with_more["compress"] = json!("lz4");
            let refused = serde_json::from_value::<JobRequest>(with_more).unwrap_err();
            assert!(refused.to_string().contains("compress"), "{refused}");
        }
        for (other, named) in [
            (json!({ "to": "h:1" }), "kind"),
            (json!({ "kind": "backup", "to": "h:1" }), "backup"),
            (json!({ "kind": "disk-move", "disk": "data" }), "id"),
            (
                json!({ "kind": "migration", "to": "h:1", "disk": "data" }),
                "disk",
            ),
            (Value::Null, "JobRequest"),
        ] {
            let refused = serde_json::from_value::<JobRequest>(other.clone()).unwrap_err();
            assert!(refused.to_string().contains(named), "{other}: {refused}");
        }
    }
}
