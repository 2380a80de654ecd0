//! One guest, two VMs in this process: the whole way from one to the other.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use migration::progress::{Event, Limits, TimeoutAction, Verify};

use super::tests::{COUNTING, has_kvm};
use super::{receive, run};
use crate::boot::testing::pvh_elf;
use crate::config::{CpuModel, ReceiveConfig, RunConfig};
use crate::console::{ConsoleHub, ConsoleOutputs};
use crate::instance::{Instance, MigrateRequest, StopMode, VmState};
use crate::memory::PageBacking;
use crate::runtime_dir::{RuntimeDir, VmDir};

struct Host {
    _files: tempfile::TempDir,
    runtime: RuntimeDir,
}

impl Host {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let runtime = RuntimeDir::at(files.path()).unwrap();
        Self {
            _files: files,
            runtime,
        }
    }

    fn dir(&self, name: &str) -> VmDir {
        self.runtime.create(Some(name), "vm").unwrap()
    }
}

fn hub() -> ConsoleHub {
    ConsoleHub::start(ConsoleOutputs::default()).unwrap()
}

fn guest(host: &Host, kernel: &Path) -> Arc<dyn Instance> {
    let config = RunConfig {
        name: "guest".into(),
        kernel: Some(kernel.to_owned()),
        initrd: None,
        cmdline: String::new(),
        cpus: 1,
        memory: 16 << 20,
        pages: PageBacking::Small,
        cpu: CpuModel::Host,
        disks: Vec::new(),
    };
    run(&config, &host.dir("guest"), &hub()).unwrap()
}

fn destination(host: &Host) -> Arc<dyn Instance> {
    let config = ReceiveConfig {
        listen: "127.0.0.1:0".into(),
        name: None,
        disks: Vec::new(),
    };
    receive(&config, &host.dir("incoming"), &hub()).unwrap()
}

fn request(to: &str) -> MigrateRequest {
    MigrateRequest {
        to: to.into(),
        limits: Limits::default(),
        streams: None,
        timeout: None,
        on_timeout: TimeoutAction::Cancel,
        verify: Verify::Stream,
        insecure: false,
        plan: false,
    }
}

/// Waits for the last event of the migration and returns it.
fn last_event(source: &dyn Instance) -> Event {
    let events = source.migration_events().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut last = None;
    while let Ok(event) = events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        last = Some(event);
    }
    last.unwrap()
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

    source.migrate(request(&listen)).unwrap();
    match last_event(&*source) {
        Event::Completed(report) => {
            assert!(report.verified);
            assert_eq!(report.guest_bytes, 16 << 20);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(target.status().state, VmState::Running);
    assert_eq!(target.status().name, "guest");
    let state = source.wait_change(VmState::Running, Duration::from_secs(10));
    assert_eq!(state, VmState::Migrated);
    target.stop(StopMode::Force).unwrap();
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
        .migrate(request(&target.status().listen.unwrap()))
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
    source.migrate(request("unix:/nonexistent/socket")).unwrap();
    match last_event(&*source) {
        Event::Failed(report) => assert!(report.error.is_some()),
        other => panic!("{other:?}"),
    }
    assert_eq!(source.status().state, VmState::Running);
}
