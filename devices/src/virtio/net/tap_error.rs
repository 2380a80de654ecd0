//! Why a tap interface cannot be used, and what its user can do about it.

use std::io;

/// Why an interface cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// No interface has such a name.
    #[error(
        "{0:?} is no name of an interface: 1 to 15 letters, digits and signs, without / and spaces"
    )]
    Name(String),
    /// There is none of this name.
    #[error("there is no interface {0}: make it with `ip tuntap add dev {0} mode tap`")]
    Missing(String),
    /// It exists and is no tap.
    #[error("interface {0} is no tap")]
    NoTap(String),
    /// It was made for one pair of queues.
    #[error(
        "tap {0} has one queue: make it with `ip tuntap add dev {0} mode tap multi_queue` to have more"
    )]
    OneQueue(String),
    /// Somebody has it.
    #[error("tap {0} is in use by another process")]
    Busy(String),
    /// It may not be used by this user.
    #[error(
        "tap {0} belongs to another user: make it with `ip tuntap add dev {0} mode tap user USER`"
    )]
    Denied(String),
    /// It is down, so that nothing would come through.
    #[error("tap {0} is down: `ip link set {0} up`")]
    Down(String),
    /// Its packets are smaller than those that the guest sends.
    #[error("tap {interface} has an MTU of {mtu}, the guest one of {wanted}")]
    Mtu {
        /// Name of the interface.
        interface: String,
        /// What it carries.
        mtu: u16,
        /// What the guest was told.
        wanted: u16,
    },
    /// This host's kernel cannot do what the guest relies on.
    #[error("tap {interface} has offloads {have:#x}, the guest uses {wanted:#x}")]
    Offloads {
        /// Name of the interface.
        interface: String,
        /// What it can do.
        have: u32,
        /// What the guest may use.
        wanted: u32,
    },
    /// A call of the kernel failed.
    #[error("{operation} tap {interface}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// Name of the interface.
        interface: String,
        /// Cause.
        source: io::Error,
    },
}
