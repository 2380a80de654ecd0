//! A migration that stands in a phase.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use super::Phase;
pub use super::standing::NAME;
use super::standing::{self, Holdings};
use crate::blackbox::relay::Relay;
use crate::blackbox::{Console, Ended, Guest, Migration, Pair, Vms, holds, images};
use crate::process::Process;

/// Names the file that orders faults of disks, see docs/testing.md.
const DISK_FAULTS_VARIABLE: &str = "VMM_DEBUG_DISK_FAULTS";

fn orders(files: &tempfile::TempDir) -> PathBuf {
    files.path().join("orders")
}

/// For how long a link that is lost is tried anew.
pub const RECONNECT: &str = "--reconnect-for";

/// Set-up that a fault needs before the migration begins.
#[derive(Default)]
pub struct SetUp {
    /// More arguments of `vmm receive`.
    pub receive: Vec<String>,
    /// More arguments of `vmm migrate`.
    pub migrate: Vec<String>,
    /// Where the disk travels to; the hosts share it otherwise.
    pub travels_to: Option<PathBuf>,
    /// Makes another command of the one that receives.
    pub around_receiver: Option<Box<dyn FnOnce(Command) -> Command>>,
}

/// Two hosts, a guest that checks itself, and its migration.
pub struct Scene {
    /// The hosts.
    pub pair: Pair,
    /// Holds the disk.
    pub files: tempfile::TempDir,
    /// The guest's disk, which both hosts reach unless it travels.
    pub disk: PathBuf,
    /// Where it travels to, if it does.
    pub travels_to: Option<PathBuf>,
    /// The guest's console, where it ran first.
    pub console: Console,
    /// The link.
    pub relay: Relay,
    /// Where the destination really listens.
    pub address: String,
    /// Where the migration stands.
    pub phase: Phase,
    /// `vmm receive`.
    pub receiver: Process,
    /// What the guest's process held before the migration.
    pub before: Holdings,
    /// The source was killed, so that it tidies nothing.
    pub source_killed: bool,
    migration: Option<Migration>,
    ended: Option<Ended>,
}

impl Scene {
    /// Starts a guest and its migration, and returns when that stands in `phase`.
    pub fn set(phase: Phase, set_up: impl FnOnce(&Pair, &tempfile::TempDir) -> SetUp) -> Self {
        let pair = Pair::new();
        let files = tempfile::tempdir().expect("folder for the disk");
        let disk = images::sparse(files.path(), "data.raw", 4 << 20);
        let SetUp {
            mut receive,
            mut migrate,
            travels_to,
            around_receiver,
        } = set_up(&pair, &files);
        if let Some(path) = &travels_to {
            let place = format!("data={},create", path.display());
            receive.extend(["--disk".to_owned(), place]);
            migrate.extend(["--disks", "precopy"].map(str::to_owned));
        }
        let guest = Guest::small().disk(&disk);
        let orders = orders(&files);
        File::create(&orders).expect("orders of faults");
        let mut console = pair.source.run_with(NAME, &guest, |command| {
            command.env(DISK_FAULTS_VARIABLE, &orders);
        });
        // It is ready before it uses its disk.
        console.verifies_blocks();
        let before = Holdings::of(pair.source.pid(NAME), &disk);
        let mut command = pair.destination.command(
            [
                "receive",
                "--name",
                NAME,
                "--listen",
                "127.0.0.1:0",
                "--json",
            ]
            .map(str::to_owned)
            .into_iter()
            .chain(receive),
        );
        command.env(DISK_FAULTS_VARIABLE, &orders);
        if let Some(around) = around_receiver {
            command = around(command);
        }
        let receiver = pair.destination.start(command);
        pair.destination.wait_state(NAME, "incoming");
        let status = pair.destination.status(NAME);
        let address = status["listen"].as_str().expect("address").to_owned();
        let relay = Relay::new(&address, phase.trap());
        if phase == Phase::Precopy {
            migrate.extend(["--bandwidth", "1MiB/s"].map(str::to_owned));
        }
        if !migrate.iter().any(|option| option == RECONNECT) {
            // A row that does not say otherwise is about what a loss ends.
            migrate.extend([RECONNECT, "0s"].map(str::to_owned));
        }
        let migrate: Vec<&str> = migrate.iter().map(String::as_str).collect();
        let mut migration = Migration::start(&pair.source, NAME, &relay.address(), &migrate);
        migration.wait_phase(phase.as_source_tells());
        if phase == Phase::Precopy {
            migration.wait_progress();
        } else {
            holds("the link is held", || relay.is_sprung());
        }
        if phase == Phase::Finish {
            pair.destination.wait_state(NAME, "running");
        }
        let scene = Self {
            pair,
            files,
            disk,
            travels_to,
            console,
            relay,
            address,
            phase,
            receiver,
            before,
            source_killed: false,
            migration: Some(migration),
            ended: None,
        };
        standing::is_told(&scene.pair, phase);
        scene
    }

    /// Makes operations of the disk that both hosts share fail from now on, or hang.
    ///
    /// # Panics
    /// When the orders cannot be written.
    pub fn order_disk_faults(&self, faults: &[(&str, &str)]) {
        let lines: String = faults
            .iter()
            .map(|(operation, effect)| format!("data {operation} {effect}\n"))
            .collect();
        std::fs::write(orders(&self.files), lines).expect("orders of faults");
    }

    /// Lets the migration run on as fast as it can.
    pub fn go_on(&mut self) {
        self.relay.go_on();
        if self.phase == Phase::Precopy {
            // It may have ended meanwhile.
            let fast = ["migrate", NAME, "--set", "bandwidth=unlimited"];
            let _ = self.pair.source.vmm(fast);
        }
    }

    /// The guest has ended at the source: takes away what a failed VM keeps for its user to see.
    pub fn source_ended(&self) {
        let source = &self.pair.source;
        holds("the source's process ends", || {
            source.processes().is_empty()
        });
        if source.state(NAME).as_deref() == Some("failed") {
            source.stop(NAME);
        }
    }

    /// Waits until `vmm migrate` has ended.
    pub fn ended(&mut self) -> Ended {
        if let Some(migration) = self.migration.take() {
            self.ended = Some(migration.finish());
        }
        self.ended.clone().expect("the migration was followed")
    }
}
