//! The client as its user has it: asks and waits, whatever becomes of its connections.

use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::desk::{Desk, Question, Reply};
use super::error::PullError;
use super::lane::{Client, Lane};
use super::terms::{Lost, Options, Presence, Returned, Wanted};
use crate::error::Error;
use crate::id::{MigrationId, PullSecret};
use crate::os;
use crate::threads::{self, ThreadKind};
use crate::transport::Connect;
use crate::wire::pull::{Class, MAX_LANES, MAX_UNITS, Units};

/// A client; its connections end with it.
pub struct PullClient {
    client: Arc<Client>,
    threads: Vec<JoinHandle<()>>,
}

impl PullClient {
    /// A client that wants `wanted` of whom `connect` leads to, with the identifier and the secret of what is served there.
    ///
    /// # Errors
    /// [`Error::Thread`] when the system has no room for its threads.
    pub fn start(
        connect: Box<dyn Connect>,
        (id, secret): (MigrationId, PullSecret),
        wanted: Vec<Wanted>,
        presence: Arc<dyn Presence>,
        options: Options,
    ) -> Result<Self, Error> {
        let lanes = usize::from(options.lanes.clamp(1, MAX_LANES));
        let client = Arc::new(Client {
            connect,
            id,
            secret,
            desk: Desk::new(lanes, wanted.len()),
            wanted,
            presence,
            options,
            returned: Returned::default(),
        });
        let mut started = Self {
            client,
            threads: Vec::new(),
        };
        for number in 0..lanes {
            let client = started.client.clone();
            let thread = Builder::new().name("pull".into()).spawn(move || {
                threads::begin(ThreadKind::Pull);
                Lane { client, number }.run();
            });
            let thread = thread.map_err(|source| Error::Thread {
                what: "a connection",
                source: os::no_thread(source),
            })?;
            started.threads.push(thread);
        }
        Ok(started)
    }

    /// Fills `into` with units of a volume, by its place among those that are wanted. Units that are asked for by somebody
    /// else are waited for first. It blocks until they come or the link is lost.
    ///
    /// # Errors
    /// As [`PullError`] tells; `into` is as it was then.
    pub fn fetch(&self, units: Units, class: Class, into: &mut [u8]) -> Result<(), PullError> {
        let wanted = self.wanted(&units)?;
        let bytes = wanted.bytes(&units).ok_or(PullError::Range)?;
        if units.count > MAX_UNITS || bytes.end - bytes.start != into.len() as u64 {
            return Err(PullError::Range);
        }
        match self.client.desk.ask(Question::Units(class), units) {
            Reply::Units { zeroes, bytes } => {
                let mut bytes = &bytes[..];
                let mut room = into;
                for index in 0..units.count {
                    let len = wanted.len_of(units.first + u64::from(index)) as usize;
                    let (unit, rest) = room.split_at_mut(len);
                    room = rest;
                    if zeroes & 1 << index != 0 {
                        unit.fill(0);
                    } else {
                        let (from, rest) = bytes.split_at(len);
                        unit.copy_from_slice(from);
                        bytes = rest;
                    }
                }
                Ok(())
            }
            Reply::Map(_) => Err(PullError::Range),
            Reply::Failed(error) => Err(error),
        }
    }

    /// Which of the units hold data, one bit each from the least significant of the first byte on; all others read as zeroes.
    ///
    /// # Errors
    /// As [`PullError`] tells.
    pub fn data(&self, units: Units) -> Result<Vec<u8>, PullError> {
        self.map(Question::Data, units)
    }

    /// Which of the units the server has, as for [`PullClient::data`]; all others are not to be asked of it. A server of an earlier
    /// version, which has all, takes the question for a mistake.
    ///
    /// # Errors
    /// As [`PullError`] tells.
    pub fn held(&self, units: Units) -> Result<Vec<u8>, PullError> {
        self.map(Question::Held, units)
    }

    fn map(&self, question: Question, units: Units) -> Result<Vec<u8>, PullError> {
        let wanted = self.wanted(&units)?;
        wanted.bytes(&units).ok_or(PullError::Range)?;
        match self.client.desk.ask(question, units) {
            Reply::Map(map) => Ok(map),
            Reply::Units { .. } => Err(PullError::Range),
            Reply::Failed(error) => Err(error),
        }
    }

    /// Tells the server that a volume is whole and durable here, and waits until it has recorded that. It is told again, as long
    /// as this client is there, when that takes longer than `patience`. Nobody can ask for the volume any more.
    ///
    /// # Errors
    /// [`PullError::Lost`] when the server has not answered in time: it may know, or serve on for nobody.
    pub fn finish(&self, volume: usize, patience: Duration) -> Result<(), PullError> {
        self.client.desk.finish(volume, patience)
    }

    /// Whether the server has recorded that a volume is whole.
    pub fn is_released(&self, volume: usize) -> bool {
        self.client.desk.is_released(volume)
    }

    /// Has whoever waits be told that nothing comes any more, and makes no connection again.
    pub fn stop(&self) {
        self.client.desk.stop();
    }

    /// Whether a connection stands on which it is asked for what somebody waits for.
    pub fn is_up(&self) -> bool {
        self.client.desk.is_up()
    }

    /// What is in the way, when no connection stands.
    pub fn lost(&self) -> Option<Lost> {
        let desk = &self.client.desk;
        (!desk.is_up()).then(|| Lost {
            address: self.client.connect.address(),
            why: desk.why_lost(),
        })
    }

    /// Has `returned` called, on a thread of the client, whenever a connection stands again.
    pub fn tell_return(&self, returned: Arc<dyn Fn() + Send + Sync>) {
        self.client.returned.add(returned);
    }

    fn wanted(&self, units: &Units) -> Result<&Wanted, PullError> {
        let wanted = self.client.wanted.get(usize::from(units.volume));
        wanted.ok_or(PullError::Range)
    }
}

impl Drop for PullClient {
    fn drop(&mut self) {
        self.client.desk.stop();
        for thread in self.threads.drain(..) {
            // A panic of it was told already.
            let _ = thread.join();
        }
    }
}
