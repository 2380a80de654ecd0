//! One guest, two VMs in this process: the whole way from one to the other.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use control::instance::{Ending, Instance, Requester, StopMode, VmState};
use control::job::{JobOutcome, JobState};
use control::rotating_file::RotatingFile;
use control::runtime_dir::{RuntimeDir, VmDir};
use devices::bus::BusDevice;
use migration::Outcome;
use migration::endpoint::Endpoint;
use migration::progress::{Event, Report};
use migration::request::MigrateRequest;
use migration::units::{Rate, Span};
use migration::vm::SourceMachine;

use crate::boot::testing::pvh_elf;
use crate::config::{CpuModel, ReceiveConfig, RunConfig};
use crate::console::{ConsoleHub, ConsoleOutputs};
use crate::instance::launch::receive;
use crate::instance::launch::run;
use crate::instance::{Served, VmInstance};
use crate::memory::{PageBacking, RamFile};
use crate::moving::source::MachineSource;
use crate::power::PauseReason;
use crate::tests::{COUNTING, count, has_kvm, wait_for_count_beyond};

pub(crate) struct Host {
    _files: tempfile::TempDir,
    runtime: RuntimeDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let runtime = RuntimeDir::at(files.path()).unwrap();
        Self {
            _files: files,
            runtime,
        }
    }

    pub(crate) fn dir(&self, name: &str) -> VmDir {
        self.runtime.create(Some(name), "vm").unwrap()
    }
}

pub(crate) fn hub() -> ConsoleHub {
    ConsoleHub::start(ConsoleOutputs::default()).unwrap()
}

fn config(kernel: &Path) -> RunConfig {
    RunConfig {
        allow_backing: Vec::new(),
        stale_disks: crate::config::StaleDisks::default(),
        name: "guest".into(),
        kernel: Some(kernel.to_owned()),
        initrd: None,
        cmdline: String::new(),
        cpus: 1,
        memory: 16 << 20,
        pages: PageBacking::Small,
        cpu: CpuModel::Host,
        disks: Vec::new(),
        nets: Vec::new(),
    }
}

fn guest(host: &Host, kernel: &Path) -> Arc<dyn Instance> {
    let dir = host.dir("guest");
    held(run(&config(kernel), &dir, &hub(), RamFile::memfd()).unwrap())
}

/// Has the VM held as its process would: what is heard of its end is told when its door is closed.
pub(crate) fn held(vm: Arc<dyn Instance>) -> Arc<dyn Instance> {
    let weak = Arc::downgrade(&vm);
    std::thread::spawn(move || {
        while let Some(vm) = weak.upgrade() {
            let seen = vm.own_status();
            if vm.wait_end(&seen, Duration::from_millis(50)).is_some() {
                vm.close_door();
                vm.tell_end();
                return;
            }
        }
    });
    vm
}

pub(crate) fn destination(host: &Host) -> Arc<dyn Instance> {
    let config = ReceiveConfig {
        allow_backing: Vec::new(),
        listen: endpoint("127.0.0.1:0"),
        name: None,
        disks: Vec::new(),
        disk_dir: None,
        nets: Vec::new(),
        reserve: None,
        max_inbound: Rate::default(),
    };
    let dir = host.dir("incoming");
    held(receive(&config, &dir, &hub(), RamFile::memfd()).unwrap())
}

pub(crate) fn endpoint(text: &str) -> Endpoint {
    Endpoint::numeric(text.parse().unwrap()).unwrap()
}

/// Waits for the last event of the migration and returns it.
pub(crate) fn last_event(source: &dyn Instance) -> Event {
    let events = source.migration_events().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut last = None;
    while let Ok(event) = events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        last = Some(event);
    }
    last.unwrap()
}

/// Waits until it has this state, whatever it goes through on its way.
pub(crate) fn wait_for(vm: &dyn Instance, state: VmState) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let now = vm.status().state;
        if now == state {
            return;
        }
        let left = deadline.checked_duration_since(Instant::now());
        let left = left.unwrap_or_else(|| panic!("{now:?}, not {state:?}"));
        vm.wait_change(now, left);
    }
}

#[test]
fn a_guest_moves_and_the_source_lets_go() {
    if !has_kvm() {
        return;
    }
    let mut kernel = tempfile::NamedTempFile::new().unwrap();
    kernel.write_all(&pvh_elf(&COUNTING, 0)).unwrap();
    let (here, there) = (Host::new(), Host::new());
    let source = guest(&here, kernel.path());
    let target = destination(&there);
    let listen = target.status().listen.unwrap();

    assert_eq!(target.status().migration.unwrap().id, None);
    let id = source
        .migrate(MigrateRequest::new(&listen), Vec::new())
        .unwrap();
    match last_event(&*source) {
        Event::Completed(report) => {
            assert!(report.verified);
            assert_eq!(report.guest_bytes, 16 << 20);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(target.status().state, VmState::Running);
    assert_eq!(target.status().name, "guest");
    assert_eq!(target.status().migration.unwrap().id, Some(id));
    wait_for(&*source, VmState::Migrated);
    target.stop(StopMode::Force, Requester::Client).unwrap();
    assert_eq!(target.status().state, VmState::Stopped);
}

#[test]
fn a_guest_that_its_user_paused_arrives_paused() {
    if !has_kvm() {
        return;
    }
    let mut kernel = tempfile::NamedTempFile::new().unwrap();
    kernel.write_all(&pvh_elf(&COUNTING, 0)).unwrap();
    let (here, there) = (Host::new(), Host::new());
    let source = guest(&here, kernel.path());
    let target = destination(&there);
    source.pause().unwrap();
    source
        .migrate(
            MigrateRequest::new(target.status().listen.unwrap()),
            Vec::new(),
        )
        .unwrap();
    assert!(matches!(last_event(&*source), Event::Completed(_)));
    assert_eq!(target.status().state, VmState::Paused);
    target.resume().unwrap();
    assert_eq!(target.status().state, VmState::Running);
}

#[test]
fn a_guest_whose_destination_is_not_there_goes_on() {
    if !has_kvm() {
        return;
    }
    let mut kernel = tempfile::NamedTempFile::new().unwrap();
    kernel.write_all(&pvh_elf(&COUNTING, 0)).unwrap();
    let here = Host::new();
    let source = guest(&here, kernel.path());
    source
        .migrate(MigrateRequest::new("unix:/nonexistent/socket"), Vec::new())
        .unwrap();
    match last_event(&*source) {
        Event::Failed(report) => assert!(report.error.is_some()),
        other => panic!("{other:?}"),
    }
    assert_eq!(source.status().state, VmState::Running);
}

#[test]
fn the_job_of_a_migration_has_the_limits_that_were_asked_for_and_says_why_it_failed() {
    if !has_kvm() {
        return;
    }
    let mut kernel = tempfile::NamedTempFile::new().unwrap();
    kernel.write_all(&pvh_elf(&COUNTING, 0)).unwrap();
    let here = Host::new();
    let source = guest(&here, kernel.path());
    let request = MigrateRequest {
        downtime_limit: Span(Duration::from_millis(7)),
        bandwidth: Rate(Some(7 << 20)),
        ..MigrateRequest::new("unix:/nonexistent/socket")
    };
    let limits = Some(request.limits().into());
    let id = source.migrate(request, Vec::new()).unwrap();
    // Its thread may not have begun yet.
    assert_eq!(source.jobs().find(&id).unwrap().limits, limits);
    last_event(&*source);
    let job = source.jobs().find(&id).unwrap();
    assert_eq!((job.state, job.limits), (JobState::Concluded, limits));
    let result = job.result.unwrap();
    assert_eq!(result.outcome, JobOutcome::Failed);
    assert_eq!(result.error, result.report.unwrap().error);
    assert_eq!(source.cancel_job(&id).unwrap_err().id, "job.concluded");
}

#[test]
fn a_guest_that_ends_at_once_is_not_said_to_run() {
    if !has_kvm() {
        return;
    }
    // Powers off by the ACPI register, then stops: mov dx, 0x600; mov al, 0x34; out dx, al; hlt
    let power_off = [0xba, 0, 0x06, 0, 0, 0xb0, 0x34, 0xee, 0xf4, 0xeb, 0xfd];
    let mut kernel = tempfile::NamedTempFile::new().unwrap();
    kernel.write_all(&pvh_elf(&power_off, 0)).unwrap();
    for _ in 0..20 {
        let host = Host::new();
        let vm = guest(&host, kernel.path());
        wait_for(&*vm, VmState::Stopped);
        let ended = vm.status();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(vm.status().uptime_ms, ended.uptime_ms, "it is over");
        assert!(
            vm.migrate(MigrateRequest::new("127.0.0.1:9"), Vec::new())
                .is_err()
        );
    }
}

#[test]
fn whoever_hears_that_a_migration_failed_may_ask_for_the_next() {
    if !has_kvm() {
        return;
    }
    let mut kernel = tempfile::NamedTempFile::new().unwrap();
    kernel.write_all(&pvh_elf(&COUNTING, 0)).unwrap();
    let host = Host::new();
    let source = guest(&host, kernel.path());
    for _ in 0..200 {
        source
            .migrate(MigrateRequest::new("unix:/nonexistent/socket"), Vec::new())
            .unwrap();
        assert!(matches!(last_event(&*source), Event::Failed(_)));
        assert_eq!(source.status().state, VmState::Running);
    }
}

#[test]
fn a_receive_that_is_stopped_ends_at_once() {
    if !has_kvm() {
        return;
    }
    let host = Host::new();
    let target = destination(&host);
    target.stop(StopMode::Force, Requester::Client).unwrap();
    assert_eq!(target.status().state, VmState::Stopped);
}

#[test]
fn a_paused_guest_whose_migration_failed_late_can_be_resumed() {
    if !has_kvm() {
        return;
    }
    let (machine, _ends) = crate::tests::machine(&COUNTING);
    let machine = Arc::new(machine);
    let host = Host::new();
    let vm = Served(VmInstance::new(&host.dir("guest"), VmState::Running));
    machine.resume(PauseReason::NotStarted).unwrap();
    vm.owns(&machine);
    vm.pause().unwrap();
    // As the engine stops it, and lets it go on when it fails after that.
    let source = MachineSource::new(machine.clone(), "guest");
    source.pause().unwrap();
    source.resume().unwrap();

    vm.settle(Some(&Outcome::Failed(Report::default())));
    assert_eq!(vm.status().state, VmState::Paused);
    let seen = count(&machine);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(count(&machine), seen, "its user's pause still holds");
    vm.resume().unwrap();
    wait_for_count_beyond(&machine, seen);
}

#[test]
fn a_guest_whose_engine_failed_while_it_was_paused_is_not_let_go_on() {
    if !has_kvm() {
        return;
    }
    let (machine, _ends) = crate::tests::machine(&COUNTING);
    let machine = Arc::new(machine);
    let host = Host::new();
    let vm = Served(VmInstance::new(&host.dir("guest"), VmState::Running));
    machine.resume(PauseReason::NotStarted).unwrap();
    vm.owns(&machine);
    machine.pause(PauseReason::Migration).unwrap();

    vm.settle(None);
    assert_eq!(vm.status().state, VmState::HandoverUnknown);
    assert!(vm.resume().is_err());
    assert!(
        vm.migrate(MigrateRequest::new("127.0.0.1:9"), Vec::new())
            .is_err()
    );
    assert!(vm.stop(StopMode::Force, Requester::Holder).is_err());
    vm.end(Ending::PoweredOff, None);
    assert_eq!(vm.status().state, VmState::HandoverUnknown);
}

#[test]
fn what_a_guest_printed_last_is_with_the_console_when_its_vm_ends() {
    if !has_kvm() {
        return;
    }
    let migrates = |vm: &Served| {
        vm.settle(Some(&Outcome::Completed(Report::default())));
    };
    let is_stopped = |vm: &Served| vm.stop(StopMode::Force, Requester::Holder).unwrap();
    let ends: [fn(&Served); 2] = [migrates, is_stopped];
    for end in ends {
        let files = tempfile::tempdir().unwrap();
        let log = files.path().join("serial.log");
        let console = ConsoleHub::start(ConsoleOutputs {
            log: Some(RotatingFile::create(&log, 1 << 20).unwrap()),
            ..ConsoleOutputs::default()
        })
        .unwrap();
        let (machine, _ends) = crate::tests::machine_on(&console, &COUNTING);
        let machine = Arc::new(machine);
        let host = Host::new();
        let vm = Served(VmInstance::new(&host.dir("guest"), VmState::Running));
        vm.owns(&machine);

        // Without a line's end, which would be waited for.
        for byte in b"login: " {
            machine.devices().serial.write(0, &[*byte]);
        }
        end(&vm);
        console.flush(Duration::from_secs(30));
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "login: ");
    }
}

#[test]
fn a_guest_that_is_over_is_not_entered_again_when_a_pause_ends() {
    if !has_kvm() {
        return;
    }
    // Tells its end, then counts on.
    let mut code = vec![0xba, 0, 0x06, 0, 0, 0xb0, 0x34, 0xee];
    code.extend_from_slice(&COUNTING);
    let (machine, ends) = crate::tests::machine(&code);
    machine.resume(PauseReason::NotStarted).unwrap();
    ends.recv_timeout(Duration::from_secs(10)).unwrap();
    machine.pause(PauseReason::Migration).unwrap();
    let seen = count(&machine);
    machine.resume(PauseReason::Migration).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(count(&machine), seen);
}

#[test]
fn whatever_its_user_does_meanwhile_a_guest_is_on_one_side() {
    if !has_kvm() {
        return;
    }
    let mut kernel = tempfile::NamedTempFile::new().unwrap();
    kernel.write_all(&pvh_elf(&COUNTING, 0)).unwrap();
    for round in 0..12_u64 {
        let (here, there) = (Host::new(), Host::new());
        let source = guest(&here, kernel.path());
        let target = destination(&there);
        let listen = target.status().listen.unwrap();
        source
            .migrate(MigrateRequest::new(&listen), Vec::new())
            .unwrap();
        let over = std::sync::atomic::AtomicBool::new(false);
        let moved = std::thread::scope(|scope| {
            for user in 0..2 {
                let (source, over) = (&source, &over);
                scope.spawn(move || {
                    let mut turn = round + user;
                    while !over.load(std::sync::atomic::Ordering::SeqCst) {
                        turn += 1;
                        // Whether each is refused depends on the moment; none may break anything.
                        let _ = match turn % 5 {
                            0 | 2 => source.pause(),
                            1 | 3 => source.resume(),
                            _ => source
                                .migrate(
                                    MigrateRequest::new("unix:/nonexistent/socket"),
                                    Vec::new(),
                                )
                                .map(drop),
                        };
                        if turn % 97 == 50 && round % 3 == 0 {
                            let _ = source.cancel_migration();
                        }
                        std::thread::sleep(Duration::from_micros(200));
                    }
                });
            }
            // Another migration may be the one that is listened to: the destination knows.
            target.wait_end(&target.own_status(), Duration::from_secs(30));
            let state = target.own_status().state;
            over.store(true, std::sync::atomic::Ordering::SeqCst);
            matches!(state, VmState::Running | VmState::Paused)
        });
        let deadline = Instant::now() + Duration::from_secs(10);
        let is_gone = |vm: &dyn Instance| {
            matches!(
                vm.status().state,
                VmState::Migrated | VmState::Stopped | VmState::Failed
            )
        };
        while is_gone(&*source) != moved {
            assert!(Instant::now() < deadline, "{:?}", source.status());
            std::thread::sleep(Duration::from_millis(1));
        }
        if moved {
            assert_eq!(source.status().state, VmState::Migrated);
            assert!(source.resume().is_err() && source.pause().is_err());
            target.resume().unwrap();
            assert_eq!(target.status().state, VmState::Running);
        } else {
            source.resume().unwrap();
            assert_eq!(source.status().state, VmState::Running);
        }
    }
}
