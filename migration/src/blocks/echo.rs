//! What the guest changes of a mirrored disk, on its way beside the pass.
//!
//! Marks are taken in *rounds*, by whichever stream comes by: what was marked is *pending* then, and each stream sends what of
//! it lies in stripes that it carries, before it goes on with the pass. Once that has left, the volume is told so, which lets
//! the guest change as much again, and the next round begins. Blocks of stripes that no stream carries yet stay pending, and
//! are sent with their stripe. As everywhere, a mark is taken before the block is read, and one stream sends all of a stripe.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::STRIPE_BLOCKS;
use super::changes;
use crate::error::Error;
use crate::pages::stripes::Lanes;
use crate::vm::SourceVolume;

/// The blocks of one disk.
pub(super) struct Echo {
    is_on: AtomicBool,
    /// Marks that are taken, of what is to be sent.
    pending: Vec<AtomicU64>,
    /// Those of them that were sent in this pass: whether they are placed is known only when all of it is.
    sent: Vec<AtomicU64>,
    /// Streams that send of it now.
    sending: AtomicUsize,
    round: Mutex<Round>,
}

#[derive(Default)]
struct Round {
    /// What was let in when marks were last taken, and when they were before that.
    let_in: u64,
    told: u64,
    /// Used again from one round to the next.
    taken: Vec<u64>,
}

/// A stream sends of it, until this is dropped.
pub(super) struct Sending<'e>(&'e AtomicUsize);

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Echo {
    /// Of a disk of so many blocks, that is not mirrored yet.
    pub fn off(blocks: u64) -> Self {
        let words = || (0..blocks.div_ceil(64)).map(|_| AtomicU64::new(0));
        Self {
            is_on: AtomicBool::new(false),
            pending: words().collect(),
            sent: words().collect(),
            sending: AtomicUsize::new(0),
            round: Mutex::default(),
        }
    }

    /// It is mirrored from here on.
    pub fn turn_on(&self) {
        self.is_on.store(true, Ordering::Relaxed);
    }

    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// A stream is about to take of what is pending.
    pub fn begin_sending(&self) -> Sending<'_> {
        self.sending.fetch_add(1, Ordering::SeqCst);
        Sending(&self.sending)
    }

    /// Stripes of which something is pending.
    pub fn stripes(&self) -> impl Iterator<Item = u64> {
        let words = self.pending.iter().zip(0..);
        let words = words.map(|(word, at)| (word.load(Ordering::SeqCst), at));
        words.flat_map(|(word, at)| {
            let halves = [word as u32, (word >> STRIPE_BLOCKS) as u32].into_iter();
            let halves = halves.zip([at * 2, at * 2 + 1]);
            halves.filter_map(|(bits, stripe)| (bits != 0).then_some(stripe))
        })
    }

    /// Takes what is pending of `stripe`, to be sent in this pass.
    pub fn take(&self, stripe: u64) -> u32 {
        let Some(word) = self.pending.get((stripe / 2) as usize) else {
            return 0;
        };
        let half = u64::from(u32::MAX) << (stripe % 2 * STRIPE_BLOCKS);
        let bits = word.fetch_and(!half, Ordering::SeqCst) & half;
        self.sent[(stripe / 2) as usize].fetch_or(bits, Ordering::SeqCst);
        (bits >> (stripe % 2 * STRIPE_BLOCKS)) as u32
    }

    /// What was sent of `stripe` in this pass.
    pub fn sent(&self, stripe: u64) -> u32 {
        let word = self.sent.get((stripe / 2) as usize);
        let word = word.map_or(0, |word| word.load(Ordering::SeqCst));
        (word >> (stripe % 2 * STRIPE_BLOCKS)) as u32
    }

    /// Takes the marks of `volume` into `changed`, and what is pending, while no stream sends.
    pub fn take_all(&self, volume: &dyn SourceVolume, changed: &mut [u64]) -> Result<(), Error> {
        if !self.is_on() {
            // The guest stands still when the last are taken: what is empty is not looked through.
            return take_marks(volume, changed);
        }
        let let_in = volume.let_in();
        take_marks(volume, changed)?;
        for (word, pending) in changed.iter_mut().zip(&self.pending) {
            *word |= pending.swap(0, Ordering::SeqCst);
        }
        if let Ok(mut round) = self.round.lock() {
            round.let_in = let_in;
        }
        Ok(())
    }

    /// A pass begins that is to send `changes`, the one before is placed: what of it lies in stripes that are carried is
    /// pending now.
    pub fn begin_pass(&self, lanes: &Lanes, changes: &mut [u64]) {
        if !self.is_on() {
            return;
        }
        self.sent
            .iter()
            .for_each(|word| word.store(0, Ordering::SeqCst));
        for stripe in 0..changes.len() as u64 * 2 {
            let bits = u64::from(changes::of_stripe(changes, stripe));
            if bits != 0 && lanes.carrier(stripe).is_some() {
                let bits = bits << (stripe % 2 * STRIPE_BLOCKS);
                self.pending[(stripe / 2) as usize].fetch_or(bits, Ordering::SeqCst);
                changes::clear_stripe(changes, stripe);
            }
        }
    }

    /// The link is lost in the middle of a pass: all that may not be placed is to be sent again.
    pub fn add_unplaced(&self, changes: &mut [u64]) {
        for (word, (pending, sent)) in changes.iter_mut().zip(self.pending.iter().zip(&self.sent)) {
            *word |= pending.swap(0, Ordering::SeqCst) | sent.swap(0, Ordering::SeqCst);
        }
    }

    /// Tells `volume` what has left and takes its marks again, unless some of the round is still to be sent or another stream
    /// is at it.
    pub fn go_round(&self, volume: &dyn SourceVolume, lanes: &Lanes) -> Result<(), Error> {
        let Ok(mut round) = self.round.try_lock() else {
            return Ok(());
        };
        // In this order: who takes of it has told before that it sends.
        let is_to_send = self.stripes().any(|stripe| lanes.carrier(stripe).is_some());
        if is_to_send || self.sending.load(Ordering::SeqCst) > 0 {
            return Ok(());
        }
        if round.told != round.let_in {
            round.told = round.let_in;
            volume.carried(round.told);
        }
        let let_in = volume.let_in();
        if let_in == round.let_in {
            // Nothing was let in since.
            return Ok(());
        }
        let mut taken = std::mem::take(&mut round.taken);
        taken.clear();
        taken.resize(self.pending.len(), 0);
        take_marks(volume, &mut taken)?;
        for (pending, word) in self.pending.iter().zip(&taken) {
            pending.fetch_or(*word, Ordering::SeqCst);
        }
        round.taken = taken;
        round.let_in = let_in;
        Ok(())
    }
}

fn take_marks(volume: &dyn SourceVolume, changed: &mut [u64]) -> Result<(), Error> {
    volume
        .take_changes(changed)
        .map_err(Error::vm("tell which blocks changed"))
}
