//! A VM without a machine, for tests of what is around it.
//!
//! It echoes what is typed on its console; the lines `poweroff` and `crash` end it. Its migrations go
//! to `unix:/ok`, `unix:/fail`, `unix:/unknown`, `unix:/slow` (until cancelled), `unix:/long` (as ok, with an
//! event that is very long) or `unix:/mute` (as ok, but its events break off before the last). Its disk `data` moves
//! until that is cancelled.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use control::disk_move::{DiskMoveFiles, DiskMoveRequest};
use control::instance::{
    Ending, Instance, MigrationStatus, Requester, StopMode, VmEnd, VmState, VmStatus,
};
use control::job::{Job, JobKind, JobOutcome, JobProgress, JobResult, JobState, Jobs};
use control::on_demand::OnDemandChange;
use control::passed::PassedFile;
use control::runtime_dir::VmDir;
use machine::config::{ReceiveConfig, RunConfig};
use machine::console::ConsoleHub;
use machine::memory::RamFile;
use migration::observation::{Observation, Side};
use migration::progress::{
    DowntimeParts, EncodingCount, Event, Iteration, LimitChange, Phase, Report,
};
use migration::request::MigrateRequest;
use migration::steering::{EventSender, Events};
use migration::vm::RunState;
use vmm::cli::Launcher;

fn observed(id: &str, message: &str) -> Observation {
    Observation::new(Side::Source, id, message)
}

/// What changes.
struct Inner {
    state: VmState,
    end: Option<VmEnd>,
    /// Its end may be told: at once where nobody holds it.
    told: bool,
    error: Option<Observation>,
    events: Option<Vec<Event>>,
    /// Who listens to a migration that waits to be cancelled.
    followers: Vec<EventSender>,
    limits: Option<LimitChange>,
    request: Option<MigrateRequest>,
    disk_move: Option<Job>,
}

/// A VM that only has a state.
pub struct Fake {
    name: String,
    cpus: u32,
    memory: u64,
    listen: Option<String>,
    began: Instant,
    deaf: bool,
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Fake {
    /// A VM in `state`; one that is `deaf` does not hear its power button.
    pub fn new(name: &str, state: VmState, deaf: bool) -> Self {
        Self {
            name: name.into(),
            cpus: 2,
            memory: 64 << 20,
            listen: None,
            began: Instant::now(),
            deaf,
            inner: Mutex::new(Inner {
                state,
                end: None,
                told: true,
                error: None,
                events: None,
                followers: Vec::new(),
                limits: None,
                request: None,
                disk_move: None,
            }),
            changed: Condvar::new(),
        }
    }

    /// Changes its state.
    pub fn set(&self, state: VmState, error: Option<Observation>) {
        self.change(state, error, None);
    }

    fn change(&self, state: VmState, error: Option<Observation>, end: Option<VmEnd>) {
        let mut inner = self.inner.lock().unwrap();
        inner.state = state;
        inner.error = error;
        inner.end = end;
        self.changed.notify_all();
    }

    fn told(&self) -> MutexGuard<'_, Inner> {
        let inner = self.inner.lock().unwrap();
        let untold = |inner: &mut Inner| inner.state.is_final() && !inner.told;
        self.changed.wait_while(inner, untold).unwrap()
    }

    fn status_of(&self, inner: &Inner) -> VmStatus {
        VmStatus {
            name: self.name.clone(),
            state: inner.state,
            pid: std::process::id(),
            cpus: self.cpus,
            memory_bytes: self.memory,
            disks: Vec::new(),
            uptime_ms: self.began.elapsed().as_millis() as u64,
            listen: self.listen.clone(),
            migration: inner.events.as_ref().map(|events| MigrationStatus {
                id: Some(ID.into()),
                to: None,
                last: events.last().cloned(),
                resolution: None,
            }),
            error: inner.error.clone(),
            end: inner.end.clone(),
            failed_migrations: 0,
            last_failure: None,
        }
    }

    /// What `set_limits` was last told.
    pub fn limits(&self) -> Option<LimitChange> {
        self.inner.lock().unwrap().limits.clone()
    }

    /// What `migrate` was last asked.
    pub fn request(&self) -> Option<MigrateRequest> {
        self.inner.lock().unwrap().request.clone()
    }

    fn steered(&self, id: &str) -> Result<(), Observation> {
        match self.jobs().find(id)?.state {
            JobState::Concluded => Err(observed("job.concluded", "the job is over")),
            _ => Ok(()),
        }
    }

    fn expect(&self, wanted: &[VmState]) -> Result<(), Observation> {
        let state = self.inner.lock().unwrap().state;
        if wanted.contains(&state) {
            return Ok(());
        }
        Err(observed("vm.wrong-state", "the guest is in another state"))
    }
}

/// Identifier of its migrations.
pub const ID: &str = "0123456789abcdef0123456789abcdef";

fn has_ended(events: &[Event]) -> bool {
    matches!(
        events.last(),
        Some(Event::Completed(_) | Event::Failed(_) | Event::Cancelled(_))
    )
}

/// Its migration as a job.
fn job_of(inner: &Inner) -> Option<Job> {
    let events = inner.events.as_ref()?;
    let request = inner.request.as_ref().expect("asked for");
    let limits = request.limits();
    let limits = inner
        .limits
        .iter()
        .fold(limits, migration::progress::Limits::changed);
    Some(Job {
        to: Some(request.to.clone()),
        limits: Some(limits.into()),
        ..Job::of_migration(ID.into(), events)
    })
}

fn jobs_of(inner: &Inner) -> Vec<Job> {
    let jobs = job_of(inner).into_iter().chain(inner.disk_move.clone());
    jobs.collect()
}

fn report(status: &str) -> Report {
    Report {
        status: status.into(),
        migration_id: ID.into(),
        total_ms: 1234.5,
        downtime_ms: Some(6.0),
        downtime: DowntimeParts {
            stop: Some(1.0),
            last_pages: Some(1.0),
            state_save: Some(1.0),
            state_send: Some(1.0),
            state_load: 1.0,
            commit: 1.0,
        },
        setup_ms: 3.0,
        reconnects: 0,
        iterations_omitted: None,
        iterations: Some(vec![Iteration {
            n: 1,
            pages: 10,
            ..Iteration::default()
        }]),
        disks: None,
        encodings: [(
            "raw".to_owned(),
            EncodingCount {
                pages: 10,
                bytes: 40960,
            },
        )]
        .into(),
        wire_bytes: 41000,
        guest_bytes: 64 << 20,
        throttle_max: Some(0),
        verified: status == "completed",
        forecast_downtime_ms: Some(7.0),
        run_state: RunState::Running,
        warnings: Vec::new(),
        error: None,
    }
}

impl Instance for Fake {
    fn status(&self) -> VmStatus {
        self.status_of(&self.told())
    }

    fn pause(&self) -> Result<(), Observation> {
        self.expect(&[VmState::Running, VmState::Paused])?;
        self.set(VmState::Paused, None);
        Ok(())
    }

    fn resume(&self) -> Result<(), Observation> {
        self.expect(&[VmState::Running, VmState::Paused])?;
        self.set(VmState::Running, None);
        Ok(())
    }

    fn stop(&self, mode: StopMode, by: Requester) -> Result<(), Observation> {
        if mode == StopMode::Graceful {
            self.expect(&[VmState::Running])?;
            if self.deaf {
                return Err(observed(
                    "guest.no-power-off",
                    "the guest does not power off",
                ));
            }
        }
        let end = VmEnd {
            by: Some(by.told(mode)),
            ..VmEnd::new(Ending::Stopped)
        };
        self.change(VmState::Stopped, None, Some(end));
        Ok(())
    }

    fn migrate(
        &self,
        request: MigrateRequest,
        _: Vec<Vec<PassedFile>>,
    ) -> Result<String, Observation> {
        let to = request.endpoint()?.to_string();
        self.expect(&[VmState::Running])?;
        let phases = [Phase::Negotiate, Phase::Prepare, Phase::Precopy];
        let mut events: Vec<_> = phases.map(|phase| Event::Phase { phase }).into();
        events.push(Event::Progress {
            phase: Phase::Precopy,
            iteration: 1,
            sent_bytes: 1 << 20,
            remaining_bytes: 63 << 20,
            mib_per_s: 900.0,
            dirty_pages_per_s: 10.0,
            eta_ms: Some(70.0),
            forecast_downtime_ms: 7.0,
        });
        match to.as_str() {
            "unix:/ok" => {
                let status = if request.plan { "planned" } else { "completed" };
                events.push(Event::Completed(report(status)));
                if !request.plan {
                    let end = VmEnd {
                        to: Some(request.to.clone()),
                        ..VmEnd::new(Ending::Migrated)
                    };
                    self.change(VmState::Migrated, None, Some(end));
                }
            }
            "unix:/fail" => {
                let mut report = report("failed");
                let root = Observation::new(Side::Destination, "disk.open", "no such disk");
                let top = observed("migration.refused", "refused").in_phase("prepare");
                report.error = Some(top.caused_by(root));
                events.push(Event::Failed(report));
            }
            "unix:/unknown" => {
                events.push(Event::Failed(report("handover-unknown")));
                self.set(VmState::HandoverUnknown, None);
            }
            "unix:/slow" | "named:7" => {}
            "unix:/long" => {
                let mut report = report("completed");
                report.iterations = Some(vec![Iteration::default(); 20_000]);
                events.push(Event::Completed(report));
            }
            "unix:/mute" => events.push(Event::Completed(report("completed"))),
            _ => return Err(observed("usage.address", "no such destination")),
        }
        let mut inner = self.inner.lock().unwrap();
        inner.events = Some(events);
        inner.request = Some(request);
        Ok(ID.into())
    }

    fn migration_events(&self) -> Option<Events> {
        let mut inner = self.told();
        let (sender, receiver) = Events::channel();
        let mut events = inner.events.clone()?;
        if inner.request.as_ref().is_some_and(|r| r.to == "unix:/mute") {
            events.pop();
            for event in events {
                sender.tell(event);
            }
            return Some(receiver);
        }
        let ended = has_ended(&events);
        for event in events {
            sender.tell(event);
        }
        if !ended {
            // Ends once it is cancelled: an engine would do so from its own thread.
            inner.followers.push(sender);
        }
        Some(receiver)
    }

    fn cancel_migration(&self) -> Result<(), Observation> {
        let mut inner = self.inner.lock().unwrap();
        let Some(events) = inner.events.as_mut().filter(|events| !has_ended(events)) else {
            return Err(observed("migration.none", "no migration is running"));
        };
        let last = Event::Cancelled(report("cancelled"));
        events.push(last.clone());
        for follower in inner.followers.drain(..) {
            follower.tell(last.clone());
        }
        self.changed.notify_all();
        Ok(())
    }

    fn set_limits(&self, change: LimitChange) -> Result<(), Observation> {
        self.inner.lock().unwrap().limits = Some(change);
        Ok(())
    }

    fn jobs(&self) -> Jobs {
        let inner = self.told();
        Jobs {
            jobs: jobs_of(&inner),
        }
    }

    fn wait_job(&self, id: &str, seen: JobState, timeout: Duration) -> Result<Job, Observation> {
        let inner = self.inner.lock().unwrap();
        let is_as_seen = |inner: &mut Inner| {
            let jobs = jobs_of(inner);
            jobs.iter().any(|job| job.id == id && job.state == seen)
        };
        let waited = self.changed.wait_timeout_while(inner, timeout, is_as_seen);
        drop(waited.unwrap());
        self.jobs().find(id)
    }

    fn cancel_job(&self, id: &str) -> Result<(), Observation> {
        self.steered(id)?;
        let mut inner = self.inner.lock().unwrap();
        if let Some(job) = inner.disk_move.as_mut().filter(|job| job.id == id) {
            let why = observed("job.cancelled", "as asked");
            job.state = JobState::Concluded;
            job.result = Some(JobResult::without_report(JobOutcome::Cancelled, why));
            self.changed.notify_all();
            return Ok(());
        }
        drop(inner);
        self.cancel_migration()
    }

    fn set_job_limits(&self, id: &str, change: LimitChange) -> Result<(), Observation> {
        self.steered(id)?;
        self.set_limits(change)
    }

    fn pause_job(&self, id: &str) -> Result<(), Observation> {
        self.steered(id)
    }

    fn resume_job(&self, id: &str) -> Result<(), Observation> {
        self.steered(id)
    }

    fn move_disk(
        &self,
        id: &str,
        request: DiskMoveRequest,
        files: DiskMoveFiles,
    ) -> Result<(), Observation> {
        if id != "data" {
            return Err(observed("disk.unknown", &format!("there is no disk {id}")));
        }
        assert_eq!(files.image.note.name, request.path);
        self.inner.lock().unwrap().disk_move = Some(Job {
            id: request.id,
            kind: JobKind::DiskMove,
            state: JobState::Running,
            to: Some(request.path),
            disk: Some(id.into()),
            from: None,
            progress: JobProgress::default(),
            disks: Vec::new(),
            limits: Some(LimitChange {
                downtime_limit: Some(request.downtime_limit),
                bandwidth: Some(request.bandwidth),
                ..LimitChange::default()
            }),
            held_up_by: None,
            result: None,
        });
        Ok(())
    }

    fn change_on_demand(&self, id: &str, _: OnDemandChange) -> Result<(), Observation> {
        Err(observed("disk.unknown", &format!("there is no disk {id}")))
    }

    fn resolve(&self, _: Vec<SocketAddr>) -> Result<VmState, Observation> {
        self.expect(&[VmState::HandoverUnknown])?;
        self.set(VmState::Running, None);
        Ok(VmState::Running)
    }

    fn wait_change(&self, seen: VmState, timeout: Duration) -> VmState {
        let inner = self.inner.lock().unwrap();
        let (inner, _) = self
            .changed
            .wait_timeout_while(inner, timeout, |i| i.state == seen)
            .unwrap();
        drop(inner);
        self.told().state
    }

    fn wait_end(&self, seen: &VmStatus, timeout: Duration) -> Option<VmStatus> {
        let inner = self.inner.lock().unwrap();
        let (inner, _) = self
            .changed
            .wait_timeout_while(inner, timeout, |i| {
                i.state == seen.state && !seen.state.is_final()
            })
            .unwrap();
        inner.state.is_final().then(|| self.status_of(&inner))
    }

    fn own_status(&self) -> VmStatus {
        self.status_of(&self.inner.lock().unwrap())
    }

    fn close_door(&self) {}

    fn tell_end(&self) {
        self.inner.lock().unwrap().told = true;
        self.changed.notify_all();
    }
}

/// Launches [`Fake`]s.
pub struct FakeLauncher;

fn wire(fake: &Arc<Fake>, console: &ConsoleHub) {
    fake.inner.lock().unwrap().told = false;
    let (vm, out) = (Arc::clone(fake), console.clone());
    let typed = Mutex::new(Vec::new());
    console.set_input(Box::new(move |bytes| {
        out.write(bytes);
        let mut typed = typed.lock().unwrap();
        typed.extend_from_slice(bytes);
        if typed.ends_with(b"poweroff\n") {
            vm.change(VmState::Stopped, None, Some(VmEnd::new(Ending::PoweredOff)));
        }
        if typed.ends_with(b"crash\n") {
            vm.change(
                VmState::Failed,
                Some(observed("guest.crashed", "triple fault")),
                Some(VmEnd::new(Ending::Crashed)),
            );
        }
        bytes.len()
    }));
}

impl Launcher for FakeLauncher {
    fn run(
        &self,
        config: &RunConfig,
        dir: &VmDir,
        console: &ConsoleHub,
        _: RamFile,
    ) -> Result<Arc<dyn Instance>, Observation> {
        match config.cmdline.as_str() {
            "no-kvm" => return Err(observed("host.no-kvm", "/dev/kvm does not exist: load kvm")),
            "bad-kernel" => return Err(observed("boot.kernel", "the kernel is truncated")),
            "die" => std::process::abort(),
            _ => {}
        }
        let mut fake = Fake::new(&dir.name(), VmState::Running, config.cmdline == "deaf");
        fake.cpus = config.cpus.into();
        fake.memory = config.memory;
        let fake = Arc::new(fake);
        wire(&fake, console);
        console.write(b"hello from the guest\n");
        Ok(fake)
    }

    fn receive(
        &self,
        _: &ReceiveConfig,
        dir: &VmDir,
        console: &ConsoleHub,
        _: RamFile,
    ) -> Result<Arc<dyn Instance>, Observation> {
        let mut fake = Fake::new(&dir.name(), VmState::Incoming, false);
        (fake.cpus, fake.memory) = (0, 0);
        fake.listen = Some("127.0.0.1:4711".into());
        let fake = Arc::new(fake);
        wire(&fake, console);
        Ok(fake)
    }

    fn probe_guest(&self) -> &[u8] {
        b"\x7fELF fake"
    }
}
