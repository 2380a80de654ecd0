//! KVM as this VMM uses it: opening it, what it must be able to do, and the ioctls that the
//! kvm-ioctls crate does not wrap.

pub mod ioctl;
pub mod slots;
pub mod tsc;

use std::io;

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_XSAVE2,
    KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, kvm_enable_cap,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use thiserror::Error;

/// Why KVM cannot be used.
#[derive(Debug, Error)]
pub enum KvmError {
    /// There is no KVM device.
    #[error(
        "/dev/kvm does not exist: load kvm_intel, kvm_amd or kvm_pvm, or run on a host with KVM"
    )]
    Missing,
    /// The device may not be opened.
    #[error("/dev/kvm may not be opened: add this user to group kvm, or run as root")]
    Denied,
    /// It cannot be opened for another reason.
    #[error("cannot open /dev/kvm")]
    Open(#[source] io::Error),
    /// The interface is not the stable one.
    #[error("/dev/kvm speaks API version {0}, not {KVM_API_VERSION}")]
    Version(i32),
    /// A needed capability is missing.
    #[error("this host's KVM lacks {0}")]
    Capability(&'static str),
    /// A VM could not be made.
    #[error("cannot create a VM")]
    CreateVm(#[source] io::Error),
    /// A capability could not be turned on.
    #[error("cannot enable {0}")]
    Enable(&'static str, #[source] io::Error),
}

impl KvmError {
    /// Stable identifier of the condition; `host.*` means that the host lacks something.
    pub fn id(&self) -> &'static str {
        match self {
            Self::Missing => "host.no-kvm",
            Self::Denied => "host.kvm-denied",
            Self::Open(_) | Self::Version(_) | Self::Capability(_) => "host.kvm-unfit",
            Self::CreateVm(_) | Self::Enable(..) => "kvm.create-vm",
        }
    }
}

/// An errno of kvm-ioctls as an [`io::Error`].
pub fn os_error(e: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(e.errno())
}

/// Opens `/dev/kvm` and checks that it can do what a machine needs.
///
/// # Errors
/// When the device is missing, may not be opened or lacks a capability.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|e| match e.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Missing,
        libc::EACCES | libc::EPERM => KvmError::Denied,
        _ => KvmError::Open(os_error(e)),
    })?;
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(KvmError::Version(version));
    }
    for (cap, name) in [
        (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
        (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
        (Cap::Irqfd, "KVM_CAP_IRQFD"),
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::Pit2, "KVM_CAP_PIT2"),
        (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
        (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
        (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
        (Cap::Xcrs, "KVM_CAP_XCRS"),
        (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
        (Cap::MpState, "KVM_CAP_MP_STATE"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(KvmError::Capability(name));
        }
    }
    if kvm.check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into()) <= 0 {
        return Err(KvmError::Capability("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"));
    }
    Ok(kvm)
}

/// Creates a VM whose dirty log is protected by hand (KVM API 7.12: a page counts as dirty until
/// [`ioctl::clear_dirty_log`] write-protects it again).
///
/// # Errors
/// When the kernel refuses.
pub fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    let vm = loop {
        match kvm.create_vm() {
            Ok(vm) => break vm,
            // KVM_CREATE_VM is interruptible.
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(KvmError::CreateVm(os_error(e))),
        }
    };
    // Initially-set makes turning the log on cheap: nothing is write-protected until it is cleared,
    // and the first pass sends everything anyway.
    let modes = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
    let supported = kvm
        .check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into())
        .max(0) as u32;
    let cap = kvm_enable_cap {
        cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
        args: [u64::from(modes & supported), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&cap)
        .map_err(|e| KvmError::Enable("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", os_error(e)))?;
    Ok(vm)
}

/// The area that holds a vCPU's FPU and vector state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XsaveArea {
    /// `struct kvm_xsave`: this KVM has no larger one.
    Fixed,
    /// As many bytes by `KVM_GET_XSAVE2`; at least those of `struct kvm_xsave`.
    Sized(usize),
}

impl XsaveArea {
    /// What this VM's vCPUs have (KVM API 4.134, `KVM_CAP_XSAVE2`).
    pub fn of(vm: &VmFd) -> Self {
        Self::sized(vm.check_extension_raw(KVM_CAP_XSAVE2.into()))
    }

    /// What vCPUs have on this host.
    pub fn of_host(kvm: &Kvm) -> Self {
        Self::sized(kvm.check_extension_raw(KVM_CAP_XSAVE2.into()))
    }

    fn sized(size: i32) -> Self {
        match usize::try_from(size) {
            Ok(size) if size > 0 => Self::Sized(size.max(Self::Fixed.size())),
            _ => Self::Fixed,
        }
    }

    /// Its length in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::Fixed => size_of::<kvm_bindings::kvm_xsave>(),
            Self::Sized(size) => size,
        }
    }
}
