//! Control frames: a header and a body, JSON except for the machine state.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::check;
use super::kind::Kind;
pub use super::kind::MAX_FORWARDED;
use crate::PAGE_SIZE;
use crate::error::Error;
use crate::id::HostId;
use crate::observation::Observation;
use crate::progress::Verify;
pub use crate::resolution::Resolution;
use crate::transport::{Connection, Within};
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

/// A body is read in pieces of this size, so that a header alone never makes us allocate its length.
const PIECE: usize = 1 << 20;

/// Most extents that are announced.
pub const MAX_EXTENTS: usize = 16 << 10;

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
    /// What both can do, of what the hello told ([`super::capabilities::Capabilities`]); told from version 4 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<u64>,
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
    /// How its state can be written, for the destination to choose; told from version 4 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// Destination to source: this host can build and run the machine. No body where nothing is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Negotiated {
    /// How the state is to be written, where [`Negotiate`] left the choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// Destination to source: the machine is built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    /// How long recording a decision takes there, in milliseconds.
    pub journal_ms: f64,
    /// Bytes that it hashes per second, where all memory is to be hashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_bytes_per_s: Option<f64>,
    /// Disks of which it wants samples with the last pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<String>,
}

/// Source to destination: stretches of guest memory that hold data, as `(gpa, length)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extents {
    /// Ascending, page-aligned, at most [`MAX_EXTENTS`].
    pub extents: Vec<(u64, u64)>,
}

impl Extents {
    /// Work is done for each: none may be named twice, and they may not be too many.
    fn check(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Protocol(what));
        if self.extents.len() > MAX_EXTENTS {
            return wrong(format!("it announces {} extents", self.extents.len()));
        }
        let mut end = 0;
        for &(gpa, len) in &self.extents {
            let aligned = gpa % PAGE_SIZE == 0 && len % PAGE_SIZE == 0;
            match gpa.checked_add(len) {
                Some(next) if aligned && gpa >= end => end = next,
                _ => {
                    return wrong(format!(
                        "it announces an extent of {len:#x} bytes at {gpa:#x}"
                    ));
                }
            }
        }
        Ok(())
    }
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
    /// Whether the guest ran when it was stopped; where absent, as it was negotiated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_state: Option<RunState>,
    /// Samples of what the disks hold that [`Prepared`] named; absent where it named none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<String>,
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
    /// See [`Negotiated`].
    Negotiated(Negotiated),
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
    Forwarded(Vec<u8>),
}

impl Message {
    /// What is wrong with it where another one is expected.
    pub(crate) fn unexpected(&self, expected: &str) -> Error {
        Error::Protocol(format!("it sent {} instead of {expected}", self.name()))
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Welcome(_) => Kind::Welcome,
            Self::Negotiate(_) => Kind::Negotiate,
            Self::Negotiated(_) => Kind::Negotiated,
            Self::Prepare => Kind::Prepare,
            Self::Prepared(_) => Kind::Prepared,
            Self::Extents(_) => Kind::Extents,
            Self::PassPlaced(_) => Kind::PassPlaced,
            Self::LastPass(_) => Kind::LastPass,
            Self::State(_) => Kind::State,
            Self::Ready(_) => Kind::Ready,
            Self::Commit => Kind::Commit,
            Self::Committed(_) => Kind::Committed,
            Self::Finish => Kind::Finish,
            Self::Failure(_) => Kind::Failure,
            Self::Ping(_) => Kind::Ping,
            Self::Pong(_) => Kind::Pong,
            Self::Resolution(_) => Kind::Resolution,
            Self::PlanEnd => Kind::PlanEnd,
            Self::Forwarded(_) => Kind::Forwarded,
        }
    }

    /// What it is called in messages.
    pub fn name(&self) -> &'static str {
        self.kind().name()
    }

    fn body(&self) -> Result<Vec<u8>, Error> {
        fn json(body: &impl Serialize) -> Result<Vec<u8>, Error> {
            serde_json::to_vec(body).map_err(|e| Error::Protocol(format!("cannot encode: {e}")))
        }
        match self {
            Self::Welcome(body) => json(body),
            Self::Negotiate(body) => json(body),
            Self::Negotiated(body) if *body == Negotiated::default() => Ok(Vec::new()),
            Self::Negotiated(body) => json(body),
            Self::Prepared(body) => json(body),
            Self::Extents(body) => json(body),
            Self::PassPlaced(body) => json(body),
            Self::LastPass(body) => json(body),
            Self::State(body) | Self::Forwarded(body) => Ok(body.clone()),
            Self::Ready(body) => json(body),
            Self::Committed(body) => json(body),
            Self::Failure(body) => json(body),
            Self::Ping(body) | Self::Pong(body) => json(body),
            Self::Resolution(body) => json(body),
            Self::Prepare | Self::Commit | Self::Finish | Self::PlanEnd => Ok(Vec::new()),
        }
    }

    /// As it travels.
    ///
    /// # Errors
    /// [`Error::Protocol`] when its body is longer than the protocol allows.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let body = self.body()?;
        let kind = self.kind();
        if body.len() > kind.longest() {
            return Err(Error::Protocol(format!(
                "{} of {} bytes is too long to send",
                self.name(),
                body.len()
            )));
        }
        let mut header = ControlHeader {
            magic: CONTROL_MAGIC.into(),
            kind: kind.number().into(),
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

    /// Kind of the frame that begins with `header`, and length of its body, once both are known to be within
    /// the limits.
    ///
    /// # Errors
    /// [`Error::Protocol`] when it is no control header.
    fn announced(header: &ControlHeader) -> Result<(Kind, usize), Error> {
        if header.magic.get() != CONTROL_MAGIC {
            return Err(Error::Protocol(
                "control connection holds no control frame".into(),
            ));
        }
        let (number, length) = (header.kind.get(), header.length.get() as usize);
        let kind = Kind::of_number(number).ok_or_else(|| unknown(number))?;
        if length > kind.longest() {
            return Err(Error::Protocol(format!(
                "control frame of kind {number} has {length} bytes, more than {}",
                kind.longest()
            )));
        }
        Ok((kind, length))
    }

    /// Length of the body that follows `header`, once that is known to be within the limits.
    ///
    /// # Errors
    /// [`Error::Protocol`] when it is no control header.
    pub fn body_len(header: &ControlHeader) -> Result<usize, Error> {
        Ok(Self::announced(header)?.1)
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
        let number = header.kind.get();
        Ok(
            match Kind::of_number(number).ok_or_else(|| unknown(number))? {
                Kind::Welcome => Self::Welcome(json(&body, "welcome")?),
                Kind::Negotiate => Self::Negotiate(json(&body, "negotiate")?),
                Kind::Negotiated if body.is_empty() => Self::Negotiated(Negotiated::default()),
                Kind::Negotiated => Self::Negotiated(json(&body, "negotiated")?),
                Kind::Prepare => Self::Prepare,
                Kind::Prepared => Self::Prepared(json(&body, "prepared")?),
                Kind::Extents => {
                    let told: Extents = json(&body, "extents")?;
                    told.check()?;
                    Self::Extents(told)
                }
                Kind::PassPlaced => Self::PassPlaced(json(&body, "pass-placed")?),
                Kind::LastPass => Self::LastPass(json(&body, "last-pass")?),
                Kind::State => Self::State(body),
                Kind::Ready => Self::Ready(json(&body, "ready")?),
                Kind::Commit => Self::Commit,
                Kind::Committed => Self::Committed(json(&body, "committed")?),
                Kind::Finish => Self::Finish,
                Kind::Failure => {
                    let told: Observation = json(&body, "failure")?;
                    Self::Failure(Box::new(told.of_peer()))
                }
                Kind::Ping => Self::Ping(json(&body, "ping")?),
                Kind::Pong => Self::Pong(json(&body, "pong")?),
                Kind::Resolution => Self::Resolution(json(&body, "resolution")?),
                Kind::PlanEnd => Self::PlanEnd,
                Kind::Forwarded => Self::Forwarded(body),
            },
        )
    }

    /// Receives the next frame, whatever it is and however long it takes: what players of a peer need.
    ///
    /// # Errors
    /// [`Error::Link`] when the connection breaks, [`Error::Protocol`] when it is no frame.
    pub fn receive(connection: &dyn Connection) -> Result<Self, Error> {
        Self::read(|bytes| connection.receive(bytes), |_| Ok(()))
    }

    /// Receives the next frame, which `may_come` allows; of any other nothing is read but its header. Once it
    /// has begun, its bytes come as fast as [`Within::bytes`] says and never stand still for longer than
    /// `still`.
    ///
    /// # Errors
    /// As of [`Message::receive`], and what `may_come` says.
    pub(crate) fn receive_in_turn(
        connection: &dyn Connection,
        still: Duration,
        may_come: impl FnOnce(Kind) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let in_time = |bytes: &mut [u8]| {
            let within = Within::bytes(bytes.len(), still);
            connection.receive_within(bytes, within)
        };
        Self::read(in_time, may_come)
    }

    fn read(
        fill: impl Fn(&mut [u8]) -> io::Result<()>,
        may_come: impl FnOnce(Kind) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let lost = |source| Error::Link {
            operation: "waiting for an answer",
            source,
        };
        let mut header = [0; CONTROL_LEN];
        fill(&mut header).map_err(lost)?;
        let header: ControlHeader = zerocopy::transmute!(header);
        let (kind, length) = Self::announced(&header)?;
        may_come(kind)?;
        let mut body = Vec::new();
        while body.len() < length {
            let at = body.len();
            body.resize(length.min(at + PIECE), 0);
            fill(&mut body[at..]).map_err(lost)?;
        }
        Self::decode(&header, body)
    }
}

fn unknown(number: u16) -> Error {
    Error::Protocol(format!("control frame of unknown kind {number}"))
}
