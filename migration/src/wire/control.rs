//! Control frames: a header and a body, JSON except for the machine state.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{MAX_STATE, check};
use crate::error::Error;
use crate::id::HostId;
use crate::observation::Observation;
use crate::progress::Verify;
use crate::transport::Connection;
use crate::vm::{MachineDescription, RunState};

/// First bytes of a control frame.
pub const CONTROL_MAGIC: u32 = u32::from_le_bytes(*b"vmmC");

/// Header of a control frame.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
#[repr(C)]
pub struct ControlHeader {
    magic: U32,
    kind: U16,
    flags: U16,
    length: U32,
    reserved: U32,
    check: U64,
}

/// Length of a control header.
pub const CONTROL_LEN: usize = size_of::<ControlHeader>();

const SMALL: usize = 4 << 10;
const MEDIUM: usize = 256 << 10;
const LARGE: usize = 4 << 20;
/// A body is read in pieces of this size, so that a header alone never makes us allocate its length.
const PIECE: usize = 1 << 20;

/// Most extents that are announced.
pub const MAX_EXTENTS: usize = 16 << 10;

/// Most bytes of what comes late, in one frame.
pub const MAX_LATE: usize = LARGE;
/// Most warnings that are told with the commit.
pub const MAX_WARNINGS: usize = 16;

/// Destination to source: go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Version that both sides will speak.
    pub version: u16,
    /// Secret of this migration, 16 bytes: data connections show it, the digest is keyed by it.
    pub token: [u8; 16],
    /// Who will answer whether the guest ran there; told from version 2 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
}

/// Whether the guest is to be moved, or only the question asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Intent {
    /// Move it.
    Migrate,
    /// Only say whether it would work.
    Plan,
}

/// Source to destination: what is to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Negotiate {
    /// The machine.
    pub machine: MachineDescription,
    /// Whether it runs.
    pub run_state: RunState,
    /// Number of data connections.
    pub streams: u8,
    /// How memory is verified.
    pub verify: Verify,
    /// What for.
    pub intent: Intent,
}

/// Destination to source: the machine is built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    /// How long recording a decision takes there, in milliseconds.
    pub journal_ms: f64,
}

/// Source to destination: stretches of guest memory that hold data, as `(gpa, length)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extents {
    /// Ascending, page-aligned.
    pub extents: Vec<(u64, u64)>,
}

/// Destination to source: all pages of a pass are in place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassPlaced {
    /// The pass.
    pub pass: u32,
}

/// Source to destination: after this pass no page follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastPass {
    /// The pass.
    pub pass: u32,
    /// When the state was saved; where absent, nothing is known of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<Saved>,
}

/// When the source saved the state, told by what it had heard before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The last pass of which it had heard that it was placed.
    pub after_pass: u32,
    /// How long after it had heard so it began to save, in microseconds.
    pub after_us: u64,
}

/// Destination to source: everything is loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// Digest of the memory as asked for in [`Negotiate`], hexadecimal.
    pub digest: Option<String>,
    /// How long loading the state took, in milliseconds.
    pub load_ms: f64,
}

/// Destination to source: the guest runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Committed {
    /// Recording the decision, in milliseconds.
    pub journal_ms: f64,
    /// Starting the guest, in milliseconds.
    pub start_ms: f64,
    /// What went wrong without keeping the guest from running, at most [`MAX_WARNINGS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Observation>,
}

/// What became of the guest at a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resolution {
    /// The destination committed: the guest ran there and must not run at the source again.
    Ran,
    /// The destination never ran the guest and never will.
    NeverRan,
}

/// Destination's answer to a resolve. In version 1 it was the bare [`Resolution`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "AnswerBody", into = "AnswerBody")]
pub struct Answer {
    /// What became of the guest.
    pub resolution: Resolution,
    /// Who says so; told from version 2 on.
    pub host: Option<HostId>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum AnswerBody {
    Bare(Resolution),
    Signed {
        resolution: Resolution,
        host: HostId,
    },
}

impl From<AnswerBody> for Answer {
    fn from(body: AnswerBody) -> Self {
        match body {
            AnswerBody::Bare(resolution) => Self {
                resolution,
                host: None,
            },
            AnswerBody::Signed { resolution, host } => Self {
                resolution,
                host: Some(host),
            },
        }
    }
}

impl From<Answer> for AnswerBody {
    fn from(Answer { resolution, host }: Answer) -> Self {
        match host {
            None => Self::Bare(resolution),
            Some(host) => Self::Signed { resolution, host },
        }
    }
}

/// A control frame.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// See [`Welcome`].
    Welcome(Welcome),
    /// See [`Negotiate`].
    Negotiate(Box<Negotiate>),
    /// Destination to source: this host can build and run the machine.
    Negotiated,
    /// Source to destination: build it.
    Prepare,
    /// See [`Prepared`].
    Prepared(Prepared),
    /// See [`Extents`].
    Extents(Extents),
    /// See [`PassPlaced`].
    PassPlaced(PassPlaced),
    /// See [`LastPass`].
    LastPass(LastPass),
    /// Source to destination: state of the paused machine.
    State(Vec<u8>),
    /// See [`Ready`].
    Ready(Ready),
    /// Source to destination: the decision is recorded, run the guest.
    Commit,
    /// See [`Committed`].
    Committed(Committed),
    /// Source to destination: the source has let go.
    Finish,
    /// Either side: it ends here, for this reason.
    Failure(Box<Observation>),
    /// Either side: are you there? Microseconds of the sender's clock.
    Ping(u64),
    /// The answer to a ping, with its number.
    Pong(u64),
    /// See [`Answer`].
    Resolution(Answer),
    /// Source to destination: only a plan, good-bye.
    PlanEnd,
    /// Source to destination, between committed and finish: what came for the guest after it was
    /// stopped.
    Late(Vec<u8>),
}

impl Message {
    fn kind(&self) -> u16 {
        match self {
            Self::Welcome(_) => 1,
            Self::Negotiate(_) => 2,
            Self::Negotiated => 3,
            Self::Prepare => 4,
            Self::Prepared(_) => 5,
            Self::Extents(_) => 6,
            Self::PassPlaced(_) => 7,
            Self::LastPass(_) => 8,
            Self::State(_) => 9,
            Self::Ready(_) => 10,
            Self::Commit => 11,
            Self::Committed(_) => 12,
            Self::Finish => 13,
            Self::Failure(_) => 14,
            Self::Ping(_) => 15,
            Self::Pong(_) => 16,
            Self::Resolution(_) => 17,
            Self::PlanEnd => 18,
            Self::Late(_) => 19,
        }
    }

    /// What it is called in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Welcome(_) => "welcome",
            Self::Negotiate(_) => "negotiate",
            Self::Negotiated => "negotiated",
            Self::Prepare => "prepare",
            Self::Prepared(_) => "prepared",
            Self::Extents(_) => "extents",
            Self::PassPlaced(_) => "pass-placed",
            Self::LastPass(_) => "last-pass",
            Self::State(_) => "state",
            Self::Ready(_) => "ready",
            Self::Commit => "commit",
            Self::Committed(_) => "committed",
            Self::Finish => "finish",
            Self::Failure(_) => "failure",
            Self::Ping(_) => "ping",
            Self::Pong(_) => "pong",
            Self::Resolution(_) => "resolution",
            Self::PlanEnd => "plan-end",
            Self::Late(_) => "late",
        }
    }

    /// Longest body of frames of `kind`; `None` for a kind that does not exist. Kinds from 32 on
    /// are kept for post-copy, from 48 on for groups.
    fn limit(kind: u16) -> Option<usize> {
        match kind {
            1 | 5 | 7 | 8 | 10 | 15..=17 => Some(SMALL),
            2 => Some(LARGE),
            3 | 4 | 11 | 13 | 18 => Some(0),
            6 => Some(LARGE),
            9 => Some(MAX_STATE),
            12 | 14 => Some(MEDIUM),
            19 => Some(MAX_LATE),
            _ => None,
        }
    }

    fn body(&self) -> Result<Vec<u8>, Error> {
        fn json(body: &impl Serialize) -> Result<Vec<u8>, Error> {
            serde_json::to_vec(body).map_err(|e| Error::Protocol(format!("cannot encode: {e}")))
        }
        match self {
            Self::Welcome(body) => json(body),
            Self::Negotiate(body) => json(body),
            Self::Prepared(body) => json(body),
            Self::Extents(body) => json(body),
            Self::PassPlaced(body) => json(body),
            Self::LastPass(body) => json(body),
            Self::State(body) | Self::Late(body) => Ok(body.clone()),
            Self::Ready(body) => json(body),
            Self::Committed(body) => json(body),
            Self::Failure(body) => json(body),
            Self::Ping(body) | Self::Pong(body) => json(body),
            Self::Resolution(body) => json(body),
            Self::Negotiated | Self::Prepare | Self::Commit | Self::Finish | Self::PlanEnd => {
                Ok(Vec::new())
            }
        }
    }

    /// As it travels.
    ///
    /// # Errors
    /// [`Error::Protocol`] when its body is longer than the protocol allows.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let body = self.body()?;
        let kind = self.kind();
        if Self::limit(kind).is_none_or(|limit| body.len() > limit) {
            return Err(Error::Protocol(format!(
                "{} of {} bytes is too long to send",
                self.name(),
                body.len()
            )));
        }
        let mut header = ControlHeader {
            magic: CONTROL_MAGIC.into(),
            kind: kind.into(),
            flags: 0.into(),
            length: (body.len() as u32).into(),
            reserved: 0.into(),
            check: 0.into(),
        };
        header.check = check(&[header.as_bytes(), &body]).into();
        let mut frame = Vec::with_capacity(CONTROL_LEN + body.len());
        frame.extend_from_slice(header.as_bytes());
        frame.extend_from_slice(&body);
        Ok(frame)
    }

    /// Length of the body that follows `header`, once that is known to be within the limits.
    ///
    /// # Errors
    /// [`Error::Protocol`] when it is no control header.
    pub fn body_len(header: &ControlHeader) -> Result<usize, Error> {
        if header.magic.get() != CONTROL_MAGIC {
            return Err(Error::Protocol(
                "control connection holds no control frame".into(),
            ));
        }
        let (kind, length) = (header.kind.get(), header.length.get() as usize);
        match Self::limit(kind) {
            None => Err(Error::Protocol(format!(
                "control frame of unknown kind {kind}"
            ))),
            Some(limit) if length > limit => Err(Error::Protocol(format!(
                "control frame of kind {kind} has {length} bytes, more than {limit}"
            ))),
            Some(_) => Ok(length),
        }
    }

    /// Reads a frame from its header and body.
    ///
    /// # Errors
    /// [`Error::Protocol`] when it is damaged or malformed.
    pub fn decode(header: &ControlHeader, body: Vec<u8>) -> Result<Self, Error> {
        fn json<T: DeserializeOwned>(body: &[u8], name: &str) -> Result<T, Error> {
            serde_json::from_slice(body)
                .map_err(|e| Error::Protocol(format!("malformed {name}: {e}")))
        }
        let mut unchecked = *header;
        unchecked.check = 0.into();
        if check(&[unchecked.as_bytes(), &body]) != header.check.get() {
            return Err(Error::Protocol("control frame is damaged".into()));
        }
        Ok(match header.kind.get() {
            1 => Self::Welcome(json(&body, "welcome")?),
            2 => Self::Negotiate(json(&body, "negotiate")?),
            3 => Self::Negotiated,
            4 => Self::Prepare,
            5 => Self::Prepared(json(&body, "prepared")?),
            6 => Self::Extents(json(&body, "extents")?),
            7 => Self::PassPlaced(json(&body, "pass-placed")?),
            8 => Self::LastPass(json(&body, "last-pass")?),
            9 => Self::State(body),
            10 => Self::Ready(json(&body, "ready")?),
            11 => Self::Commit,
            12 => Self::Committed(json(&body, "committed")?),
            13 => Self::Finish,
            14 => {
                let told: Observation = json(&body, "failure")?;
                Self::Failure(Box::new(told.of_peer()))
            }
            15 => Self::Ping(json(&body, "ping")?),
            16 => Self::Pong(json(&body, "pong")?),
            17 => Self::Resolution(json(&body, "resolution")?),
            18 => Self::PlanEnd,
            19 => Self::Late(body),
            kind => {
                return Err(Error::Protocol(format!(
                    "control frame of unknown kind {kind}"
                )));
            }
        })
    }

    /// Receives the next frame.
    ///
    /// # Errors
    /// [`Error::Link`] when the connection breaks, [`Error::Protocol`] when it is no frame.
    pub fn receive(connection: &dyn Connection) -> Result<Self, Error> {
        let lost = |source| Error::Link {
            operation: "waiting for an answer",
            source,
        };
        let mut header = [0; CONTROL_LEN];
        connection.receive(&mut header, &[]).map_err(lost)?;
        let header: ControlHeader = zerocopy::transmute!(header);
        let length = Self::body_len(&header)?;
        let mut body = Vec::new();
        while body.len() < length {
            let at = body.len();
            body.resize(length.min(at + PIECE), 0);
            connection.receive(&mut body[at..], &[]).map_err(lost)?;
        }
        Self::decode(&header, body)
    }
}
