//! A disk that a guest uses before all of it is here: what other hosts serve of it comes meanwhile.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::Builder;
use std::time::Duration;

use block::copy::Steering;
use block::image::Image;
use block::on_demand::{OnDemand, Origin, Policy, Pull};
use control::on_demand::{OnDemandChange, PullPriority};
use migration::MigrationId;
use migration::address::Address;
use migration::endpoint::Endpoint;
use migration::transport::Connect;
use migration::transport::socket::SocketConnect;

use crate::disks::Disk;
use crate::disks::changes::{self, Changed};
use crate::disks::coming::{Coming, Guest, Pulling};
use crate::disks::in_part::{Absent, Terms};
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
    let job: Option<MigrationId> = by.migration.parse().ok();
    let job = job.ok_or_else(|| failed(io::Error::other("its map names no identifier")))?;
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
    let terms = Terms::of(disk.image.file(), &by);
    let policy = Policy {
        pull: Pull::Off,
        on_loss: terms.on_loss(),
        ..Policy::default()
    };
    let bare = disk.stack();
    let layer = lacking::lay(disk, map, chain.clone(), (policy, &steering), || {
        threads::begin(ThreadKind::Pull);
    })?;
    here.is(&layer);
    let pulling = Arc::new(Pulling::of(&layer, terms.priority));
    // There is nobody to ask before.
    let returned = pulling.clone();
    chain.tell_return(Arc::new(move || returned.begin()));
    disk.served.store(true, Ordering::Release);
    let guest = Arc::new(Mutex::new(Guest::Stays));
    let (changes, changed) = changes::channel();
    let terms = Arc::new(Mutex::new(terms));
    let completion = Completion {
        id: disk.id.clone(),
        layer: Arc::downgrade(&layer),
        chain: Arc::downgrade(&chain),
        image: disk.image.clone(),
        missing: disk.served.clone(),
        guest: guest.clone(),
        changed: Some(changed),
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
        job,
        layer: Arc::downgrade(&layer),
        chain: Arc::downgrade(&chain),
        bare,
        gate,
        guest,
        changes,
        terms,
        pulling,
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
    /// What is asked of it; not once the disk is whole.
    changed: Option<Changed>,
    terms: Arc<Mutex<Terms>>,
    pulling: Arc<Pulling>,
}

/// What comes next.
enum Next {
    /// To look again some time later.
    Later,
    /// The disk is whole: to say so.
    Whole,
    /// Whoever served it knows.
    Finished,
}

impl Completion {
    fn wait(mut self) {
        let mut told = String::new();
        // The guest has ended when there is nothing to look at.
        while let Some(next) = self.look(&mut told) {
            match (next, self.changed.take()) {
                (Next::Finished, _) => return,
                // What was asked of it is of no more use.
                (Next::Whole, _) => {}
                (Next::Later, Some(changed)) => {
                    changed.make_next(LOOK, |change| self.change(change));
                    self.changed = Some(changed);
                }
                (Next::Later, None) => std::thread::sleep(LOOK),
            }
        }
    }

    /// Does what is to be done now; what comes next.
    fn look(&self, told: &mut String) -> Option<Next> {
        let (layer, chain) = (self.layer.upgrade()?, self.chain.upgrade()?);
        let is_whole = layer.wait_whole(Duration::ZERO);
        chain.learn();
        let guest = self.guest.lock().unwrap_or_else(PoisonError::into_inner);
        if *guest == Guest::Leaves {
            // Where it goes it has the same sources, and is whole when all is there.
            return Some(Next::Later);
        }
        let done: Result<Next, Box<dyn std::error::Error>> =
            match (is_whole, self.missing.load(Ordering::Acquire)) {
                (false, _) => (chain.finish_needless(&layer, PATIENCE))
                    .map(|_| Next::Later)
                    .map_err(Into::into),
                (true, true) => (self.complete(&layer, &chain))
                    .map(|()| Next::Whole)
                    .map_err(Into::into),
                // Until then its server serves for nobody, which does no harm.
                (true, false) => (chain.finish(PATIENCE))
                    .map(|()| Next::Finished)
                    .map_err(Into::into),
            };
        Some(done.unwrap_or_else(|error| {
            self.warn(told, &*error);
            Next::Later
        }))
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
