//! What a client wants, what it has, and how it deals with its server.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::wire::pull::PulledVolume;

/// A volume that is wanted, as its server has to tell of it.
pub type Wanted = PulledVolume;

/// Which units of the volumes are here, for a server to be told on each connection.
pub trait Presence: Send + Sync {
    /// Whether unit `unit` of the volume, by its place among those that are wanted, is here. Asked of every unit, on the thread
    /// of a connection.
    fn is_present(&self, volume: usize, unit: u64) -> bool;
}

/// How a client deals with its server.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Connections: one for who waits, the others for what is needed some time; with one, that has both.
    pub lanes: u16,
    /// How long a frame that has begun may stand still, and a connection take to be made.
    pub still: Duration,
    /// How long the server may say nothing at all.
    pub silence: Duration,
    /// How long an answer is waited for on a connection whose server lives: storage may take its time.
    pub answer: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lanes: 3,
            still: Duration::from_secs(10),
            silence: Duration::from_secs(10),
            answer: Duration::from_secs(120),
        }
    }
}

/// What is told of a client whose link is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Where its server should be.
    pub address: String,
    /// Why it is not reached, as far as that is known.
    pub why: Option<String>,
}

/// Who is told when a link is there again.
#[derive(Default)]
pub(super) struct Returned(Mutex<Vec<Arc<dyn Fn() + Send + Sync>>>);

impl Returned {
    pub fn tell(&self) {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.iter().for_each(|told| told());
    }

    pub fn add(&self, returned: Arc<dyn Fn() + Send + Sync>) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.push(returned);
    }
}
