//! What can go wrong with a machine.

use std::io;
use std::path::PathBuf;

use migration::observation::{Observation, Side};
use thiserror::Error;

use crate::boot::BootError;
use crate::cpuid::{CpuidError, Unavailable};
use crate::kvm::KvmError;
use crate::memory::MemoryError;
use crate::snapshot::codec::CodecError;
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
    /// The state is of another machine.
    #[error("saved state does not fit the machine: {0}")]
    Mismatch(String),
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
            Self::Disk { .. } => "disk.open",
            Self::Claim { .. } => "disk.claim",
            Self::DiskSize { .. } => "disk.size",
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
            Self::Vcpu(..) | Self::State(..) | Self::Codec(_) | Self::Mismatch(_) => {
                "machine.state"
            }
        }
    }

    /// The observation that `side` makes of it.
    pub fn observed(&self, side: Side) -> Observation {
        Observation::from_error(side, self.id(), self)
    }
}
