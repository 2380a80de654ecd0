//! Black-box tests that drive the `vmm` binary from outside, and what they share: finding the binary,
//! hosts to run it on, waiting for conditions, and the machine that carries a real `kvm_amd`.

pub mod binary;
pub mod blackbox;
pub mod disk_judge;
pub mod eventually;
pub mod host;
pub mod imports;
pub mod kernel;
pub mod last_version;
pub mod matrix;
pub mod nested;
pub mod network;
pub mod probe;
pub mod process;
pub mod skip;
pub mod target;
#[path = "../../resources/probe/src/units/mod.rs"]
pub mod units;
pub mod unprivileged;

pub use eventually::eventually;
pub use host::Host;
pub use unprivileged::Unprivileged;
