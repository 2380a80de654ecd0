//! What can go wrong with a disk that is served.

use std::io;
use std::path::PathBuf;

use migration::observation::{Observation, Side};
use thiserror::Error;

/// An operation on a disk that is served, or on its record, that failed.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The image cannot be used.
    #[error("cannot serve the image")]
    Image(#[source] block::Error),
    /// What whoever tests this program asked for cannot be had.
    #[error("cannot lay over the image what was asked for")]
    Debug(#[source] Box<Observation>),
    /// A record cannot be read or written.
    #[error("cannot {operation} the record {}", path.display())]
    Record {
        /// What was to be done.
        operation: &'static str,
        /// Where it lies.
        path: PathBuf,
        /// Why it cannot be done.
        source: io::Error,
    },
    /// The image is not what its record says.
    #[error("{} is served as disk {disk} of {size} bytes, and is another now: {what}", path.display())]
    Another {
        /// The image.
        path: PathBuf,
        /// The disk of the record.
        disk: String,
        /// Its size in bytes.
        size: u64,
        /// What differs.
        what: String,
    },
    /// A process serves it.
    #[error("{} is served by process {pid} already", path.display())]
    Served {
        /// The image.
        path: PathBuf,
        /// Who serves it.
        pid: u32,
    },
    /// Somebody depends on it.
    #[error(
        "{} is needed by {client}, which lacks some of it: its guest moves on when that is released (vmm disk serve --list)",
        path.display()
    )]
    Needed {
        /// The image.
        path: PathBuf,
        /// Who does.
        client: String,
    },
    /// The guest that was to leave it has not.
    #[error(
        "{} was to be served when its guest had gone, and that has stayed here, or has been run from it since: there is nobody \
         to serve it to",
        path.display()
    )]
    Stayed {
        /// The image.
        path: PathBuf,
    },
    /// Which part of its disk it holds cannot be told.
    #[error("cannot serve an image that holds a part of its disk alone")]
    InPart(#[source] Box<Observation>),
    /// A part of its disk is elsewhere.
    #[error(
        "{} holds a part of its disk alone: vmm disk pull {} brings the rest, and vmm migrate serves such an image when its guest \
         goes on",
        path.display(), path.display()
    )]
    NotWhole {
        /// The image.
        path: PathBuf,
    },
    /// There is no record.
    #[error("{} is not served, and was not", path.display())]
    NoRecord {
        /// The image.
        path: PathBuf,
    },
    /// The server cannot go on.
    #[error("cannot serve the disk any more")]
    Server(#[source] Box<Observation>),
}

impl ServeError {
    /// Stable identifier of the condition.
    pub fn id(&self) -> &'static str {
        match self {
            Self::Image(_) => "disk.open",
            Self::Debug(_) => "usage.debug",
            Self::Record { .. } => "serve.record",
            Self::Another { .. } => "serve.another",
            Self::Served { .. } => "serve.in-use",
            Self::Needed { .. } => "serve.needed",
            Self::Stayed { .. } => "serve.stayed",
            Self::InPart(_) | Self::NotWhole { .. } => "disk.in-part",
            Self::NoRecord { .. } => "serve.no-record",
            Self::Server(_) => "serve.failed",
        }
    }

    /// The error and what explains it.
    pub fn observe(&self) -> Observation {
        match self {
            Self::Server(cause) | Self::Debug(cause) | Self::InPart(cause) => {
                Observation::new(Side::Client, self.id(), self.to_string())
                    .caused_by((**cause).clone())
            }
            _ => Observation::from_error(Side::Client, self.id(), self),
        }
    }
}
