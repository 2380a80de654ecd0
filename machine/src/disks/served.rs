//! A disk that a guest uses before all of it is here: what other hosts serve of it comes meanwhile.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::Builder;
use std::time::Duration;

use block::copy::Steering;
use block::image::Image;
use block::on_demand::{OnDemand, Origin, Policy, Pull};
use migration::address::Address;
use migration::disk_modes::DiskPull;
use migration::endpoint::Endpoint;
use migration::transport::Connect;
use migration::transport::socket::SocketConnect;

use crate::disks::Disk;
use crate::disks::coming::{Coming, Guest};
use crate::disks::in_part::Absent;
use crate::disks::lacking;
use crate::disks::marks;
use crate::error::MachineError;
use crate::serving::chain::Chain;
use crate::serving::here::Here;
use crate::threads::{self, ThreadKind};

/// How often it is looked whether the disk is whole, or gone.
const LOOK: Duration = Duration::from_millis(500);
/// How long who serves it has to record that it is needed no more, until it is told again.
const PATIENCE: Duration = Duration::from_secs(1);

/// Lays over `disk`, which no device uses yet, what has the rest of it come that is served, and says so to who serves it when all
/// has. It asks nobody for anything before it is told to [begin](Coming::begin).
///
/// # Errors
/// When threads cannot be started, or an address cannot be used.
pub(super) fn lay(disk: &Disk, absent: Absent) -> Result<Coming, MachineError> {
    let Absent { by, map, lacks } = absent;
    let failed = |error: io::Error| MachineError::Build("have the rest of a disk come", error);
    let here = Here::as_in(map.present());
    let size = map.about().disk;
    let (chain, gate) = Chain::new(
        &by,
        (size, lacks),
        &here,
        &mut |at| {
            let address: Result<Address, _> = at.parse();
            let endpoint = address.ok().and_then(Endpoint::numeric);
            let endpoint = endpoint.ok_or_else(|| {
                let why = format!("{at} is no address that needs no look-up");
                failed(io::Error::other(why))
            })?;
            let connect = SocketConnect::new(endpoint).map_err(failed)?;
            Ok(Box::new(connect) as Box<dyn Connect>)
        },
        |error| failed(io::Error::other(error)),
    )?;
    let chain = Arc::new(chain);
    let steering = Arc::new(Steering::new(None, Duration::ZERO));
    let policy = Policy {
        pull: Pull::Off,
        ..Policy::default()
    };
    let layer = lacking::lay(disk, map, chain.clone(), (policy, &steering), || {
        threads::begin(ThreadKind::Pull);
    })?;
    here.is(&layer);
    if by.pull == DiskPull::Background {
        // There is nobody to ask before.
        let layer = Arc::downgrade(&layer);
        chain.tell_return(Arc::new(move || {
            if let Some(layer) = layer.upgrade() {
                layer.set_pull(Pull::Background);
            }
        }));
    }
    disk.served.store(true, Ordering::Release);
    let guest = Arc::new(Mutex::new(Guest::Stays));
    let completion = Completion {
        id: disk.id.clone(),
        layer: Arc::downgrade(&layer),
        chain: Arc::downgrade(&chain),
        image: disk.image.clone(),
        missing: disk.served.clone(),
        guest: guest.clone(),
    };
    let thread = Builder::new().name("disk-whole".into());
    let started = thread.spawn(move || {
        threads::begin(ThreadKind::Pull);
        completion.wait();
    });
    started.map(drop).map_err(failed)?;
    Ok(Coming {
        layer: Arc::downgrade(&layer),
        chain: Arc::downgrade(&chain),
        gate,
        guest,
    })
}

/// Waits until nothing is needed of who serves a disk, and says so.
struct Completion {
    id: String,
    layer: Weak<OnDemand>,
    chain: Weak<Chain>,
    image: Image,
    missing: Arc<AtomicBool>,
    guest: Arc<Mutex<Guest>>,
}

impl Completion {
    fn wait(self) {
        let mut told = String::new();
        loop {
            // The guest has ended before.
            let (Some(layer), Some(chain)) = (self.layer.upgrade(), self.chain.upgrade()) else {
                return;
            };
            let is_whole = layer.wait_whole(LOOK);
            chain.learn();
            let guest = self.guest.lock().unwrap_or_else(PoisonError::into_inner);
            if *guest == Guest::Leaves {
                // Where it goes it has the same sources, and is whole when all is there.
                drop(guest);
                std::thread::sleep(LOOK);
                continue;
            }
            match (is_whole, self.missing.load(Ordering::Acquire)) {
                (false, _) => {
                    if let Err(error) = chain.finish_needless(&layer, PATIENCE) {
                        self.warn(&mut told, &error);
                    }
                }
                (true, true) => {
                    if let Err(error) = self.complete(&layer, &chain) {
                        self.warn(&mut told, &error);
                        drop(guest);
                        std::thread::sleep(LOOK);
                    }
                }
                // Until then its server serves for nobody, which does no harm.
                (true, false) => match chain.finish(PATIENCE) {
                    Ok(()) => return,
                    Err(error) => self.warn(&mut told, &error),
                },
            }
        }
    }

    /// Tells of what is the same time and again once.
    fn warn(&self, told: &mut String, error: &dyn std::error::Error) {
        let why = error.to_string();
        if *told != why {
            tracing::warn!(disk = %self.id, why, "who serves the disk is not told yet what is needed no more");
            *told = why;
        }
    }

    fn complete(&self, layer: &OnDemand, chain: &Chain) -> block::Result<()> {
        layer.finish()?;
        marks::remove(self.image.file())?;
        self.missing.store(false, Ordering::Release);
        for (from, bytes) in chain.fetched() {
            tracing::info!(disk = %self.id, from, bytes, "came of the disk");
        }
        tracing::info!(disk = %self.id, "all of the disk is here");
        Ok(())
    }
}
