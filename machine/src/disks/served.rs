//! A disk that a guest uses before all of it is here: what another host serves of it comes meanwhile.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::Builder;
use std::time::Duration;

use block::copy::Steering;
use block::image::Image;
use block::on_demand::{OnDemand, Origin, Policy, Pull};
use control::on_demand::{OnDemandChange, PullPriority};
use migration::address::Address;
use migration::endpoint::Endpoint;
use migration::transport::socket::SocketConnect;

use crate::disks::Disk;
use crate::disks::changes::{self, Changed};
use crate::disks::coming::{Coming, Pulling};
use crate::disks::in_part::{Absent, Terms};
use crate::disks::lacking;
use crate::disks::marks;
use crate::error::MachineError;
use crate::serving::gate::{Gate, Gated};
use crate::serving::here::Here;
use crate::serving::origin::PulledOrigin;
use crate::threads::{self, ThreadKind};

/// How often it is looked whether the disk is whole, or gone.
const LOOK: Duration = Duration::from_millis(500);
/// How long who serves it has to record that it is needed no more, until it is told again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Lays over `disk`, which no device uses yet, what has the rest of it come that is served, and says so to who serves it when all
/// has. It asks nobody for anything before it is told to [begin](Coming::begin).
///
/// # Errors
/// When threads cannot be started, or the address cannot be used.
pub(super) fn lay(disk: &Disk, absent: Absent) -> Result<Coming, MachineError> {
    let Absent {
        by,
        id: secret_of,
        map,
    } = absent;
    let failed = |error: io::Error| MachineError::Build("have the rest of a disk come", error);
    let address: Result<Address, _> = by.served_at.parse();
    let endpoint = address.ok().and_then(Endpoint::numeric);
    let endpoint = endpoint.ok_or_else(|| {
        let why = format!("{} is no address that needs no look-up", by.served_at);
        failed(io::Error::other(why))
    })?;
    let gate = Arc::<Gate>::default();
    let connect = Gated {
        inner: SocketConnect::new(endpoint).map_err(failed)?,
        gate: gate.clone(),
    };
    let here = Here::as_in(map.present());
    let size = map.about().disk;
    let origin = PulledOrigin::new(
        Box::new(connect),
        (secret_of, by.secret),
        &by.disk,
        size,
        here.clone(),
    );
    let origin = Arc::new(origin.map_err(|e| failed(io::Error::other(e)))?);
    let steering = Arc::new(Steering::new(None, Duration::ZERO));
    let terms = Terms::of(disk.image.file(), &by);
    let policy = Policy {
        pull: Pull::Off,
        on_loss: terms.on_loss(),
        ..Policy::default()
    };
    let bare = disk.stack();
    let layer = lacking::lay(disk, map, origin.clone(), (policy, &steering), || {
        threads::begin(ThreadKind::Pull);
    })?;
    here.is(&layer);
    let pulling = Arc::new(Pulling::of(&layer, terms.priority));
    let returned = pulling.clone();
    origin.tell_return(Arc::new(move || returned.begin()));
    disk.served.store(true, Ordering::Release);
    let (changes, changed) = changes::channel();
    let terms = Arc::new(Mutex::new(terms));
    let completion = Completion {
        id: disk.id.clone(),
        layer: Arc::downgrade(&layer),
        origin: Arc::downgrade(&origin),
        image: disk.image.clone(),
        missing: disk.served.clone(),
        changed,
        terms: terms.clone(),
        pulling: pulling.clone(),
    };
    let thread = Builder::new().name("disk-whole".into());
    let started = thread.spawn(move || {
        threads::begin(ThreadKind::Pull);
        completion.wait();
    });
    started.map(drop).map_err(failed)?;
    Ok(Coming {
        at: by.served_at,
        job: secret_of,
        layer: Arc::downgrade(&layer),
        bare,
        gate,
        changes,
        terms,
        pulling,
    })
}

/// Waits until a disk is whole, and says so.
struct Completion {
    id: String,
    layer: Weak<OnDemand>,
    origin: Weak<PulledOrigin>,
    image: Image,
    missing: Arc<AtomicBool>,
    changed: Changed,
    terms: Arc<Mutex<Terms>>,
    pulling: Arc<Pulling>,
}

impl Completion {
    fn wait(self) {
        loop {
            match self.layer.upgrade() {
                // The guest has ended before.
                None => return,
                Some(layer) if layer.wait_whole(Duration::ZERO) => match self.complete(&layer) {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::warn!(disk = %self.id, %error, "the disk is here, and that is not durable yet");
                    }
                },
                Some(_) => {}
            }
            (self.changed).make_next(LOOK, |change| self.change(change));
        }
        drop(self.changed);
        // Until then its server serves for nobody, which does no harm.
        let (id, origin) = (self.id, self.origin);
        while let Some(origin) = origin.upgrade() {
            match origin.finish(PATIENCE) {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(disk = %id, %error, "who served the disk is not told yet that it is whole");
                }
            }
        }
    }

    /// Makes a change durable, then has it in force.
    fn change(&self, change: OnDemandChange) -> block::Result<()> {
        let mut terms = self.terms.lock().unwrap_or_else(PoisonError::into_inner);
        let next = terms.changed(change);
        next.keep(self.image.file())?;
        *terms = next;
        if let Some(layer) = self.layer.upgrade() {
            layer.set_on_loss(next.on_loss());
            if change.priority.is_some_and(|it| it != PullPriority::Off) {
                // It may have been paused.
                layer.steering().resume();
            }
        }
        if change.priority.is_some() {
            self.pulling.want(next.priority);
        }
        Ok(())
    }

    fn complete(&self, layer: &OnDemand) -> block::Result<()> {
        layer.finish()?;
        marks::remove(self.image.file())?;
        self.missing.store(false, Ordering::Release);
        tracing::info!(disk = %self.id, "all of the disk is here");
        Ok(())
    }
}
