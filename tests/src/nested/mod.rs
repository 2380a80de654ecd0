//! A host with hardware virtualization, on any machine: this one where its KVM is `kvm_intel` or `kvm_amd`
//! ([`direct`]); elsewhere QEMU in pure emulation carries an AMD CPU with SVM ([`level1`]), and a stock Debian kernel
//! in it offers `/dev/kvm`. There our binary runs stock kernels as its guests ([`level2`]).

pub mod cpio;
pub mod direct;
pub mod image;
pub mod level1;
pub mod level2;
pub mod modules;
pub mod outcome;
pub mod payload;
pub mod rig;
pub mod run;
