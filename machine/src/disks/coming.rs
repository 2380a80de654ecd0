//! What a guest's disk lacks that is served elsewhere: from when on that comes, how, how much is missing, and what becomes of it
//! when the guest moves on before all is here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use block::copy::Standing;
use block::on_demand::{OnDemand, Pull, Status, Supply};
use block::stack::Stack;
use control::instance::{MissingFromStatus, MissingStatus};
use control::job::{Job, JobKind, JobOutcome, JobProgress, JobResult, JobState};
use control::on_demand::{OnDemandChange, PullPriority};
use migration::MigrationId;
use migration::disk_bytes::{ClassBytes, ClassMeter, DiskBytes};
use migration::observation::{Observation, Side};
use migration::progress::LimitChange;
use migration::units::Rate;
use migration::vm::Behind;

use crate::disks::changes::{Changes, NotChanged};
use crate::disks::in_part::Terms;
use crate::serving::chain::Chain;
use crate::serving::gate::Gate;

/// How long it may take until nothing is fetched any more, once nobody answers.
const END: Duration = Duration::from_secs(10);

/// Whether the guest is about to go on with its disk before that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guest {
    /// It is not: who serves the disk hears from here what is needed no more.
    Stays,
    /// It is, or has gone: they hear that from where it goes.
    Leaves,
}

/// How what nobody asks for is had, once there is somebody to ask.
pub(super) struct Pulling {
    layer: Weak<OnDemand>,
    state: Mutex<PullState>,
    meter: Mutex<ClassMeter>,
}

#[derive(Debug, Clone, Copy)]
struct PullState {
    wanted: PullPriority,
    /// Whether a connection has stood.
    has_begun: bool,
}

impl Pulling {
    pub(super) fn of(layer: &Arc<OnDemand>, wanted: PullPriority) -> Self {
        let state = PullState {
            wanted,
            has_begun: false,
        };
        Self {
            layer: Arc::downgrade(layer),
            state: Mutex::new(state),
            meter: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, PullState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is somebody to ask.
    pub(super) fn begin(&self) {
        let mut state = self.state();
        state.has_begun = true;
        self.obey(*state);
    }

    /// It is to be had so from here on.
    pub(super) fn want(&self, priority: PullPriority) {
        let mut state = self.state();
        state.wanted = priority;
        self.obey(*state);
    }

    fn obey(&self, state: PullState) {
        let Some(layer) = self.layer.upgrade().filter(|_| state.has_begun) else {
            return;
        };
        layer.set_pull(match state.wanted {
            PullPriority::Off => Pull::Off,
            PullPriority::Background => Pull::Background,
            PullPriority::High => Pull::Urgent,
        });
    }

    fn rate(&self, bytes: ClassBytes) -> ClassBytes {
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        meter.measure(Instant::now(), bytes)
    }
}

/// What has the rest of a disk come, once it is told that the guest is here.
pub(crate) struct Coming {
    /// Where it is served, or the newest of what it comes from is.
    pub(super) at: String,
    /// As whom it is asked for there, and by which it is told as a job here.
    pub(super) job: MigrationId,
    pub(super) layer: Weak<OnDemand>,
    pub(super) chain: Weak<Chain>,
    /// The disk below that, to which is written what comes with the guest.
    pub(super) bare: Stack,
    pub(super) gate: Arc<Gate>,
    /// Held by whoever acts on it.
    pub(super) guest: Arc<Mutex<Guest>>,
    pub(super) changes: Changes,
    pub(super) terms: Arc<Mutex<Terms>>,
    pub(super) pulling: Arc<Pulling>,
}

impl Coming {
    /// The guest is here: what it needs is asked for from here on, and what it does not need if that was said, at most so many
    /// bytes a second.
    pub(crate) fn begin(&self, rate: Option<u64>) {
        if let Some(layer) = self.layer.upgrade() {
            layer.steering().set_bandwidth(rate);
        }
        self.gate.open();
    }

    fn set(&self, guest: Guest) {
        *self.guest.lock().unwrap_or_else(PoisonError::into_inner) = guest;
    }

    /// The guest is about to go on: nobody is told from here that the disk is whole, until it [stays](Self::stay). What is missing
    /// is fetched on.
    pub(crate) fn leave(&self) {
        self.set(Guest::Leaves);
    }

    /// The guest stays.
    pub(crate) fn stay(&self) {
        self.set(Guest::Stays);
    }

    /// The guest has gone: nothing is fetched any more, and what has come is durable.
    pub(crate) fn end(&self) {
        self.leave();
        let (Some(layer), Some(chain)) = (self.layer.upgrade(), self.chain.upgrade()) else {
            return;
        };
        chain.stop();
        if !layer.end_fetching(END) {
            tracing::warn!("what was being fetched of a disk does not end");
        }
        if let Err(error) = layer.finish() {
            // It is fetched again, from where it came.
            tracing::warn!(%error, "what has come of a disk is not durable");
        }
    }

    /// Who has what is missing here, in the order in which they are to be asked.
    pub(crate) fn behind(&self) -> Vec<Behind> {
        let chain = self.chain.upgrade();
        chain.map(|chain| chain.needed()).unwrap_or_default()
    }

    /// Changes how it is had; durable and in force when this returns.
    ///
    /// # Errors
    /// [`NotChanged`].
    pub(crate) fn change(&self, change: OnDemandChange) -> Result<(), NotChanged> {
        self.changes.ask(change)
    }

    fn terms(&self) -> Terms {
        *self.terms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The job that it is told as.
    pub(crate) fn job(&self) -> MigrationId {
        self.job
    }

    /// Has what nobody asks for wait, until it is told to go on.
    pub(crate) fn pause(&self) {
        if let Some(layer) = self.layer.upgrade() {
            layer.steering().pause();
        }
    }

    /// Has it come, also where that was not wanted before; as long as this process lives.
    pub(crate) fn resume(&self) {
        let wanted = self.pulling.state().wanted;
        if wanted == PullPriority::Off {
            self.pulling.want(PullPriority::Background);
        }
        if let Some(layer) = self.layer.upgrade() {
            layer.steering().resume();
        }
    }

    /// At most so many bytes a second of what nobody asks for, from here on.
    pub(crate) fn set_bandwidth(&self, rate: Rate) {
        if let Some(layer) = self.layer.upgrade() {
            layer.steering().set_bandwidth(rate.0);
        }
    }

    /// As the job that brings what disk `disk` lacks to its image at `to`; `None` when the guest has ended.
    pub(crate) fn told(&self, disk: &str, to: String) -> Option<Job> {
        let layer = self.layer.upgrade()?;
        let status = layer.status();
        let steering = layer.steering();
        let class_bytes = ClassBytes {
            demand: status.demanded_bytes,
            write: 0,
            background: status.fetched_bytes - status.demanded_bytes,
        };
        let is_whole = status.missing_bytes == 0;
        let is_off = self.pulling.state().wanted == PullPriority::Off;
        let state = match steering.standing() {
            _ if is_whole => JobState::Concluded,
            Standing::Paused => JobState::Paused,
            Standing::Running if is_off => JobState::Paused,
            Standing::Running | Standing::Ending | Standing::Cancelled => JobState::Running,
        };
        let held_up_by = held_up_by(&status, disk);
        let comes = state == JobState::Running && held_up_by.is_none();
        let left = steering.progress().left().filter(|_| comes);
        Some(Job {
            id: self.job.to_string(),
            kind: JobKind::DiskPull,
            state,
            to: Some(to),
            disk: Some(disk.to_owned()),
            from: Some(self.from()),
            progress: JobProgress {
                done_bytes: Some(status.fetched_bytes),
                total_bytes: Some(status.fetched_bytes + status.missing_bytes),
                eta_ms: left.map(|left| left.as_secs_f64() * 1e3),
                class_bytes: Some(class_bytes),
                waiting_ms: (status.lost_for)
                    .map(|lost| u64::try_from(lost.as_millis()).unwrap_or(u64::MAX)),
                ..JobProgress::default()
            },
            disks: vec![DiskBytes {
                id: disk.to_owned(),
                class_bytes,
                class_bytes_per_s: (!is_whole).then(|| self.pulling.rate(class_bytes)),
            }],
            limits: Some(LimitChange {
                bandwidth: Some(Rate(steering.bandwidth())),
                ..LimitChange::default()
            }),
            held_up_by,
            result: is_whole.then_some(JobResult {
                outcome: JobOutcome::Completed,
                error: None,
                report: None,
                disk_move: None,
            }),
        })
    }

    /// Where that is served which is missing.
    fn from(&self) -> String {
        let missing = self.chain.upgrade().map(|chain| chain.missing());
        let addresses: Vec<_> = missing.iter().flatten().map(|from| &*from.at).collect();
        match addresses.is_empty() {
            true => self.at.clone(),
            false => addresses.join(", "),
        }
    }

    /// What is missing, and from whom; `None` when nothing is, or the guest has ended.
    pub(crate) fn missing(&self) -> Option<MissingStatus> {
        let status = self.layer.upgrade()?.status();
        if status.missing_bytes == 0 {
            return None;
        }
        let from = self.chain.upgrade()?.missing();
        let why = match status.supply {
            Supply::Comes => None,
            Supply::Lost(why) | Supply::Wrong(why) | Supply::NotStored(why) => Some(why),
        };
        let addresses: Vec<_> = from.iter().map(|from| &*from.at).collect();
        Some(MissingStatus {
            bytes: status.missing_bytes,
            from: addresses.join(", "),
            sources: from
                .iter()
                .map(|from| MissingFromStatus {
                    from: from.at.clone(),
                    bytes: from.bytes,
                    why: from.lost.clone(),
                })
                .collect(),
            on_source_loss: self.terms().on_source_loss,
            priority: self.pulling.state().wanted,
            why,
        })
    }
}

/// Why nothing comes of `disk`, where something should.
fn held_up_by(status: &Status, disk: &str) -> Option<Observation> {
    let (id, why) = match &status.supply {
        Supply::Comes => return None,
        Supply::Lost(why) => ("disk.source-lost", why),
        Supply::Wrong(why) => ("disk.source-wrong", why),
        Supply::NotStored(why) => ("disk.not-stored", why),
    };
    let message = format!("what is missing of disk {disk} does not come: {why}");
    Some(Observation::new(Side::Destination, id, message))
}
