//! How what is missing comes along, for whoever watches.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often it is logged at most whether anything comes.
const LOGGED: Duration = Duration::from_secs(5);

/// Whether what is missing comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Supply {
    /// As far as is known.
    Comes,
    /// The origin cannot be had for now; why. It is asked again.
    Lost(String),
    /// The origin gives what is wrong; why. It is not asked again.
    Wrong(String),
    /// What comes cannot be written to the image here; why. It is tried again.
    NotStored(String),
}

/// What requests for missing blocks do while the origin is lost, or wrong; they wait for what cannot be written here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLoss {
    /// They wait.
    #[default]
    Wait,
    /// They fail.
    Fail {
        /// Once it has been so for this long.
        after: Duration,
    },
}

/// How much is missing, and how that comes along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Who is asked.
    pub origin: String,
    /// Bytes that are not here.
    pub missing_bytes: u64,
    /// Bytes that came from the origin and were written, by this process.
    pub fetched_bytes: u64,
    /// Those of them that a request waited for.
    pub demanded_bytes: u64,
    /// Whether they come.
    pub supply: Supply,
    /// For how long the origin has been lost, or wrong, as far as anybody asked it.
    pub lost_for: Option<Duration>,
}

#[derive(Debug)]
struct State {
    supply: Supply,
    /// Since when the origin is lost, or wrong.
    lost_since: Option<Instant>,
    on_loss: OnLoss,
    /// When it was logged last.
    logged: Option<Instant>,
}

impl State {
    /// How long it takes until requests fail for what is missing; nothing if they do not.
    fn patience(&self) -> Option<Duration> {
        match (self.on_loss, self.lost_since) {
            (OnLoss::Fail { after }, Some(since)) => Some(after.saturating_sub(since.elapsed())),
            (OnLoss::Wait, _) | (_, None) => None,
        }
    }
}

/// What is known of the origin, and what it means for requests.
#[derive(Debug)]
pub(super) struct Standing(Mutex<State>);

impl Standing {
    pub(super) fn new(on_loss: OnLoss) -> Self {
        Self(Mutex::new(State {
            supply: Supply::Comes,
            lost_since: None,
            on_loss,
            logged: None,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn supply(&self) -> Supply {
        self.state().supply.clone()
    }

    /// It is so now; whether it was otherwise.
    pub(super) fn set(&self, supply: Supply) -> bool {
        let mut state = self.state();
        // What is wrong stays so, whatever another thread has been given before.
        if state.supply == supply || matches!(state.supply, Supply::Wrong(_)) {
            return false;
        }
        state.lost_since = match supply {
            Supply::Comes | Supply::NotStored(_) => None,
            Supply::Lost(_) | Supply::Wrong(_) => state.lost_since.or_else(|| Some(Instant::now())),
        };
        state.supply = supply;
        true
    }

    /// For how long the origin has been lost, or wrong.
    pub(super) fn lost_for(&self) -> Option<Duration> {
        self.state().lost_since.map(|since| since.elapsed())
    }

    /// Whether that is to be logged: where a part of the disk can be had and another one cannot, it changes with every block.
    pub(super) fn is_to_be_logged(&self) -> bool {
        let mut state = self.state();
        let is_due = state.logged.is_none_or(|at| at.elapsed() >= LOGGED);
        if is_due {
            state.logged = Some(Instant::now());
        }
        is_due
    }

    pub(super) fn set_on_loss(&self, on_loss: OnLoss) {
        self.state().on_loss = on_loss;
    }

    /// Why requests for what is missing fail; nothing if they wait.
    pub(super) fn failure(&self) -> Option<String> {
        let state = self.state();
        match (&state.supply, state.patience()) {
            (Supply::Lost(why) | Supply::Wrong(why), Some(Duration::ZERO)) => Some(why.clone()),
            (_, _) => None,
        }
    }

    /// How long it takes until they fail that wait now; nothing if they do already, or go on waiting.
    pub(super) fn fails_in(&self) -> Option<Duration> {
        self.state().patience().filter(|left| !left.is_zero())
    }
}
