//! Control frames: a header and a body, JSON except for the machine state and what is said of blocks.

use std::io;
use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use super::body::{
    Answer, Committed, Extents, Intent, LastPass, MAX_EXTENTS, MAX_WARNINGS, Negotiate, Negotiated,
    PassPlaced, PlacedSoFar, Prepared, Ready, Saved, WHOLE_PASS, Welcome,
};
use super::check;
pub use super::digests::{BlockDigests, BlocksPresent, SomeBlocks};
use super::kind::Kind;
pub use super::kind::MAX_FORWARDED;
pub use super::left::{BlocksLeft, LEFT_WORDS};
use crate::error::Error;
use crate::observation::Observation;
pub use crate::resolution::Resolution;
use crate::transport::{Connection, Within};

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
    /// See [`BlockDigests`].
    BlockDigests(BlockDigests),
    /// See [`BlocksPresent`].
    BlocksPresent(BlocksPresent),
    /// See [`BlocksLeft`].
    BlocksLeft(BlocksLeft),
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
            Self::BlockDigests(_) => Kind::BlockDigests,
            Self::BlocksPresent(_) => Kind::BlocksPresent,
            Self::BlocksLeft(_) => Kind::BlocksLeft,
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
            Self::BlockDigests(body) => Ok(body.body()),
            Self::BlocksPresent(body) => Ok(body.body()),
            Self::BlocksLeft(body) => Ok(body.body()),
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
                Kind::BlockDigests => Self::BlockDigests(BlockDigests::read(&body)?),
                Kind::BlocksPresent => Self::BlocksPresent(BlocksPresent::read(&body)?),
                Kind::BlocksLeft => Self::BlocksLeft(BlocksLeft::read(&body)?),
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
