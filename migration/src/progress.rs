//! What a migration tells while it runs and when it ends: events, limits and the report.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::disk_bytes::{DiskBytes, SnapshotDisk};
use crate::disk_modes::{AfterMove, MoveOrder};
use crate::id::MigrationId;
use crate::observation::Observation;
use crate::units::{Rate, Span};
use crate::vm::{RunState, TravellingDisk};

/// Phases of a migration, in order.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Version, features, CPU, machine, disks: all refusals happen here.
    Negotiate,
    /// The destination builds the machine.
    Prepare,
    /// Memory is sent while the guest runs.
    Precopy,
    /// The guest is stopped; the last pages and the state go over.
    StopAndCopy,
    /// The destination has loaded everything.
    Ready,
    /// The decision is recorded on both sides.
    Commit,
    /// The source lets go.
    Finish,
}

/// What happens when the total time runs out before the switch-over.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeoutAction {
    /// Give up; the guest stays at the source.
    #[default]
    Cancel,
    /// Stop the guest and finish, whatever the downtime.
    Stop,
    /// Disks that travel go over to `mirror`, without starting anew: the guest's writes to them wait for the link.
    Mirror,
    /// Disks that travel by `precopy` go over to `on-demand`, without starting anew: what the destination does not have of them
    /// is fetched when the guest runs there.
    OnDemand,
}

/// How the moved memory is verified.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verify {
    /// Digest of the pages as they are sent and placed, compared at `ready`.
    #[default]
    Stream,
    /// All memory is hashed on both sides while the guest is paused.
    Full,
    /// No digest.
    Off,
}

impl fmt::Display for TimeoutAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cancel => "cancel",
            Self::Stop => "stop",
            Self::Mirror => "mirror",
            Self::OnDemand => "on-demand",
        })
    }
}

impl FromStr for TimeoutAction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Cancel, Self::Stop, Self::Mirror, Self::OnDemand]
            .into_iter()
            .find(|action| action.to_string() == text)
            .ok_or_else(|| {
                format!("{text:?} is not supported: cancel, stop, mirror and on-demand are")
            })
    }
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stream => "stream",
            Self::Full => "full",
            Self::Off => "off",
        })
    }
}

impl FromStr for Verify {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Stream, Self::Full, Self::Off]
            .into_iter()
            .find(|how| how.to_string() == text)
            .ok_or_else(|| format!("{text:?} is not supported: stream, full and off are"))
    }
}

/// Limits that hold for one migration and may be changed while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Budget for the time in which the guest is stopped.
    pub downtime: Duration,
    /// Most bytes per second on the wire; `None` is unlimited.
    pub bandwidth: Option<u64>,
}

impl Phase {
    /// Its name as events carry it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Negotiate => "negotiate",
            Self::Prepare => "prepare",
            Self::Precopy => "precopy",
            Self::StopAndCopy => "stop-and-copy",
            Self::Ready => "ready",
            Self::Commit => "commit",
            Self::Finish => "finish",
        }
    }
}

impl Default for Limits {
    /// 300 ms of downtime, unlimited bandwidth.
    fn default() -> Self {
        Self {
            downtime: Duration::from_millis(300),
            bandwidth: None,
        }
    }
}

/// Limits that are told, or asked for: what is absent does not apply, or stays as it is. As JSON, the body of
/// `PATCH /vm/migration/limits`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = LimitsBody))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitChange {
    /// Longest that the guest may be stopped.
    #[serde(
        rename = "downtime_limit_ms",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub downtime_limit: Option<Span>,
    /// Most that goes over the wire; 0 is unlimited.
    #[serde(
        rename = "bandwidth_bytes_per_s",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub bandwidth: Option<Rate>,
    /// Most that the guest may write in a second to a disk that is mirrored; 0 is unlimited.
    #[serde(
        rename = "writes_bytes_per_s",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub writes: Option<Rate>,
    /// The disk of which that is said, and nothing else is; absent for all that the job moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
}

impl From<Limits> for LimitChange {
    fn from(limits: Limits) -> Self {
        Self {
            downtime_limit: Some(Span(limits.downtime)),
            bandwidth: Some(Rate(limits.bandwidth)),
            writes: None,
            disk: None,
        }
    }
}

impl Limits {
    /// These limits after `change`, as far as it is of them.
    pub fn changed(self, change: &LimitChange) -> Self {
        Self {
            downtime: change.downtime_limit.map_or(self.downtime, |limit| limit.0),
            bandwidth: change.bandwidth.map_or(self.bandwidth, |rate| rate.0),
        }
    }
}

/// Bytes and pages that went over in one encoding.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncodingCount {
    /// Guest pages.
    pub pages: u64,
    /// Bytes of payload on the wire.
    pub bytes: u64,
}

/// Passes that a report and a list of events keep, the first ones.
pub const FIRST_ITERATIONS: usize = 8;
/// Passes that a report and a list of events keep, the newest ones.
pub const NEWEST_ITERATIONS: usize = 56;

/// One pass over the dirty pages.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Iteration {
    /// Counted from 1.
    pub n: u32,
    /// Pages sent, skipped ones included.
    pub pages: u64,
    /// Bytes of disks sent, without what reads as zeroes; absent where no disk travels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Bytes on the wire.
    pub bytes: u64,
    /// How long it took.
    pub ms: f64,
    /// Rate at which the guest dirtied pages meanwhile.
    pub dirty_pages_per_s: f64,
    /// Rate on the wire.
    pub mib_per_s: f64,
}

/// What was sent of disks that travelled.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisksReport {
    /// Which they are, and why.
    #[serde(default)]
    pub travelling: Vec<TravellingDisk>,
    /// Bytes that travelled, those that travelled again among them.
    pub bytes: u64,
    /// Bytes that read as zeroes, which do not travel.
    pub zero_bytes: u64,
    /// Bytes that the destination had already, which were not sent.
    #[serde(default, skip_serializing_if = "is_none")]
    pub present_bytes: u64,
    /// Bytes of the digests by which those were found, among all that left the source.
    #[serde(default, skip_serializing_if = "is_none")]
    pub digest_bytes: u64,
    /// Blocks of 64 KiB that were not sent in their turn, because the guest had written them again by then.
    pub deferred_blocks: u64,
    /// Bytes of blocks of mirrored disks that were sent as the guest wrote them, among those that travelled.
    #[serde(default, skip_serializing_if = "is_none")]
    pub mirrored_bytes: u64,
    /// What travelled of each, by why it did: all together it is `bytes`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_disk: Vec<DiskBytes>,
    /// Their images at the source, once the guest has gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<LeftImage>,
    /// Those whose content the destination fetches from there on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on_demand: Vec<OnDemandDisk>,
    /// Those that went by way of overlays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<SnapshotDisk>,
}

/// A disk that has gone on demand: what of its content went before the guest did, and where the rest is.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnDemandDisk {
    /// Identity of the disk.
    pub id: String,
    /// Where it is served.
    pub served_at: String,
    /// Bytes of its content that travelled before the commit.
    pub disk_bytes_before_commit: u64,
    /// That its user asked for a mirror `after` its guest, which this is; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<MoveOrder>,
}

fn is_none(bytes: &u64) -> bool {
    *bytes == 0
}

/// The image that a disk had at the source from which it has travelled.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftImage {
    /// Identity of the disk.
    pub id: String,
    /// Where the image lies; absent where it has no path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What is to become of it.
    pub after: AfterMove,
    /// The destination has said that it holds the disk whole and durable.
    pub whole: bool,
    /// Whoever asked for the migration has removed it.
    pub removed: bool,
}

/// What passes that a report does not list did, all together.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OmittedIterations {
    /// How many there were.
    pub count: u32,
    /// Pages sent, skipped ones included.
    pub pages: u64,
    /// Bytes of disks sent; absent where no disk travels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Bytes on the wire.
    pub bytes: u64,
    /// How long they took.
    pub ms: f64,
}

/// The parts of the downtime, in milliseconds; `None` where this side does not know them.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DowntimeParts {
    /// Stopping vCPUs and draining devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<f64>,
    /// The last dirty pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_pages: Option<f64>,
    /// Saving the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_save: Option<f64>,
    /// Sending the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_send: Option<f64>,
    /// Loading the state, as the destination measured it.
    pub state_load: f64,
    /// Recording the decision on both sides and starting the vCPUs.
    pub commit: f64,
}

/// Figures of a migration; everything here was measured by the side that reports it, and what it
/// cannot know is `None` and not told. Field names are a stable contract.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// `completed`, `failed`, `cancelled`, `handover-unknown` or, when only asked, `planned`.
    pub status: String,
    /// Identifier of the migration.
    pub migration_id: String,
    /// From the request to the guest running at the destination; at the destination, from the
    /// source's connection to the end.
    pub total_ms: f64,
    /// Guest stopped to guest running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<f64>,
    /// The downtime by part.
    pub downtime: DowntimeParts,
    /// Negotiate and prepare.
    pub setup_ms: f64,
    /// Passes over the dirty pages: the first [`FIRST_ITERATIONS`] and the last [`NEWEST_ITERATIONS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iterations: Option<Vec<Iteration>>,
    /// The passes between those, where there were more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iterations_omitted: Option<OmittedIterations>,
    /// By encoding: `zero`, `raw`, and at the source `hole`.
    pub encodings: std::collections::BTreeMap<String, EncodingCount>,
    /// Disks that travelled; absent where none did, and at the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<DisksReport>,
    /// All bytes that left the source, headers and control frames included; at the destination,
    /// bytes of pages that came in.
    pub wire_bytes: u64,
    /// Guest RAM in bytes.
    pub guest_bytes: u64,
    /// Strongest throttle of a vCPU, percent; 0 until there is throttling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle_max: Option<u8>,
    /// Both sides' digests of the memory that was moved agree.
    pub verified: bool,
    /// Downtime that was forecast when the guest was stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast_downtime_ms: Option<f64>,
    /// Whether the guest runs or its user had paused it.
    pub run_state: RunState,
    /// What went wrong without keeping the guest from going on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Observation>,
    /// How often the link was lost and made anew.
    #[serde(default)]
    pub reconnects: u32,
    /// Why it ended otherwise than `completed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Observation>,
}

impl Report {
    /// What a source reports before anything was measured.
    pub fn at_source(id: MigrationId, run_state: RunState) -> Self {
        Self {
            migration_id: id.to_string(),
            run_state,
            downtime_ms: Some(0.0),
            downtime: DowntimeParts {
                stop: Some(0.0),
                last_pages: Some(0.0),
                state_save: Some(0.0),
                state_send: Some(0.0),
                ..DowntimeParts::default()
            },
            iterations: Some(Vec::new()),
            throttle_max: Some(0),
            forecast_downtime_ms: Some(0.0),
            ..Self::default()
        }
    }

    /// Adds a pass; of many, those in the middle become sums.
    pub fn add_iteration(&mut self, iteration: Iteration) {
        let listed = self.iterations.get_or_insert_default();
        if listed.len() == FIRST_ITERATIONS + NEWEST_ITERATIONS {
            let Iteration {
                n: _,
                pages,
                disk_bytes,
                bytes,
                ms,
                dirty_pages_per_s: _,
                mib_per_s: _,
            } = listed.remove(FIRST_ITERATIONS);
            let omitted = self.iterations_omitted.get_or_insert_default();
            omitted.count += 1;
            omitted.pages += pages;
            if let Some(bytes) = disk_bytes {
                *omitted.disk_bytes.get_or_insert_default() += bytes;
            }
            omitted.bytes += bytes;
            omitted.ms += ms;
        }
        listed.push(iteration);
    }

    /// How many passes there were; `None` where this side does not know.
    pub fn passes(&self) -> Option<u64> {
        let omitted = self.iterations_omitted.as_ref().map_or(0, |o| o.count);
        let listed = self.iterations.as_ref()?.len() as u64;
        Some(listed + u64::from(omitted))
    }
}

/// What a migration tells; one JSON object a line on the command line.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A phase began.
    Phase {
        /// The phase.
        phase: Phase,
    },
    /// A pass over the dirty pages ended.
    Iteration(Iteration),
    /// How far it is; at most ten a second.
    Progress {
        /// The phase.
        phase: Phase,
        /// Pass, counted from 1.
        iteration: u32,
        /// Bytes sent so far.
        sent_bytes: u64,
        /// Bytes of guest memory left to send.
        remaining_bytes: u64,
        /// Current rate.
        mib_per_s: f64,
        /// Rate at which the guest dirties pages.
        dirty_pages_per_s: f64,
        /// Forecast of the time left; `None` when it does not converge.
        eta_ms: Option<f64>,
        /// Forecast of the downtime if the guest were stopped now.
        forecast_downtime_ms: f64,
    },
    /// Something worth knowing that does not end the migration.
    Warning {
        /// What was observed.
        observation: Observation,
    },
    /// The link is lost while the guest is copied, which runs on; a new one is tried, or waited for.
    LinkLost {
        /// How it was lost.
        observation: Observation,
    },
    /// There is a new link, and it goes on from what the destination has placed.
    Reconnected {
        /// How often that has happened by now.
        reconnects: u32,
        /// How long there was none.
        ms: f64,
    },
    /// The guest is known to run at the destination.
    Completed(Report),
    /// The guest runs at the source, or is paused as the report's status says.
    Failed(Report),
    /// Cancelled on request; the guest runs at the source.
    Cancelled(Report),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_any_number_of_passes_stays_small_and_loses_no_sum() {
        let id = MigrationId::random().unwrap();
        let mut report = Report::at_source(id, RunState::Running);
        for n in 1..=100_000 {
            report.add_iteration(Iteration {
                n,
                pages: 2,
                bytes: 10,
                ms: 0.5,
                ..Iteration::default()
            });
        }
        let told: Vec<u32> = report.iterations.iter().flatten().map(|i| i.n).collect();
        assert_eq!(told.len(), FIRST_ITERATIONS + NEWEST_ITERATIONS);
        assert_eq!((told[0], told[7], told[8]), (1, 8, 99_945));
        assert_eq!(told.last(), Some(&100_000));
        assert_eq!(report.passes(), Some(100_000));
        let listed: u64 = report.iterations.iter().flatten().map(|i| i.bytes).sum();
        let omitted = report.iterations_omitted.clone().unwrap();
        assert_eq!(listed + omitted.bytes, 1_000_000);
        assert_eq!(omitted.pages, 2 * u64::from(omitted.count));
        assert!(serde_json::to_vec(&report).unwrap().len() < 64 << 10);
    }
}
