//! The first bytes on every connection: who connects, for which migration, and what for.

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::capabilities::Capabilities;
use super::{MIN_VERSION, VERSION, check};
use crate::error::Error;
use crate::id::MigrationId;

/// First bytes of the hello.
pub const HELLO_MAGIC: [u8; 8] = *b"vmm-migr";

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The one control connection.
    Control,
    /// A data stream of the migration with the token.
    Data {
        /// Its number, from 0.
        stream: u16,
    },
    /// Asks whether the migration was committed.
    Resolve,
    /// The control connection of a new link, of a migration whose old one was lost.
    Again,
    /// Pulls what has not come yet ([`super::pull`]).
    Pull {
        /// Which of its client's connections it is, from 0.
        lane: u16,
    },
}

const CONTROL: u16 = 1;
const DATA: u16 = 2;
const RESOLVE: u16 = 3;
// 4 is kept for the urgent connection of post-copy.
const AGAIN: u16 = 5;
const PULL: u16 = 6;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
pub(crate) struct HelloHeader {
    magic: [u8; 8],
    version: U16,
    min_version: U16,
    role: U16,
    stream: U16,
    capabilities: U64,
    id: [u8; 16],
    token: [u8; 16],
    group: [u8; 16],
    check: U64,
}

/// Length of a hello.
pub const HELLO_LEN: usize = size_of::<HelloHeader>();

/// The hello of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Newest version that the sender speaks.
    pub version: u16,
    /// Oldest version that the sender speaks.
    pub min_version: u16,
    /// What the connection is for.
    pub role: Role,
    /// The migration.
    pub id: MigrationId,
    /// The secret that the destination gave to the control connection: on data connections that of their link, on one
    /// that comes again that of the first; that of what is pulled on its connections; zero on others.
    pub token: [u8; 16],
    /// What the sender can do; nothing before version 4, where it follows from the version.
    pub capabilities: Capabilities,
}

impl Hello {
    /// A hello of this engine.
    pub fn new(role: Role, id: MigrationId, token: [u8; 16]) -> Self {
        Self {
            version: VERSION,
            min_version: MIN_VERSION,
            role,
            id,
            token,
            capabilities: Capabilities::OURS,
        }
    }

    /// The version that both sides speak, if any.
    pub fn common_version(&self) -> Option<u16> {
        let newest = self.version.min(VERSION);
        (newest >= self.min_version.max(MIN_VERSION)).then_some(newest)
    }

    /// As it travels.
    pub fn encode(&self) -> [u8; HELLO_LEN] {
        let (role, stream) = match self.role {
            Role::Control => (CONTROL, 0),
            Role::Data { stream } => (DATA, stream),
            Role::Resolve => (RESOLVE, 0),
            Role::Again => (AGAIN, 0),
            Role::Pull { lane } => (PULL, lane),
        };
        let mut header = HelloHeader {
            magic: HELLO_MAGIC,
            version: self.version.into(),
            min_version: self.min_version.into(),
            role: role.into(),
            stream: stream.into(),
            capabilities: self.capabilities.bits().into(),
            id: self.id.0,
            token: self.token,
            group: [0; 16],
            check: 0.into(),
        };
        header.check = check(&[header.as_bytes()]).into();
        zerocopy::transmute!(header)
    }

    /// Reads what a stranger sent.
    ///
    /// # Errors
    /// [`Error::Protocol`] when it is no hello.
    pub fn decode(bytes: &[u8; HELLO_LEN]) -> Result<Self, Error> {
        let mut header: HelloHeader = zerocopy::transmute!(*bytes);
        if header.magic != HELLO_MAGIC {
            return Err(Error::Protocol("the connection is no migration".into()));
        }
        let expected = header.check.get();
        header.check = 0.into();
        if check(&[header.as_bytes()]) != expected {
            return Err(Error::Protocol("hello is damaged".into()));
        }
        let role = match header.role.get() {
            CONTROL => Role::Control,
            DATA => Role::Data {
                stream: header.stream.get(),
            },
            RESOLVE => Role::Resolve,
            AGAIN => Role::Again,
            PULL => Role::Pull {
                lane: header.stream.get(),
            },
            other => return Err(Error::Protocol(format!("hello of unknown role {other}"))),
        };
        Ok(Self {
            version: header.version.get(),
            min_version: header.min_version.get(),
            role,
            id: MigrationId(header.id),
            token: header.token,
            capabilities: Capabilities::from_bits(header.capabilities.get()),
        })
    }
}
