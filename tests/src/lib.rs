//! Black-box tests that drive the `vmm` binary from outside.

pub mod probe;
