//! Hosts that have parts of a disk: the newest is asked first, and for what it lacks the next one.
//!
//! # Invariants
//! - A block comes from the first source that has it. Nothing is asked of one before all that come before it have said that they lack
//!   the block, now or in an earlier life of this disk.
//! - What a source is known to lack is durable when it is used. Each bit of it is true by itself.
//! - A source is told that nothing is needed of it when nothing is missing here of what it has, durably; so what is missing still is
//!   known to be behind it, and it is not asked again.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use block::Arrived;
use block::on_demand::{Allocation, BLOCK, Class, OnDemand, Origin, OriginError, PresenceMap};
use migration::pull::Presence;
use migration::transport::Connect;
use migration::vm::Behind;
use migration::{Error, MigrationId};

use super::gate::{Gate, Gated};
use super::here::Here;
use super::origin::PulledOrigin;
use crate::disks::in_part::ServedBy;

/// Makes a connector to who serves at an address.
pub(crate) type Towards<'a, E> = &'a mut dyn FnMut(&str) -> Result<Box<dyn Connect>, E>;

/// What a source lacks of the disk, so that the next one is asked for it.
struct Lacks {
    /// A bit is set where it does, and behind those of the disk one that says that all are: where no bit is set it has the block.
    map: PresenceMap,
    /// How many blocks the disk has.
    blocks: u64,
    /// By which one thread asks.
    asking: Mutex<()>,
}

impl Lacks {
    fn was_told(&self) -> bool {
        self.map.has(self.blocks)
    }
}

/// What of the disk need not come from a source: it is here, or one before has it.
struct HereOrBefore {
    here: Arc<Here>,
    before: Vec<Arc<Lacks>>,
}

impl Presence for HereOrBefore {
    fn is_present(&self, volume: usize, unit: u64) -> bool {
        self.here.is_present(volume, unit) || self.before.iter().any(|lacks| !lacks.map.has(unit))
    }
}

/// A host that has a part of the disk, or, the last one, all that the others lack.
struct Source {
    told_of: Behind,
    origin: PulledOrigin,
    /// Opened when it may be asked.
    gate: Arc<Gate>,
    lacks: Option<Arc<Lacks>>,
    fetched: AtomicU64,
    /// Whether it was told, at least, that nothing is needed of it any more.
    finishes: AtomicBool,
}

/// What is missing of a disk that a source has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MissingFrom {
    /// Where it is served.
    pub(crate) at: String,
    /// How much; of a source that has not said yet what it has, and may lack some of that, all that may be there.
    pub(crate) bytes: u64,
    /// Why it cannot be had, when no connection stands.
    pub(crate) lost: Option<String>,
}

/// The sources of a disk.
pub(crate) struct Chain {
    sources: Vec<Source>,
    size: u64,
    here: Arc<Here>,
}

impl Chain {
    /// Those that `by` tells of, of a disk of `size` bytes, in the image of which `here` is there; all of them but the last one lack
    /// what `lacks` says, or more. `towards` makes connectors. None is asked for anything before the gate is open that is returned.
    ///
    /// # Errors
    /// Those of `towards`; `failed` tells of a system that has no room for threads.
    pub(crate) fn new<E>(
        by: &ServedBy,
        (size, lacks): (u64, Vec<PresenceMap>),
        here: &Arc<Here>,
        towards: Towards<'_, E>,
        failed: impl Fn(Error) -> E,
    ) -> Result<(Self, Arc<Gate>), E> {
        let first = Arc::<Gate>::default();
        let told_of = std::iter::once(by.first()).chain(by.behind.iter().cloned());
        let mut lacks = lacks.into_iter().map(|map| {
            Arc::new(Lacks {
                map,
                blocks: size.div_ceil(BLOCK),
                asking: Mutex::default(),
            })
        });
        let (mut sources, mut before) = (Vec::<Source>::new(), Vec::<Arc<Lacks>>::new());
        for told_of in told_of {
            // What is known from before need not wait for whoever may be away.
            let gate = match before.iter().all(|lacks| lacks.was_told()) {
                true => first.clone(),
                false => Arc::default(),
            };
            let connect = Gated {
                inner: towards(&told_of.at)?,
                gate: gate.clone(),
            };
            let presence = HereOrBefore {
                here: here.clone(),
                before: before.clone(),
            };
            // Whoever made the map has checked it.
            let id = told_of.id.parse().unwrap_or(MigrationId([0; 16]));
            let origin = PulledOrigin::new(
                Box::new(connect),
                (id, told_of.secret),
                &told_of.disk,
                size,
                Arc::new(presence),
            );
            let lacks = lacks.next();
            before.extend(lacks.clone());
            sources.push(Source {
                told_of,
                origin: origin.map_err(&failed)?,
                gate,
                lacks,
                fetched: AtomicU64::new(0),
                finishes: AtomicBool::new(false),
            });
        }
        let chain = Self {
            sources,
            size,
            here: here.clone(),
        };
        Ok((chain, first))
    }

    /// Asks what each has that has not said so, as far as they can be reached and are needed.
    pub(crate) fn learn(&self) {
        for number in 0..self.sources.len() {
            if self.learn_of(number).is_err() {
                return;
            }
        }
    }

    /// Asks a source what it has, unless it is the last or has said so.
    fn learn_of(&self, number: usize) -> Result<(), OriginError> {
        let source = &self.sources[number];
        let Some(lacks) = source.lacks.as_ref().filter(|lacks| !lacks.was_told()) else {
            return Ok(());
        };
        let _asks = lacks.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if lacks.was_told() {
            return Ok(());
        }
        let held = source.origin.held()?;
        let all = 0..self.size.div_ceil(BLOCK);
        let lacked = all.filter(|block| !held.has(block * BLOCK));
        // That it is all comes last, when all is durable.
        let kept = lacks.map.set(lacked);
        let kept = kept.and_then(|()| lacks.map.set(std::iter::once(lacks.blocks)));
        kept.map_err(|error| OriginError::Lost {
            origin: source.origin.name(),
            why: format!("what it has cannot be recorded: {error}"),
        })?;
        if let Some(next) = self.sources.get(number + 1) {
            next.gate.open();
        }
        Ok(())
    }

    /// Who has a block, as far as that is known; else the first that may.
    fn source_of(&self, block: u64) -> usize {
        let may_have = |source: &Source| {
            let lacks = source.lacks.as_ref();
            lacks.is_none_or(|lacks| !lacks.map.has(block))
        };
        // The last one has all.
        let found = self.sources.iter().position(may_have);
        found.unwrap_or(self.sources.len() - 1)
    }

    /// Whether it is known of that source what it has.
    fn is_known(&self, number: usize) -> bool {
        let lacks = self.sources[number].lacks.as_ref();
        lacks.is_none_or(|lacks| lacks.was_told())
    }

    /// Runs of blocks that come from one source, and from which.
    fn runs(&self, blocks: Range<u64>) -> Result<Vec<(usize, Range<u64>)>, OriginError> {
        let mut runs: Vec<(usize, Range<u64>)> = Vec::new();
        for block in blocks {
            let mut number = self.source_of(block);
            while !self.is_known(number) {
                self.learn_of(number)?;
                number = self.source_of(block);
            }
            match runs.last_mut() {
                Some((last, run)) if *last == number => run.end = block + 1,
                _ => runs.push((number, block..block + 1)),
            }
        }
        Ok(runs)
    }

    /// What is missing, of each source.
    fn missing_of(&self) -> Vec<u64> {
        let mut missing = vec![0; self.sources.len()];
        for block in 0..self.size.div_ceil(BLOCK) {
            if !self.here.is_present(0, block) {
                let bytes = (self.size - block * BLOCK).min(BLOCK);
                missing[self.source_of(block)] += bytes;
            }
        }
        missing
    }

    /// What is missing, of each source of which something is.
    pub(crate) fn missing(&self) -> Vec<MissingFrom> {
        let missing = self.sources.iter().zip(self.missing_of());
        let missing = missing.filter(|(_, bytes)| *bytes > 0);
        missing
            .map(|(source, bytes)| MissingFrom {
                at: source.told_of.at.clone(),
                bytes,
                lost: source.origin.lost(),
            })
            .collect()
    }

    /// How much has come of each.
    pub(crate) fn fetched(&self) -> Vec<(&str, u64)> {
        let each = |source: &'_ Source| source.fetched.load(Ordering::Relaxed);
        let all = self.sources.iter();
        all.map(|source| (&*source.told_of.at, each(source)))
            .collect()
    }

    /// Those that are not needed: nothing is missing of what they have.
    fn needless(&self) -> Vec<&Source> {
        let missing = self.missing_of();
        let mut needless = Vec::new();
        let mut is_certain = true;
        for (number, (source, missing)) in self.sources.iter().zip(missing).enumerate() {
            if missing == 0 && is_certain {
                needless.push(source);
            }
            // What one may have that does not say so may be with the next ones.
            is_certain &= missing == 0 || self.is_known(number);
        }
        needless
    }

    /// Tells those so that are not needed any more, after `disk` has made durable what is here; each has `patience` to record that.
    ///
    /// # Errors
    /// When it cannot be made durable.
    pub(crate) fn finish_needless(&self, disk: &OnDemand, patience: Duration) -> block::Result<()> {
        if self.sources.len() == 1 {
            // What is missing is missing of it.
            return Ok(());
        }
        let mut needless = self.needless();
        needless.retain(|source| !source.finishes.load(Ordering::Acquire));
        if needless.is_empty() {
            return Ok(());
        }
        disk.finish()?;
        for source in needless {
            let at = &source.told_of.at;
            source.finishes.store(true, Ordering::Release);
            match source.origin.finish(patience) {
                Ok(()) => tracing::info!(%at, "nothing is needed of this source any more"),
                // It is told again when it can be reached.
                Err(error) => {
                    tracing::info!(%at, %error, "a source that is needed no more does not say that it knows");
                }
            }
        }
        Ok(())
    }

    /// Tells all that nothing is needed of them: the disk is whole and durable here.
    ///
    /// # Errors
    /// Of the first that has not recorded it in time; it is told again as long as this is there.
    pub(crate) fn finish(&self, patience: Duration) -> Result<(), OriginError> {
        let mut finished = Ok(());
        for source in &self.sources {
            source.finishes.store(true, Ordering::Release);
            if !source.origin.is_released() {
                finished = finished.and(source.origin.finish(patience));
            }
        }
        finished
    }

    /// Who has what is missing here, in the order in which they are to be asked: none that has been told that it is needed no more.
    pub(crate) fn needed(&self) -> Vec<Behind> {
        let needed = self.sources.iter();
        let needed = needed.filter(|source| !source.finishes.load(Ordering::Acquire));
        needed.map(|source| source.told_of.clone()).collect()
    }

    /// Nothing comes any more, and nobody is told anything.
    pub(crate) fn stop(&self) {
        self.sources.iter().for_each(|source| source.origin.stop());
    }
}

impl Origin for Chain {
    fn name(&self) -> String {
        let names: Vec<_> = self.sources.iter().map(|it| it.origin.name()).collect();
        names.join(", then ")
    }

    fn allocation(&self) -> Result<Allocation, OriginError> {
        let mut all = self.sources.iter().map(|it| it.origin.allocation());
        let Some(first) = all.next() else {
            return Ok(Allocation::none(self.size));
        };
        let allocation = first?;
        for other in all {
            other?.runs().for_each(|run| allocation.add(&run));
        }
        Ok(allocation)
    }

    fn fetch(&self, offset: u64, into: &mut [u8], class: Class) -> Result<(), OriginError> {
        let end = offset.saturating_add(into.len() as u64);
        let mut room = into;
        for (number, run) in self.runs(offset / BLOCK..end.div_ceil(BLOCK))? {
            let bytes = run.start * BLOCK..(run.end * BLOCK).min(end);
            let len = (bytes.end - bytes.start) as usize;
            let (piece, rest) = room.split_at_mut(len);
            let source = &self.sources[number];
            source.origin.fetch(bytes.start, piece, class)?;
            source.fetched.fetch_add(len as u64, Ordering::Relaxed);
            room = rest;
        }
        Ok(())
    }

    fn is_away(&self, offset: u64) -> bool {
        let source = &self.sources[self.source_of(offset / BLOCK)];
        !source.origin.is_up()
    }

    fn tell_return(&self, returned: Arrived) {
        for source in &self.sources {
            source.origin.tell_return(returned.clone());
        }
    }
}
