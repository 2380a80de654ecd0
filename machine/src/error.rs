//! What can go wrong with a machine.

use std::io;
use std::path::PathBuf;

use migration::observation::{Observation, Side};
use thiserror::Error;

use crate::boot::BootError;
use crate::cpuid::{CpuidError, Unavailable};
use crate::kvm::KvmError;
use crate::memory::MemoryError;
use crate::opener::Closed;
use crate::snapshot::agreement::Disagreement;
use crate::snapshot::codec::CodecError;
use crate::snapshot::saved::SavedError;
use crate::vcpu::state::VcpuStateError;

/// An operation on a machine that failed.
#[derive(Debug, Error)]
pub enum MachineError {
    /// KVM cannot be used.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest RAM cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// This host's KVM cannot run such a kernel.
    #[error("{0}")]
    Unfit(String),
    /// CPUID cannot be made.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// This host lacks what the CPU model needs.
    #[error(transparent)]
    CpuModel(#[from] Unavailable),
    /// KVM refused a step of building.
    #[error("cannot {0}")]
    Build(&'static str, #[source] io::Error),
    /// A disk cannot be used.
    #[error("cannot use disk {id} at {path}")]
    Disk {
        /// Identity of the disk.
        id: String,
        /// Its path.
        path: PathBuf,
        /// What the block layer says.
        source: block::Error,
    },
    /// The machine has no such disk.
    #[error("the VM has no disk {id}")]
    NoDisk {
        /// What was asked for.
        id: String,
    },
    /// A disk's claim cannot change hands.
    #[error("disk {id}")]
    Claim {
        /// Identity of the disk.
        id: String,
        /// What the block layer says.
        source: block::Error,
    },
    /// The disk at the destination is not the source's.
    #[error("disk {id} at {path} has {found} bytes, the source's has {expected}")]
    DiskSize {
        /// Identity of the disk.
        id: String,
        /// Its path here.
        path: PathBuf,
        /// Bytes at the source.
        expected: u64,
        /// Bytes here.
        found: u64,
    },
    /// The image at the destination is not the guest's disk.
    #[error("disk {id} at {path} is not the guest's: {why}")]
    AnotherDisk {
        /// Identity of the disk.
        id: String,
        /// Its path here.
        path: PathBuf,
        /// How that is known.
        why: String,
    },
    /// The guest whose disk this image was is elsewhere, or may be.
    #[error("disk {id}: {path} may be out of date, {why}; to use it all the same, say --use-stale")]
    StaleDisk {
        /// Identity of the disk.
        id: String,
        /// Its path.
        path: PathBuf,
        /// What is known of where the guest is.
        why: String,
    },
    /// The image may hold a part of the disk alone.
    #[error(
        "disk {id}: {path} may hold a part of it alone, as it was moved there on demand and the rest had not come: vmm disk \
         pull {path} brings that, without a guest"
    )]
    DiskInPart {
        /// Identity of the disk.
        id: String,
        /// Its path.
        path: PathBuf,
    },
    /// It does, and what it lacks cannot be had.
    #[error("disk {id} lacks a part, which cannot be had")]
    DiskRest {
        /// Identity of the disk.
        id: String,
        /// Why.
        source: Box<Observation>,
    },
    /// The image at the destination holds something else than the guest's disk.
    #[error(
        "disk {id} at {path} is a copy, not the guest's: at byte {offset} it holds something else"
    )]
    AnotherContent {
        /// Identity of the disk.
        id: String,
        /// Its path here.
        path: PathBuf,
        /// First byte of a block that differs.
        offset: u64,
    },
    /// It cannot be told by their content whether disks are the guest's.
    #[error("samples of the disks cannot be compared")]
    Samples(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A network interface cannot be used.
    #[error("cannot use network interface {id}")]
    Net {
        /// Identity of the interface.
        id: String,
        /// What is the matter with its tap.
        source: devices::virtio::net::TapError,
    },
    /// A device cannot be made or loaded.
    #[error("device {id}")]
    Device {
        /// Which device.
        id: String,
        /// What it says.
        source: devices::Error,
    },
    /// There are more devices than slots.
    #[error("there are more virtio devices than slots")]
    TooManyDevices,
    /// A vCPU's state cannot be saved or loaded.
    #[error("vCPU {0}")]
    Vcpu(u32, #[source] VcpuStateError),
    /// A part of the VM's state cannot be saved or loaded.
    #[error("cannot {0}")]
    State(&'static str, #[source] io::Error),
    /// The state blob cannot be written or read.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A component of the state cannot be written or read.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// The other side cannot read what this one writes, or the other way round.
    #[error("the two sides do not agree on how the state is written")]
    Disagreement(#[from] Disagreement),
    /// The state is of another machine.
    #[error("saved state does not fit the machine: {0}")]
    Mismatch(String),
}

impl From<Closed> for MachineError {
    fn from(closed: Closed) -> Self {
        Self::Build("open what the guest needs", closed.into())
    }
}

impl MachineError {
    /// Stable identifier of the condition.
    pub fn id(&self) -> &'static str {
        match self {
            Self::Kvm(e) => e.id(),
            Self::Memory(_) => "machine.memory",
            Self::Boot(_) => "boot.kernel",
            Self::Unfit(_) => "guest.not-runnable",
            Self::Cpuid(_) => "machine.cpuid",
            Self::CpuModel(_) => "host.cpu-model",
            Self::Build(..) => "machine.build",
            Self::Disk {
                source: block::Error::Qcow2 { .. },
                ..
            } => "disk.format",
            Self::Disk { .. } => "disk.open",
            Self::NoDisk { .. } => "disk.unknown",
            Self::Claim { .. } => "disk.claim",
            Self::DiskSize { .. } => "disk.size",
            Self::AnotherDisk { .. } => "disk.another",
            Self::StaleDisk { .. } => "disk.stale",
            Self::DiskInPart { .. } | Self::DiskRest { .. } => "disk.in-part",
            Self::AnotherContent { .. } => "disk.content",
            Self::Samples(_) => "disk.samples",
            Self::Device {
                source: devices::Error::Hangs { .. },
                ..
            } => "disk.hangs",
            Self::Device {
                source: devices::Error::Flush { .. },
                ..
            } => "disk.flush",
            Self::Net { .. } => "net.open",
            Self::Device { .. } | Self::TooManyDevices => "machine.device",
            Self::Disagreement(_) => "negotiate.state",
            Self::Vcpu(..)
            | Self::State(..)
            | Self::Codec(_)
            | Self::Saved(_)
            | Self::Mismatch(_) => "machine.state",
        }
    }

    /// The observation that `side` makes of it.
    pub fn observed(&self, side: Side) -> Observation {
        Observation::from_error(side, self.id(), self)
    }
}
