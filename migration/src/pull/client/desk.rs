//! What a client has asked for, and which of its connections stand.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::PullError;
use crate::error::Error;
use crate::pull::line::Line;
use crate::wire::pull::{Class, Frame, Gone, MAX_ASKED, Units};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// For units.
    Units(Class),
    /// Which of them hold data.
    Data,
    /// Which of them the server has.
    Held,
}

/// What came of a question.
#[derive(Debug)]
pub(super) enum Reply {
    /// The units that do not read as zeroes, and which of them do.
    Units {
        /// A bit each.
        zeroes: u32,
        /// All others.
        bytes: Vec<u8>,
    },
    /// Which units do what was asked about, a bit each.
    Map(Vec<u8>),
    /// None.
    Failed(PullError),
}

struct Asked {
    question: Question,
    /// As frames number the volume.
    units: Units,
    lane: usize,
    since: Instant,
    reply: Option<Reply>,
}

/// A connection that stands.
#[derive(Clone)]
struct Up {
    line: Arc<Line>,
    /// How the server numbers each volume of the client.
    numbers: Arc<[u16]>,
}

#[derive(Default)]
struct Lane {
    up: Option<Up>,
    /// Why it does not stand.
    why: Option<String>,
}

/// How far the release of a volume has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Release {
    Needed,
    /// It is whole and durable here, which its server is to be told.
    Finished,
    Released,
}

struct State {
    lanes: Vec<Lane>,
    asked: BTreeMap<u32, Asked>,
    next: u32,
    releases: Vec<Release>,
    stopped: bool,
}

/// Shared by all who ask and by the threads of the connections.
pub(super) struct Desk {
    state: Mutex<State>,
    changed: Condvar,
}

impl Desk {
    pub fn new(lanes: usize, volumes: usize) -> Self {
        Self {
            state: Mutex::new(State {
                lanes: (0..lanes).map(|_| Lane::default()).collect(),
                asked: BTreeMap::new(),
                next: 0,
                releases: vec![Release::Needed; volumes],
                stopped: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks, and waits for what comes of it.
    pub fn ask(&self, question: Question, units: Units) -> Reply {
        let mut state = self.lock();
        let (lane, up) = loop {
            match state.way(question, &units) {
                Ok(Some(way)) => break way,
                Ok(None) => state = self.wait(state),
                Err(error) => return Reply::Failed(error),
            }
        };
        let Some(&volume) = up.numbers.get(usize::from(units.volume)) else {
            return Reply::Failed(PullError::Range);
        };
        let units = Units { volume, ..units };
        let number = state.enter(question, units, lane);
        drop(state);
        let frame = match question {
            Question::Units(class) => Frame::Request {
                number,
                units,
                class,
            },
            Question::Data => Frame::AskData { number, units },
            Question::Held => Frame::AskHeld { number, units },
        };
        // The connection has ended if it could not be sent, and the thread of the lane says so to all.
        let _ = up.line.send(&frame, &[]);
        let mut state = self.lock();
        loop {
            let reply = state.asked.get_mut(&number).map(|asked| asked.reply.take());
            match reply {
                Some(None) => state = self.wait(state),
                Some(Some(reply)) => {
                    state.asked.remove(&number);
                    drop(state);
                    // Somebody may wait for its place.
                    self.changed.notify_all();
                    return reply;
                }
                None => return Reply::Failed(PullError::Stopped),
            }
        }
    }

    /// A connection stands from now on.
    pub fn up(&self, lane: usize, line: &Arc<Line>, numbers: Arc<[u16]>) {
        let mut state = self.lock();
        state.lanes[lane] = Lane {
            up: Some(Up {
                line: line.clone(),
                numbers,
            }),
            why: None,
        };
        drop(state);
        self.changed.notify_all();
    }

    /// A connection is lost: what was asked on it is absent again.
    pub fn down(&self, lane: usize, why: String) {
        let mut state = self.lock();
        state.lanes[lane] = Lane {
            up: None,
            why: Some(why),
        };
        for asked in state.asked.values_mut() {
            if asked.lane == lane && asked.reply.is_none() {
                asked.reply = Some(Reply::Failed(PullError::Lost));
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Whether the connection stands on which somebody waits.
    pub fn is_up(&self) -> bool {
        let state = self.lock();
        state.lanes.first().is_some_and(|lane| lane.up.is_some())
    }

    /// Why it does not, as far as that is known.
    pub fn why_lost(&self) -> Option<String> {
        self.lock().lanes.first()?.why.clone()
    }

    /// Nobody asks any more.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        for asked in state.asked.values_mut() {
            asked.reply.get_or_insert(Reply::Failed(PullError::Stopped));
        }
        drop(state);
        self.changed.notify_all();
    }

    pub fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Waits for so long, or until nobody asks any more.
    pub fn rest(&self, pause: Duration) {
        let state = self.lock();
        let rested = self
            .changed
            .wait_timeout_while(state, pause, |state| !state.stopped);
        drop(rested.unwrap_or_else(PoisonError::into_inner));
    }

    /// Whether a question of this lane has waited for longer than `limit`.
    pub fn is_late(&self, lane: usize, limit: Duration) -> bool {
        let state = self.lock();
        let mut waiting = state.asked.values();
        waiting.any(|asked| {
            asked.lane == lane && asked.reply.is_none() && asked.since.elapsed() > limit
        })
    }

    /// Checks that what comes is what question `number` of this lane was about, which still waits for it.
    ///
    /// # Errors
    /// [`Error::Protocol`] when it is not.
    pub fn check(&self, lane: usize, number: u32, units: Option<Units>) -> Result<Question, Error> {
        let state = self.lock();
        let asked = state.asked.get(&number);
        let waits = asked.filter(|asked| asked.lane == lane && asked.reply.is_none());
        let Some(asked) = waits else {
            return Err(Error::Protocol(format!(
                "an answer to {number}, which nobody has asked or was answered"
            )));
        };
        if units.is_some_and(|units| units != asked.units) {
            return Err(Error::Protocol(format!(
                "an answer to {number} is of other units than were asked for"
            )));
        }
        Ok(asked.question)
    }

    /// Hands a reply to whoever waits for it, after it was checked.
    pub fn reply(&self, number: u32, reply: Reply) {
        if let Some(asked) = self.lock().asked.get_mut(&number) {
            asked.reply.get_or_insert(reply);
        }
        self.changed.notify_all();
    }

    /// A question has no answer.
    pub fn gone(&self, number: u32, why: Gone) {
        let error = match why {
            Gone::Released => PullError::Released,
            Gone::Unreadable => PullError::Unreadable,
        };
        self.reply(number, Reply::Failed(error));
    }

    /// Has the server told that a volume is whole and durable, and waits until it has recorded that.
    pub fn finish(&self, volume: usize, patience: Duration) -> Result<(), PullError> {
        let until = Instant::now() + patience;
        let mut state = self.lock();
        match state.releases.get_mut(volume) {
            Some(release @ Release::Needed) => *release = Release::Finished,
            Some(_) => {}
            None => return Err(PullError::Range),
        }
        let up = state.lanes.first().and_then(|lane| lane.up.clone());
        drop(state);
        if let Some(up) = up
            && let Some(&volume) = up.numbers.get(volume)
        {
            // Told again on the next connection, if this one is lost.
            let _ = up.line.send(&Frame::Finished { volume }, &[]);
        }
        let mut state = self.lock();
        loop {
            if state.releases[volume] == Release::Released {
                return Ok(());
            }
            if state.stopped {
                return Err(PullError::Stopped);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(PullError::Lost);
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Whether the server has recorded that a volume is whole.
    pub fn is_released(&self, volume: usize) -> bool {
        self.lock().releases.get(volume) == Some(&Release::Released)
    }

    /// Volumes that are whole, and of which the server may not know.
    pub fn finished(&self) -> Vec<usize> {
        let state = self.lock();
        let all = state.releases.iter().enumerate();
        let told = all.filter(|(_, release)| **release == Release::Finished);
        told.map(|(volume, _)| volume).collect()
    }

    /// The server has recorded that a volume is whole.
    ///
    /// # Errors
    /// [`Error::Protocol`] when nobody has told it so.
    pub fn released(&self, volume: usize) -> Result<(), Error> {
        match self.lock().releases.get_mut(volume) {
            Some(release) if *release != Release::Needed => *release = Release::Released,
            _ => {
                let what = "a volume was released that is needed".into();
                return Err(Error::Protocol(what));
            }
        }
        self.changed.notify_all();
        Ok(())
    }
}

impl State {
    /// The lane on which it is asked, if that can be done now.
    fn way(&self, question: Question, units: &Units) -> Result<Option<(usize, Up)>, PullError> {
        if self.stopped {
            return Err(PullError::Stopped);
        }
        let volume = usize::from(units.volume);
        if self
            .releases
            .get(volume)
            .is_none_or(|release| *release != Release::Needed)
        {
            return Err(PullError::Released);
        }
        let on = |lane: usize| {
            let asked = self.asked.values();
            asked.filter(|asked| asked.lane == lane).count()
        };
        // Somebody who waits has the first lane, in which no answer is ahead that is large.
        let lanes = match question {
            Question::Units(Class::Background) if self.lanes.len() > 1 => 1..self.lanes.len(),
            _ => 0..1,
        };
        let standing = lanes.filter(|lane| self.lanes[*lane].up.is_some());
        let Some(lane) = standing.min_by_key(|lane| on(*lane)) else {
            return Err(PullError::Lost);
        };
        let Some(up) = self.lanes[lane].up.clone() else {
            return Err(PullError::Lost);
        };
        let number = up.numbers.get(volume).copied();
        let is_asked = matches!(question, Question::Units(_))
            && self.asked.values().any(|asked| {
                matches!(asked.question, Question::Units(_))
                    && Some(asked.units.volume) == number
                    && overlap(&asked.units, units)
            });
        Ok((!is_asked && on(lane) < MAX_ASKED).then_some((lane, up)))
    }

    fn enter(&mut self, question: Question, units: Units, lane: usize) -> u32 {
        while self.asked.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let number = self.next;
        self.next = number.wrapping_add(1);
        let asked = Asked {
            question,
            units,
            lane,
            since: Instant::now(),
            reply: None,
        };
        self.asked.insert(number, asked);
        number
    }
}

fn overlap(one: &Units, other: &Units) -> bool {
    let ends = |of: &Units| of.first.saturating_add(of.count.into());
    one.first < ends(other) && other.first < ends(one)
}
