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

/// What requests for missing blocks do while nothing comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLoss {
    /// They wait.
    #[default]
    Wait,
    /// They fail.
    Fail,
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
    /// Whether they come.
    pub supply: Supply,
}

#[derive(Debug)]
struct State {
    supply: Supply,
    on_loss: OnLoss,
    /// When it was logged last.
    logged: Option<Instant>,
}

/// What is known of the origin, and what it means for requests.
#[derive(Debug)]
pub(super) struct Standing(Mutex<State>);

impl Standing {
    pub(super) fn new(on_loss: OnLoss) -> Self {
        Self(Mutex::new(State {
            supply: Supply::Comes,
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
        state.supply = supply;
        true
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
        match (&state.supply, state.on_loss) {
            (Supply::Comes, _) | (_, OnLoss::Wait) => None,
            (Supply::Lost(why) | Supply::Wrong(why) | Supply::NotStored(why), OnLoss::Fail) => {
                Some(why.clone())
            }
        }
    }
}
