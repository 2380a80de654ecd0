//! A machine with a real `kvm_amd`, on any machine: QEMU in pure emulation carries an AMD CPU with SVM
//! (level 1), a stock Debian kernel in it offers `/dev/kvm`, and our binary runs the same stock kernel
//! there as its guest (level 2).

pub mod cpio;
pub mod image;
pub mod level1;
pub mod level2;
pub mod modules;
pub mod outcome;
pub mod rig;
