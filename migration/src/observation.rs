//! Errors as correlated observations, carried through all crates and over the wire.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::os;

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
            observation.causes.push(Self::from_error(side, id, source));
        }
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

    /// The deepest first cause: what to tell the user first.
    pub fn root(&self) -> &Self {
        self.causes.first().map_or(self, Self::root)
    }
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
