//! What can go wrong in a migration, named after the operation that failed.

use std::io;
use std::time::Duration;

use crate::id::{HostId, MigrationId};
use crate::journal::JournalError;
use crate::observation::{Observation, Side};

/// A failed operation of the engine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The destination cannot be reached.
    #[error("cannot connect to {address}")]
    Connect {
        /// Where to.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// New connections cannot be taken in.
    #[error("cannot accept connections on {address}")]
    Accept {
        /// Where.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// A connection broke.
    #[error("lost the connection to the peer while {operation}")]
    Link {
        /// What was being done.
        operation: &'static str,
        /// How it broke.
        source: io::Error,
    },
    /// The link stands but the peer says nothing.
    #[error("the peer has not answered for {0:?}")]
    PeerSilent(Duration),
    /// The link was lost, and no new one came about.
    #[error("the link was lost, and no new one was made within {waited:?}")]
    NotReconnected {
        /// How long it was tried, or waited for.
        waited: Duration,
        /// How it was lost.
        lost: Box<Error>,
        /// What the last attempt came to, at the source.
        last: Option<Box<Error>>,
    },
    /// The peer lives but does not go on.
    #[error("the peer lives, but has sent nothing of the migration for {0:?}")]
    NoProgress(Duration),
    /// An answer did not come in time.
    #[error("no answer within {waited:?} while {operation}")]
    NoAnswer {
        /// What was being done.
        operation: &'static str,
        /// How long.
        waited: Duration,
    },
    /// The peer sent what the protocol does not allow.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    /// The peer reported a failure.
    #[error("the {} failed", .0.side.name())]
    Peer(#[source] Box<Observation>),
    /// The VM could not do what it was asked.
    #[error("cannot {operation}")]
    Vm {
        /// What it was asked.
        operation: &'static str,
        /// Why it could not.
        source: Box<Observation>,
    },
    /// RAM is not laid out as the machine description says.
    #[error("guest RAM at {gpa:#x} is not laid out as described")]
    RamLayout {
        /// Where they differ.
        gpa: u64,
    },
    /// Disks are to travel, and the destination takes none.
    #[error(
        "the destination is of a version that takes no disks: move the guest with its disks on shared storage, or \
         update vmm there"
    )]
    NoVolumes,
    /// More is said of a disk that travels than the destination knows.
    #[error(
        "the destination is of a version that knows nothing of {wanted} for disk {id}: leave that out, or update vmm there"
    )]
    NoDiskTerms {
        /// The disk.
        id: String,
        /// What is said of it.
        wanted: &'static str,
    },
    /// A disk is to go on demand, and the destination knows nothing of that.
    #[error(
        "the destination is of a version that takes no disk on demand, as {id} is to go: have it go by precopy or mirror, or \
         update vmm there"
    )]
    NoOnDemand {
        /// The disk.
        id: String,
    },
    /// The destination takes a disk only as a whole, before or after its guest.
    #[error(
        "the destination is of a version that cannot fetch the rest of disk {id} when its guest is there: leave out --on-timeout \
         on-demand, or update vmm there"
    )]
    NoDiskRests {
        /// The disk.
        id: String,
    },
    /// A part of a disk that is to go on demand is at yet another host, and the destination knows nothing of that.
    #[error(
        "the destination is of a version that takes no disk of which a part is elsewhere, as of {id}: wait until it is whole \
         (vmm status tells), or update vmm there"
    )]
    NoChain {
        /// The disk.
        id: String,
    },
    /// Disks that travel are not as they were agreed on.
    #[error("the disks that travel are not those that were agreed on")]
    Volumes,
    /// The state is larger than the protocol carries.
    #[error("machine state of {len} bytes exceeds the limit of {limit}")]
    StateTooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// Both sides' digests differ.
    #[error("memory at the destination differs from the source: digest {theirs}, expected {ours}")]
    DigestMismatch {
        /// The source's.
        ours: String,
        /// The destination's.
        theirs: String,
    },
    /// The decision cannot be recorded.
    #[error("cannot record the decision")]
    Journal(#[from] JournalError),
    /// The hand-over was already decided otherwise.
    #[error("migration {id} was given up here before its commit arrived")]
    GivenUp {
        /// Its identifier.
        id: String,
    },
    /// Someone answers who was not given the guest.
    #[error(
        "the guest was given to host {expected}, but {} answers at {address}",
        answering(.answered)
    )]
    WrongHost {
        /// Where was asked.
        address: String,
        /// Who was given the guest.
        expected: HostId,
        /// Who answered; `None` when it does not tell.
        answered: Option<HostId>,
    },
    /// There is no record of a migration that is asked about.
    #[error("there is no record of migration {id} here, nor of whom its guest was given to")]
    NoRecord {
        /// Its identifier.
        id: MigrationId,
    },
    /// The total time ran out.
    #[error("not finished within {0:?}")]
    TimedOut(Duration),
    /// Someone asked to stop.
    #[error("cancelled on request")]
    Cancelled,
    /// There is no guest any more that could be moved.
    #[error("the guest ended while it was being migrated")]
    GuestEnded(#[source] Box<Observation>),
    /// A thread of the engine ended unexpectedly.
    #[error("a worker of the engine ended unexpectedly")]
    Worker,
    /// No thread can be had.
    #[error("cannot start a thread for {what}")]
    Thread {
        /// What it was for.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The system has no random numbers.
    #[error("cannot make a secret")]
    Random(#[source] io::Error),
}

/// Whether the other end, or something between, has ended the connection: so it looks when its
/// process was killed.
fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    )
}

fn answering(answered: &Option<HostId>) -> String {
    match answered {
        Some(host) => format!("host {host}"),
        None => "a host that does not say which it is".into(),
    }
}

impl Error {
    /// Stable identifier of the condition.
    pub fn id(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "migration.connect",
            Self::Accept { .. } => "migration.accept",
            Self::Link { .. } => "migration.peer-lost",
            Self::PeerSilent(_) => "migration.peer-silent",
            Self::NotReconnected { .. } => "migration.not-reconnected",
            Self::NoProgress(_) => "migration.no-progress",
            Self::NoAnswer { .. } => "migration.no-answer",
            Self::Protocol(_) => "migration.protocol",
            Self::Peer(_) => "migration.peer-failed",
            Self::Vm { .. } => "migration.vm",
            Self::RamLayout { .. } => "migration.ram-layout",
            Self::NoVolumes => "migration.no-volumes",
            Self::NoDiskTerms { .. } => "migration.no-disk-terms",
            Self::NoOnDemand { .. } => "migration.no-on-demand",
            Self::NoDiskRests { .. } => "migration.no-disk-rests",
            Self::NoChain { .. } => "migration.no-chain",
            Self::Volumes => "migration.volumes",
            Self::StateTooLarge { .. } => "migration.state-too-large",
            Self::DigestMismatch { .. } => "migration.digest-mismatch",
            Self::Journal(_) => "migration.journal",
            Self::GivenUp { .. } => "migration.given-up",
            Self::WrongHost { .. } => "migration.wrong-host",
            Self::NoRecord { .. } => "migration.no-record",
            Self::TimedOut(_) => "migration.timed-out",
            Self::Cancelled => "migration.cancelled",
            Self::GuestEnded(_) => "guest.ended",
            Self::Worker => "migration.worker",
            Self::Thread { .. } => "migration.thread",
            Self::Random(_) => "migration.random",
        }
    }

    /// Whether the other end of a connection is the likely cause, so that its own account of what
    /// went wrong is worth waiting for. What this host denied, no peer explains: it waits for us to.
    pub(crate) fn may_be_explained_by_peer(&self) -> bool {
        match self {
            Self::Link { source, .. } | Self::Connect { source, .. } => {
                source.kind() != io::ErrorKind::PermissionDenied
            }
            _ => false,
        }
    }

    /// Whether it may be the link alone that is lost, so that a new one may help.
    pub(crate) fn is_lost_link(&self) -> bool {
        match self {
            Self::Link { source, .. } => source.kind() != io::ErrorKind::PermissionDenied,
            Self::PeerSilent(_) => true,
            _ => false,
        }
    }

    /// The error and what explains it, as an observation made on `side`.
    pub fn observe(&self, side: Side) -> Observation {
        let observation = Observation::new(side, self.id(), self.to_string());
        if let Self::NotReconnected { lost, last, .. } = self {
            let told = observation.caused_by(lost.observe(side));
            return match last {
                Some(last) => told.caused_by(last.observe(side)),
                None => told,
            };
        }
        let cause = match self {
            Self::Peer(cause) | Self::Vm { source: cause, .. } | Self::GuestEnded(cause) => {
                Some((**cause).clone())
            }
            Self::Link { source, .. } if is_closed(source) => Some(Observation::new(
                side,
                "link.closed",
                "the connection was closed by the peer, or with its process",
            )),
            _ => return Observation::from_error(side, self.id(), self),
        };
        match cause {
            Some(cause) => observation.caused_by(cause),
            None => observation,
        }
    }

    pub(crate) fn vm(operation: &'static str) -> impl FnOnce(Observation) -> Self {
        move |source| Self::Vm {
            operation,
            source: Box::new(source),
        }
    }

    pub(crate) fn link(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Link { operation, source }
    }
}
