//! The thread of `vmm receive`: waits until a guest is here, then answers for it.

use block::image::qcow2::BackingRules;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use control::instance::Ending;
use control::runtime_dir::VmDir;
use migration::Outcome;
use migration::address::Address;
use migration::destination::{self, Options, Waiting};
use migration::endpoint::Endpoint;
use migration::journal::FileJournal;
use migration::observation::{Observation, Side};
use migration::progress::Report;
use migration::steering::Steering;
use migration::transport::Listen;
use migration::transport::socket::SocketListen;

use crate::config::ReceiveConfig;
use crate::console::ConsoleHub;
use crate::cpuid::Model;
use crate::debug::DebugLayers;
use crate::disks::incoming::{DiskPaths, Places};
use crate::error::MachineError;
use crate::events::GuestEvents;
use crate::instance::door::{Door, Doorway};
use crate::instance::inherited;
use crate::instance::vm::VmInstance;
use crate::memory::{RamFile, Rooms};
use crate::moving::destination::{Arrival, MachineDestination, Naming};
use crate::opener;
use crate::threads::{self, ThreadKind};

/// Listens as configured and takes in one guest on a thread of its own.
///
/// A source that only asked, a connection that is no migration, a migration that fails before its machine
/// is built and a hand-over that was given up leave it listening; after any other failure before commit
/// nothing is left and the VM ends as `failed`. Once the guest is here, the thread goes on answering whether
/// it ran, for a source that lost the answer.
///
/// # Errors
/// When the address cannot be listened at.
pub(crate) fn listen(
    config: &ReceiveConfig,
    dir: &VmDir,
    cpu_limit: Option<Model>,
    console: &ConsoleHub,
    instance: &Arc<VmInstance>,
    events: GuestEvents,
    file: RamFile,
) -> Result<(), Observation> {
    let refused =
        |id: &str, e: &dyn std::error::Error| Observation::from_error(Side::Destination, id, e);
    let to_bind = config.listen.clone();
    let address = config.listen.address();
    let bound = match address {
        Address::Fd(fd) => inherited::socket(*fd).and_then(SocketListen::from_fd),
        Address::Tcp { .. } | Address::Unix(_) => {
            opener::outside(move || SocketListen::bind(&to_bind))
        }
    };
    let listener = bound.map_err(|e| {
        Observation::new(
            Side::Destination,
            "receive.listen",
            format!("cannot listen at {address}"),
        )
        .caused_by(refused("receive.listen", &e))
    })?;
    let journal =
        FileJournal::open(dir.migrations()).map_err(|e| refused("migration.journal", &e))?;
    let door = Arc::new(Door::default());
    instance.listens_at(listener.address(), door.clone());
    let rooms = Rooms::new(file, config.reserve)
        .map_err(|e| MachineError::from(e).observed(Side::Destination))?;
    // So that it can be stopped from the beginning.
    instance.takes_in(Steering::new());

    let arrival = Arrival {
        places: Places {
            named: config.disks.clone(),
            folder: config.disk_dir.clone(),
        },
        taps: config.nets.clone(),
        paths: disk_paths(&listener.address()),
        backing: BackingRules {
            permitted: config.allow_backing.clone(),
        },
        max_inbound: config.max_inbound.0,
        debug: opener::outside(|| DebugLayers::asked_for(Side::Destination))?,
        naming: if config.name.is_some() {
            Naming::Given
        } else {
            Naming::AsAtSource
        },
        rooms,
        cpu_limit,
        dir: dir.clone(),
        console: console.clone(),
        events,
    };
    let options = Options {
        max_inbound: config.max_inbound.0,
        ..Options::default()
    };
    let instance = instance.clone();
    thread::Builder::new()
        .name("incoming".into())
        .spawn(move || {
            threads::begin(ThreadKind::Incoming);
            let doorway = Doorway::new(listener, door.clone());
            take_in(&doorway, &door, arrival, &options, &journal, &instance);
        })
        .map_err(|e| refused("machine.thread", &e))?;
    Ok(())
}

/// Who may say where disks lie, of those that can connect to `listening`.
fn disk_paths(listening: &str) -> DiskPaths {
    match listening.parse().map(Endpoint::numeric) {
        Ok(Some(endpoint)) if endpoint.is_loopback() => DiskPaths::FromSource,
        _ => DiskPaths::GivenHere,
    }
}

/// The VM that waits.
struct Waits<'a>(&'a Arc<VmInstance>);

impl Waiting for Waits<'_> {
    fn next(&self) -> Arc<Steering> {
        let steering = Steering::new();
        self.0.takes_in(steering.clone());
        steering
    }

    fn goes_on(&self, report: &Report) {
        self.0.waits_on(report.error.clone());
    }
}

fn take_in(
    Doorway { listener, .. }: &Doorway,
    door: &Door,
    arrival: Arrival,
    options: &Options,
    journal: &FileJournal,
    instance: &Arc<VmInstance>,
) {
    let started = instance.clone();
    let mut vm = MachineDestination::new(arrival, Box::new(move |machine| started.owns(machine)));
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let waiting = Waits(instance);
        destination::wait_for_guest(listener, &mut vm, options, &waiting, journal)
    }));
    drop(vm);
    let Ok(outcome) = outcome else {
        // A guest that is here goes on; only who took it in is gone.
        if instance.lock().machine.is_none() {
            let why = Observation::new(
                Side::Destination,
                "migration.worker",
                "the engine ended unexpectedly",
            );
            instance.end(Ending::NotReceived, Some(why));
        }
        return;
    };
    match outcome {
        Outcome::Completed(_) => {
            if let Err(e) = destination::answer_resolve(listener, journal, &door.closing) {
                tracing::warn!(error = %e, "no longer answering whether the guest ran");
            }
        }
        Outcome::Cancelled(_) | Outcome::Planned(_) => instance.end(Ending::NotReceived, None),
        Outcome::Failed(report) | Outcome::HandoverUnknown(report) => {
            instance.end(Ending::NotReceived, report.error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_hosts_own_sockets_let_a_source_name_files() {
        for (listening, paths) in [
            ("127.0.0.1:7", DiskPaths::FromSource),
            ("[::1]:7", DiskPaths::FromSource),
            ("[::ffff:127.0.0.1]:7", DiskPaths::FromSource),
            ("unix:/run/socket", DiskPaths::FromSource),
            ("0.0.0.0:7", DiskPaths::GivenHere),
            ("[::]:7", DiskPaths::GivenHere),
            ("10.0.0.1:7", DiskPaths::GivenHere),
            ("what", DiskPaths::GivenHere),
        ] {
            assert_eq!(disk_paths(listening), paths, "{listening}");
        }
    }
}
