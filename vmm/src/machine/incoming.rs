//! The thread of `vmm receive`: takes in one guest, then answers for it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use migration::Outcome;
use migration::address::Address;
use migration::control::Control;
use migration::destination::{self, Options};
use migration::journal::FileJournal;
use migration::observation::{Observation, Side};
use migration::transport::Listen;
use migration::transport::socket::SocketListen;

use super::destination::{Arrival, DiskPaths, MachineDestination, Naming};
use super::events::GuestEvents;
use super::inherited;
use super::instance::VmInstance;
use super::{MachineError, debug};
use crate::config::ReceiveConfig;
use crate::console::ConsoleHub;
use crate::cpuid::Model;
use crate::instance::VmState;
use crate::memory::{RamFile, Reserve, Room};
use crate::runtime_dir::VmDir;
use crate::sandbox::{self, Kind};

/// Listens as configured and takes in one guest on a thread of its own.
///
/// After a failure before commit nothing is left and the VM ends as `failed`; a source that only
/// asked, or a connection that is no migration, leaves it listening. Once the guest is here, the
/// thread goes on answering whether it ran, for a source that lost the answer.
///
/// # Errors
/// When the address cannot be listened at.
pub(super) fn listen(
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
    let address: Address = config.listen.parse().map_err(|e| {
        let e: migration::address::AddressError = e;
        refused("usage.address", &e)
    })?;
    let to_bind = address.clone();
    let bound = match &address {
        Address::Fd(fd) => inherited::socket(*fd).and_then(SocketListen::from_fd),
        Address::Tcp { .. } | Address::Unix(_) => {
            sandbox::opener::outside(move || SocketListen::bind(&to_bind))
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
    let socket = match &address {
        Address::Unix(path) => Some(path.clone()),
        _ => None,
    };
    instance.listens_at(listener.address(), socket);
    let room = match config.reserve {
        Some(size) => Reserve::new(file, size)
            .map(Room::Reserved)
            .map_err(|e| MachineError::from(e).observed(Side::Destination))?,
        None => Room::Empty(file),
    };
    let control = Control::new();
    instance.takes_in(control.clone());

    let arrival = Arrival {
        overrides: config.disks.clone(),
        taps: config.nets.clone(),
        paths: disk_paths(&listener.address()),
        faults: sandbox::opener::outside(|| debug::disk_faults(Side::Destination))?,
        naming: if config.name.is_some() {
            Naming::Given
        } else {
            Naming::AsAtSource
        },
        room: Some(room),
        cpu_limit,
        dir: dir.clone(),
        console: console.clone(),
        events,
    };
    let instance = instance.clone();
    thread::Builder::new()
        .name("incoming".into())
        .spawn(move || {
            sandbox::begin(Kind::Incoming);
            take_in(&listener, arrival, &control, &journal, &instance);
        })
        .map_err(|e| refused("machine.thread", &e))?;
    Ok(())
}

/// Who may say where disks lie, of those that can connect to `listening`.
fn disk_paths(listening: &str) -> DiskPaths {
    match listening.parse::<Address>() {
        Ok(address) if address.is_loopback() => DiskPaths::FromSource,
        _ => DiskPaths::GivenHere,
    }
}

fn take_in(
    listener: &SocketListen,
    arrival: Arrival,
    control: &Control,
    journal: &FileJournal,
    instance: &Arc<VmInstance>,
) {
    let started = instance.clone();
    let mut vm = MachineDestination::new(arrival, Box::new(move |machine| started.holds(machine)));
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        destination::receive(listener, &mut vm, &Options::default(), control, journal)
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
            instance.end(VmState::Failed, Some(why));
        }
        return;
    };
    match outcome {
        Outcome::Completed(_) => {
            let never = AtomicBool::new(false);
            if let Err(e) = destination::answer_resolve(listener, journal, &never) {
                tracing::warn!(error = %e, "no longer answering whether the guest ran");
            }
        }
        Outcome::Cancelled(_) | Outcome::Planned(_) => instance.end(VmState::Stopped, None),
        Outcome::Failed(report) | Outcome::HandoverUnknown(report) => {
            instance.end(VmState::Failed, report.error);
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
