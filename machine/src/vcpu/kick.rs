//! Bringing a vCPU thread out of the guest: `immediate_exit` and a signal (KVM API 5, `kvm_run`).

// `immediate_exit` lies in a mapping that the vCPU thread uses at the same time.
#![allow(unsafe_code)]

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// The `immediate_exit` byte of a vCPU's `kvm_run`; valid as long as the vCPU's descriptor.
#[derive(Clone)]
pub(super) struct ImmediateExit(*const AtomicU8);

// SAFETY: the pointer is only used for atomic loads and stores.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    /// Finds the byte; the caller keeps `fd` alive for as long as the result is used.
    pub(super) fn of(fd: &mut VcpuFd) -> Self {
        Self(std::ptr::from_mut(&mut fd.get_kvm_run().immediate_exit).cast::<AtomicU8>())
    }

    /// Makes the next entry into the guest return at once, pending I/O completed.
    pub(super) fn set(&self) {
        self.store(1);
    }

    /// Lets the next entry run the guest.
    pub(super) fn clear(&self) {
        self.store(0);
    }

    fn store(&self, value: u8) {
        // SAFETY: the byte lies in the vCPU's `kvm_run` mapping, which `VcpuSet` keeps as long as
        // its threads; all sides access it atomically or, in the kernel, by READ_ONCE.
        unsafe { &*self.0 }.store(value, Ordering::SeqCst);
    }
}

/// The signal that interrupts `KVM_RUN`.
pub(super) fn signal() -> i32 {
    SIGRTMIN()
}

/// Installs the handler of [`signal`]: it does nothing, for the interruption is all that is wanted.
pub(super) fn install_handler() -> io::Result<()> {
    extern "C" fn ignore(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            register_signal_handler(signal(), ignore).map_err(vmm_sys_util::errno::Error::errno)
        })
        .map_err(io::Error::from_raw_os_error)
}
