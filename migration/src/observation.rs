//! Errors as correlated observations, carried through all crates and over the wire.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::os;

/// Most observations that a peer's failure may consist of.
const MOST_TOLD: usize = 32;
/// Deepest chain of a peer's failure. It is passed on as the cause of failures of this side, in JSON
/// whose readers have a limit of their own.
const DEEPEST_TOLD: usize = 16;
/// Longest text of a peer's observation, in bytes.
const LONGEST_TOLD: usize = 4000;

/// Where an observation was made.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The host that the guest leaves.
    Source,
    /// The host that the guest goes to.
    Destination,
    /// The command line or another client of a control socket.
    Client,
}

/// One thing that went wrong, and the observations that explain it.
///
/// `id` is a stable identifier of the error condition (`migration.peer-lost`), `message` one lower-case
/// sentence with the instance data (path, gpa, vCPU). The chain down to the root cause is `causes`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// Stable identifier of the error condition, dotted: `area.condition`.
    pub id: String,
    /// What failed, with instance data; lower case, no full stop.
    pub message: String,
    /// The side that observed it.
    pub side: Side,
    /// Phase of the migration, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// When, in microseconds since the Unix epoch.
    pub at_us: u64,
    /// What explains it, nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(no_recursion))]
    pub causes: Vec<Observation>,
}

impl Side {
    /// What it is called in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Client => "client",
        }
    }
}

impl Observation {
    /// Records a condition seen now on `side`.
    pub fn new(side: Side, id: impl Into<String>, message: impl Into<String>) -> Self {
        let at_us = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX));
        Self {
            id: id.into(),
            message: message.into(),
            side,
            phase: None,
            at_us,
            causes: Vec::new(),
        }
    }

    /// Records a failed operation whose error chain becomes the chain of causes. One that the
    /// operating system reported has an identifier of its own, see [`crate::os`].
    pub fn from_error(side: Side, id: impl Into<String>, error: &dyn Error) -> Self {
        let id = id.into();
        let mut observation = Self::new(side, id.clone(), error.to_string());
        if let Some(source) = error.source() {
            let id = source
                .downcast_ref()
                .and_then(os::condition)
                .map_or(id, str::to_owned);
            observation.causes.push(Self::from_source(side, id, source));
        }
        observation
    }

    /// As [`Observation::from_error`] for what explains an error, with why it was denied if it was.
    pub(crate) fn from_source(
        side: Side,
        id: impl Into<String>,
        source: &(dyn Error + 'static),
    ) -> Self {
        let mut observation = Self::from_error(side, id, source);
        let why = source
            .downcast_ref()
            .and_then(os::explanation)
            .map(|why| Self::new(side, "sandbox.refused", why));
        observation.causes.extend(why);
        observation
    }

    /// Adds what explains this observation.
    #[must_use]
    pub fn caused_by(mut self, cause: Self) -> Self {
        self.causes.push(cause);
        self
    }

    /// Names the phase in which it was made.
    #[must_use]
    pub fn in_phase(mut self, phase: impl Into<String>) -> Self {
        self.phase = Some(phase.into());
        self
    }

    /// Whether it, or anything that explains it, has this identifier.
    pub fn mentions(&self, id: &str) -> bool {
        self.id == id || self.causes.iter().any(|cause| cause.mentions(id))
    }

    /// What a peer told, cut to what can be shown to people and passed on to programs: a peer may send
    /// a chain of any length, and texts that would steer a terminal.
    #[must_use]
    pub(crate) fn of_peer(self) -> Self {
        let mut left = MOST_TOLD;
        self.tamed(DEEPEST_TOLD, &mut left)
    }

    fn tamed(self, depth: usize, left: &mut usize) -> Self {
        let Self {
            id,
            message,
            side,
            phase,
            at_us,
            causes,
        } = self;
        *left = left.saturating_sub(1);
        let mut kept = Vec::new();
        for cause in causes {
            if depth <= 1 || *left == 0 {
                break;
            }
            kept.push(cause.tamed(depth - 1, left));
        }
        Self {
            id: printable(&id),
            message: printable(&message),
            side,
            phase: phase.as_deref().map(printable),
            at_us,
            causes: kept,
        }
    }

    /// The deepest first cause: what to tell the user first.
    pub fn root(&self) -> &Self {
        self.causes.first().map_or(self, Self::root)
    }
}

/// The text without control characters, and not too long.
fn printable(text: &str) -> String {
    let mut kept = String::new();
    for c in text.chars() {
        if kept.len() + c.len_utf8() > LONGEST_TOLD {
            break;
        }
        kept.push(if c.is_control() { ' ' } else { c });
    }
    kept
}

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(cause) = self.causes.first() {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

impl Error for Observation {}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(depth: usize) -> Observation {
        let link = |n: usize| Observation::new(Side::Source, format!("a.{n}"), "x");
        (1..depth).fold(link(0), |cause, n| link(n).caused_by(cause))
    }

    #[test]
    fn what_a_peer_tells_is_cut_to_what_can_be_passed_on() {
        let short = chain(5);
        assert_eq!(short.clone().of_peer(), short);
        let mut depth = 0;
        let deep = chain(60).of_peer();
        let mut at = Some(&deep);
        while let Some(observation) = at {
            depth += 1;
            at = observation.causes.first();
        }
        assert_eq!(depth, DEEPEST_TOLD);
        let wide = (0..500).fold(chain(1), |top, _| top.caused_by(chain(2)));
        let kept = wide.of_peer();
        let total: usize = 1 + kept
            .causes
            .iter()
            .map(|c| 1 + c.causes.len())
            .sum::<usize>();
        assert_eq!(total, MOST_TOLD);
    }

    #[test]
    fn what_a_peer_tells_cannot_steer_a_terminal() {
        let mut hostile = Observation::new(Side::Source, "a.\u{1b}[2J", "b\u{7}".repeat(5000));
        hostile.phase = Some("c\n".into());
        let tame = hostile.of_peer();
        assert_eq!(
            (tame.id.as_str(), tame.phase.as_deref()),
            ("a. [2J", Some("c "))
        );
        assert_eq!(tame.message.len(), LONGEST_TOLD);
    }
}
