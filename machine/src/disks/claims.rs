//! The claims on the disks of a machine, as they change hands with its guest.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use block::Claim;

use crate::error::MachineError;
use crate::threads::{self, ThreadKind};

/// How long a source waits for a failed destination to let go of the disks before it goes on without.
const RECLAIM_PATIENCE: Duration = Duration::from_secs(1);
const RECLAIM_PAUSE: Duration = Duration::from_millis(10);
/// How often one who waits in the background looks whether the other side has let go.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Claims by the identity of their disks.
pub(crate) struct Claims {
    all: Mutex<Vec<(String, Arc<Claim>)>>,
    /// How often the disks were offered. Who takes an offer back in the background does so only while
    /// it is the last one, and holds this meanwhile.
    offers: Arc<Mutex<u64>>,
}

impl Claims {
    pub(crate) fn new(all: Vec<(String, Arc<Claim>)>) -> Self {
        Self {
            all: Mutex::new(all),
            offers: Arc::default(),
        }
    }

    fn all(&self) -> Vec<(String, Arc<Claim>)> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.clone()
    }

    /// Has `next` take the place of the claim on disk `id`, which is not let go by that.
    pub(crate) fn replace(&self, id: &str, next: Arc<Claim>) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, claim)) = all.iter_mut().find(|(it, _)| it == id) {
            *claim = next;
        }
    }

    /// Lets a successor open the disks that `is_shared` with it; this machine keeps its right to write.
    pub(crate) fn offer(&self, is_shared: impl Fn(&str) -> bool) -> Result<(), MachineError> {
        let mut offers = self.offers.lock().unwrap_or_else(PoisonError::into_inner);
        *offers += 1;
        let all = self.all();
        let mut shared = all.iter().filter(|(id, _)| is_shared(id));
        shared.try_for_each(|(id, claim)| {
            claim
                .offer_successor()
                .map_err(|source| MachineError::Claim {
                    id: id.clone(),
                    source,
                })
        })
    }

    /// Takes back what was offered, once the destination has let go of it; in the background when it
    /// does not do so soon.
    ///
    /// A destination that hangs, or has not heard that it lost the guest, may hold on to it. That keeps
    /// this machine from nothing: what was offered is the successor's part, never the owner's, which
    /// alone keeps all others out.
    pub(crate) fn reclaim(&self) -> Result<(), MachineError> {
        let deadline = Instant::now() + RECLAIM_PATIENCE;
        loop {
            match self.each(Claim::reclaim) {
                Err(error) if !is_in_use(&error) => return Err(error),
                Err(_) if Instant::now() < deadline => thread::sleep(RECLAIM_PAUSE),
                Err(error) => {
                    tracing::info!(%error, "the destination has not let go of a disk yet");
                    self.reclaim_later();
                    return Ok(());
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    fn reclaim_later(&self) {
        let offers = self.offers.clone();
        let ours = *offers.lock().unwrap_or_else(PoisonError::into_inner);
        let reclaim = move |claim: &Claim| {
            let last = offers.lock().unwrap_or_else(PoisonError::into_inner);
            if *last != ours {
                return Ok(true);
            }
            match claim.reclaim() {
                Ok(()) => Ok(true),
                Err(block::Error::InUse { .. }) => Ok(false),
                Err(error) => Err(error),
            }
        };
        if let Err(e) = self.in_background(reclaim, || true) {
            tracing::warn!(error = %e, "the disks' claims stay incomplete");
        }
    }

    /// Lets go of the disks: they are the destination's now.
    pub(crate) fn release(&self) {
        if let Err(e) = self.each(Claim::release) {
            // The kernel drops the locks when this process ends.
            tracing::warn!(error = %e, "a disk's claim could not be released");
        }
    }

    /// Takes the former owner's part of the claims as it lets go, in the background, from when
    /// [`Completion::begin`] says so. The thread exists from now on: once the guest runs, a host that
    /// has no memory for one must not be its end.
    pub(crate) fn complete_later(&self) -> Result<Completion, MachineError> {
        let (begin, begun) = channel::<()>();
        let complete = move |claim: &Claim| claim.complete();
        self.in_background(complete, move || begun.recv().is_ok())
            .map_err(|e| MachineError::Build("start the thread that completes claims", e))?;
        Ok(Completion(begin))
    }

    /// Acts on every claim again and again until each is done, on a thread of its own, if `wanted` says
    /// so. One part of a claim keeps everybody else out, so nothing depends on it.
    fn in_background(
        &self,
        act: impl Fn(&Claim) -> block::Result<bool> + Send + 'static,
        wanted: impl FnOnce() -> bool + Send + 'static,
    ) -> io::Result<()> {
        let mut left: Vec<(String, Weak<Claim>)> = self
            .all()
            .iter()
            .map(|(id, claim)| (id.clone(), Arc::downgrade(claim)))
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        let thread = thread::Builder::new().name("disk-claims".into());
        thread.spawn(move || {
            threads::begin(ThreadKind::Caretaker);
            if !wanted() {
                return;
            }
            loop {
                left.retain(|(id, claim)| match claim.upgrade().map(|c| act(&c)) {
                    Some(Ok(done)) => !done,
                    Some(Err(e)) => {
                        tracing::warn!(disk = %id, error = %e, "the claim stays incomplete");
                        false
                    }
                    None => false,
                });
                if left.is_empty() {
                    return;
                }
                thread::sleep(LOOK_AGAIN);
            }
        })?;
        Ok(())
    }

    /// Acts on every claim, also after one failed; the first failure.
    fn each<T>(&self, act: impl Fn(&Claim) -> block::Result<T>) -> Result<(), MachineError> {
        let mut first = Ok(());
        for (id, claim) in &self.all() {
            let acted = act(claim).map_err(|source| MachineError::Claim {
                id: id.clone(),
                source,
            });
            first = first.and(acted.map(drop));
        }
        first
    }
}

/// Claims that are to be completed once their guest runs; dropped, they stay as they are.
pub(crate) struct Completion(Sender<()>);

impl Completion {
    pub(crate) fn begin(self) {
        // The thread waits for this and nothing else.
        let _ = self.0.send(());
    }
}

fn is_in_use(error: &MachineError) -> bool {
    matches!(
        error,
        MachineError::Claim {
            source: block::Error::InUse { .. },
            ..
        }
    )
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use block::claim::Held;
    use block::{Access, Content, RawImage};

    use super::*;

    struct Disk {
        path: std::path::PathBuf,
        _dir: tempfile::TempDir,
    }

    impl Disk {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("image");
            File::create(&path).unwrap().set_len(4096).unwrap();
            Self { path, _dir: dir }
        }

        fn image(&self) -> RawImage {
            RawImage::open(&self.path, Access::ReadWrite, Content::Raw).unwrap()
        }
    }

    fn becomes(claim: &Claim, wanted: Held) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while claim.held() != wanted {
            assert!(Instant::now() < deadline, "{:?}", claim.held());
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_a_slow_destination_holds_comes_back_when_it_lets_go() {
        let disk = Disk::new();
        let claim = Arc::new(disk.image().claim().unwrap());
        let claims = Claims::new(vec![("data".into(), claim.clone())]);
        claims.offer(|_| true).unwrap();
        let successor = disk.image().claim_as_successor().unwrap();
        claims.reclaim().unwrap();
        assert_eq!(claim.held(), Held::Owner);
        drop(successor);
        becomes(&claim, Held::Both);
    }

    #[test]
    fn what_is_offered_again_is_not_taken_back() {
        let disk = Disk::new();
        let claim = Arc::new(disk.image().claim().unwrap());
        let claims = Claims::new(vec![("data".into(), claim.clone())]);
        claims.offer(|_| true).unwrap();
        let first = disk.image().claim_as_successor().unwrap();
        claims.reclaim().unwrap();
        claims.offer(|_| true).unwrap();
        drop(first);
        // Longer than who waits in the background needs to see it.
        thread::sleep(4 * LOOK_AGAIN);
        assert_eq!(claim.held(), Held::Owner);
        let _second = disk.image().claim_as_successor().unwrap();
    }
}
