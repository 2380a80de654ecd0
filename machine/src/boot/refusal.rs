//! Says in one sentence why KVM cannot run a guest.
//!
//! `kvm_pvm` runs a guest's kernel by an instruction emulator that knows integer code and little
//! else. A stock kernel ends there in an emulation failure, a triple fault or a `vmcall` that never
//! returns; the user is told which, and what would run it.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{EntryPoint, instruction};

/// Longest x86 instruction.
const MAX_INSTRUCTION: usize = 15;

/// The KVM module that runs guests on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvmBackend {
    /// Hardware virtualization by Intel VMX.
    Intel,
    /// Hardware virtualization by AMD SVM.
    Amd,
    /// Software virtualization on hosts without either.
    Pvm,
    /// None that is known.
    Unknown,
}

impl KvmBackend {
    /// The backend of this host, by the modules that its kernel has.
    pub fn detect() -> Self {
        Self::detect_in(Path::new("/sys/module"))
    }

    /// Whether guests run by software virtualization, on the host's own TSC.
    pub fn is_pvm(self) -> bool {
        self == Self::Pvm
    }

    fn detect_in(modules: &Path) -> Self {
        [Self::Pvm, Self::Amd, Self::Intel]
            .into_iter()
            .find(|backend| modules.join(backend.to_string()).is_dir())
            .unwrap_or(Self::Unknown)
    }
}

impl fmt::Display for KvmBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Intel => "kvm_intel",
            Self::Amd => "kvm_amd",
            Self::Pvm => "kvm_pvm",
            Self::Unknown => "unknown",
        })
    }
}

/// What would run the guest instead.
const NEEDED: &str = "a host with kvm_intel or kvm_amd is needed, or a guest made for kvm_pvm, \
                      such as the built-in probe";

/// Why there is no point in starting the kernel on this backend; `None` where there may be.
///
/// A bzImage unpacks itself before anything else. Emulated, that takes minutes without a sign of
/// life, and what comes out is a kernel that stops at the next unknown instruction.
pub fn refuse_before_start(entry: &EntryPoint, backend: KvmBackend) -> Option<String> {
    match (backend, entry) {
        (KvmBackend::Pvm, EntryPoint::Linux64 { .. }) => Some(format!(
            "this host's KVM backend (kvm_pvm) cannot run this kernel: a Linux bzImage unpacks \
             itself in kernel mode, where kvm_pvm emulates it for minutes, and a stock kernel \
             then executes cmpxchg16b, int3 and popcnt, which kvm_pvm does not emulate; {NEEDED}"
        )),
        _ => None,
    }
}

/// Explains an emulation failure (`KVM_EXIT_INTERNAL_ERROR`, suberror 1; KVM API 5).
///
/// `bytes` begin with the instruction at `rip`, as the exit carries them or as they were read from
/// guest memory; they may be empty.
pub fn describe_emulation_failure(bytes: &[u8], rip: u64, backend: KvmBackend) -> String {
    let what = describe_instruction(bytes);
    match backend {
        KvmBackend::Pvm => format!(
            "this host's KVM backend (kvm_pvm) cannot run this kernel: it executes {what} at \
             {rip:#x} in kernel mode, which kvm_pvm does not emulate; {NEEDED}"
        ),
        KvmBackend::Intel | KvmBackend::Amd | KvmBackend::Unknown => format!(
            "KVM cannot emulate {what} at {rip:#x} (backend {backend}): the guest touches device \
             memory with it, or executes what is not code"
        ),
    }
}

/// Explains `KVM_EXIT_SHUTDOWN`: a fault while a double fault was being delivered, at `rip` if KVM kept
/// that.
pub fn describe_shutdown(rip: Option<u64>, backend: KvmBackend) -> String {
    let place = match rip {
        Some(rip) => format!(" at {rip:#x}"),
        None => ", where is not known because KVM has reset the vCPU".to_owned(),
    };
    match backend {
        KvmBackend::Pvm => format!(
            "the guest ended in a triple fault{place}: it has a defect, or its kernel relies on \
             something that this host's KVM backend (kvm_pvm) does not offer; a stock kernel does: \
             {NEEDED}"
        ),
        KvmBackend::Intel | KvmBackend::Amd | KvmBackend::Unknown => {
            format!("the guest ended in a triple fault{place} (KVM backend {backend})")
        }
    }
}

/// Explains a vCPU whose `rip` stays at one instruction although it runs; `None` where that
/// instruction is not known to hang. The vCPU thread is inside `KVM_RUN` then and leaves it only
/// by a signal.
pub fn describe_hang(bytes: &[u8], rip: u64, backend: KvmBackend) -> Option<String> {
    let name = instruction::name(bytes)?;
    let hangs = backend == KvmBackend::Pvm && matches!(name.as_str(), "vmcall" | "vmmcall");
    hangs.then(|| {
        format!(
            "this host's KVM backend (kvm_pvm) cannot run this kernel: it executes {} at {rip:#x} \
             in kernel mode, which never returns there; {NEEDED}",
            describe_instruction(bytes)
        )
    })
}

/// `popcnt (f3 0f b8 c7)`; the bytes where the instruction has no name here.
fn describe_instruction(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(MAX_INSTRUCTION)];
    if bytes.is_empty() {
        return "an instruction that cannot be read".to_owned();
    }
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let hex = hex.join(" ");
    match instruction::name(bytes) {
        Some(name) => format!("{name} (bytes {hex})"),
        None => format!("the instruction with the bytes {hex}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instruction_the_address_and_the_way_out_are_named() {
        let text = describe_emulation_failure(
            &[0xf3, 0x48, 0x0f, 0xb8, 0xc7],
            0xffff_ffff_8100_0000,
            KvmBackend::Pvm,
        );
        for part in [
            "(kvm_pvm) cannot run this kernel",
            "popcnt (bytes f3 48 0f b8 c7) at 0xffffffff81000000",
            "kvm_intel or kvm_amd is needed",
            "built-in probe",
        ] {
            assert!(text.contains(part), "{text:?} does not say {part:?}");
        }
        assert!(!text.contains('\n'));
    }

    #[test]
    fn unknown_and_absent_bytes_are_told_as_such() {
        let unknown = describe_emulation_failure(&[0x90], 0x1000, KvmBackend::Amd);
        assert!(unknown.contains("the bytes 90 at 0x1000"), "{unknown}");
        assert!(unknown.contains("kvm_amd"), "{unknown}");
        let absent = describe_emulation_failure(&[], 0x1000, KvmBackend::Pvm);
        assert!(absent.contains("cannot be read at 0x1000"), "{absent}");
        let long = describe_emulation_failure(&[0x66; 4096], 0, KvmBackend::Intel);
        assert!(long.len() < 400, "{long}");
    }

    #[test]
    fn only_a_bzimage_under_pvm_is_refused_before_it_starts() {
        let bzimage = EntryPoint::Linux64 {
            entry: 0x100_0200,
            boot_params: 0x1_0000,
        };
        let pvh = EntryPoint::Pvh {
            entry: 0x10_0000,
            start_info: 0x1_0000,
        };
        let text = refuse_before_start(&bzimage, KvmBackend::Pvm).unwrap();
        assert!(
            text.contains("cmpxchg16b") && text.contains("is needed"),
            "{text}"
        );
        assert_eq!(refuse_before_start(&pvh, KvmBackend::Pvm), None);
        assert_eq!(refuse_before_start(&bzimage, KvmBackend::Amd), None);
    }

    #[test]
    fn only_a_hypercall_under_pvm_is_known_to_hang() {
        let vmcall = [0x0f, 0x01, 0xc1];
        assert!(describe_hang(&vmcall, 1, KvmBackend::Pvm).is_some_and(|t| t.contains("vmcall")));
        assert_eq!(describe_hang(&vmcall, 1, KvmBackend::Intel), None);
        assert_eq!(describe_hang(&[0xeb, 0xfe], 1, KvmBackend::Pvm), None);
    }

    #[test]
    fn backend_is_the_loaded_module() {
        let modules = tempfile::tempdir().unwrap();
        assert_eq!(KvmBackend::detect_in(modules.path()), KvmBackend::Unknown);
        std::fs::create_dir(modules.path().join("kvm_amd")).unwrap();
        assert_eq!(KvmBackend::detect_in(modules.path()), KvmBackend::Amd);
        assert!(describe_shutdown(Some(7), KvmBackend::Amd).contains("triple fault at 0x7"));
    }
}
