//! The words of CPUID that are feature bits, with the names of the common ones.

/// A register of a CPUID answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Eax => "eax",
            Self::Ebx => "ebx",
            Self::Ecx => "ecx",
            Self::Edx => "edx",
        }
    }

    pub(super) fn of(self, leaf: &CpuidLeaf) -> &u32 {
        match self {
            Self::Eax => &leaf.eax,
            Self::Ebx => &leaf.ebx,
            Self::Ecx => &leaf.ecx,
            Self::Edx => &leaf.edx,
        }
    }

    pub(super) fn of_mut(self, leaf: &mut CpuidLeaf) -> &mut u32 {
        match self {
            Self::Eax => &mut leaf.eax,
            Self::Ebx => &mut leaf.ebx,
            Self::Ecx => &mut leaf.ecx,
            Self::Edx => &mut leaf.edx,
        }
    }
}

use super::leaf::CpuidLeaf;
use Register::{Eax, Ebx, Ecx, Edx};

/// Leaf, index, register and the bits that no guest sees.
pub(super) const HIDDEN: &[(u32, u32, Register, u32)] = &[
    // 64-bit debug store, MONITOR, CPL-qualified debug store, VMX, SMX, SpeedStep, thermal monitor 2,
    // L1 context id, performance capabilities, OSXSAVE (KVM sets it as the guest turns it on).
    (
        1,
        0,
        Ecx,
        1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 15 | 1 << 27,
    ),
    // Machine-check and thermal events of the host: DS, ACPI, TM, PBE.
    (1, 0, Edx, 1 << 21 | 1 << 22 | 1 << 29 | 1 << 31),
    // SGX, resource monitoring and allocation, processor trace.
    (7, 0, Ebx, 1 << 2 | 1 << 12 | 1 << 15 | 1 << 25),
    // OSPKE (set as the guest turns it on), SGX launch control.
    (7, 0, Ecx, 1 << 4 | 1 << 30),
    // Everything of power management but an APIC timer that never stops.
    (6, 0, Eax, !(1 << 2)),
    (6, 0, Ebx, !0),
    (6, 0, Ecx, !0),
    // SVM, IBS, LWP, watchdog, performance counters, MWAITX.
    (
        0x8000_0001,
        0,
        Ecx,
        1 << 2 | 1 << 10 | 1 << 13 | 1 << 15 | 1 << 23 | 1 << 24 | 1 << 28 | 1 << 29,
    ),
    // Invariant TSC and the rest of power management.
    (0x8000_0007, 0, Eax, !0),
    (0x8000_0007, 0, Ebx, !0),
    (0x8000_0007, 0, Ecx, !0),
    (0x8000_0007, 0, Edx, !0),
];

/// A register of a leaf whose bits are features, with their names from bit 0 on ("" has none).
pub(super) struct FeatureWord {
    pub(super) function: u32,
    pub(super) index: u32,
    pub(super) register: Register,
    /// Bits that are features; the others are numbers or change as the guest runs.
    pub(super) mask: u32,
    pub(super) names: &'static [&'static str],
}

const fn word(
    function: u32,
    index: u32,
    register: Register,
    names: &'static [&'static str],
) -> FeatureWord {
    FeatureWord {
        function,
        index,
        register,
        mask: !0,
        names,
    }
}

/// All feature words that a guest may rely on.
pub(super) const WORDS: &[FeatureWord] = &[
    FeatureWord {
        // OSXSAVE follows the guest's CR4.
        mask: !(1 << 27),
        ..word(1, 0, Ecx, LEAF1_ECX)
    },
    FeatureWord {
        // HTT tells of the topology.
        mask: !(1 << 28),
        ..word(1, 0, Edx, LEAF1_EDX)
    },
    word(6, 0, Eax, &["", "", "arat"]),
    word(7, 0, Ebx, LEAF7_EBX),
    FeatureWord {
        // OSPKE follows the guest's CR4; bits 17 to 21 are a number.
        mask: !(1 << 4 | 0x1f << 17),
        ..word(7, 0, Ecx, LEAF7_ECX)
    },
    word(7, 0, Edx, LEAF7_EDX),
    word(
        7,
        1,
        Eax,
        &[
            "sha512",
            "sm3",
            "sm4",
            "",
            "avx_vnni",
            "avx512_bf16",
            "",
            "cmpccxadd",
        ],
    ),
    word(7, 1, Ebx, &[]),
    word(7, 1, Ecx, &[]),
    word(
        7,
        1,
        Edx,
        &["", "", "", "", "avx_vnni_int8", "avx_ne_convert"],
    ),
    word(
        7,
        2,
        Edx,
        &["psfd", "ipred_ctrl", "rrsba_ctrl", "ddpd_u", "bhi_ctrl"],
    ),
    word(0xd, 0, Eax, XSTATE),
    word(0xd, 0, Edx, &[]),
    word(
        0xd,
        1,
        Eax,
        &["xsaveopt", "xsavec", "xgetbv1", "xsaves", "xfd"],
    ),
    word(0xd, 1, Ecx, &[]),
    word(0xd, 1, Edx, &[]),
    word(0x4000_0001, 0, Eax, KVM),
    FeatureWord {
        // CMP_LEGACY tells of the topology.
        mask: !(1 << 1),
        ..word(0x8000_0001, 0, Ecx, LEAF8000_0001_ECX)
    },
    word(0x8000_0001, 0, Edx, LEAF8000_0001_EDX),
    word(0x8000_0008, 0, Ebx, LEAF8000_0008_EBX),
    word(
        0x8000_0021,
        0,
        Eax,
        &[
            "no_nested_data_bp",
            "",
            "lfence_rdtsc",
            "",
            "",
            "",
            "null_sel_clr_base",
        ],
    ),
];

#[rustfmt::skip]
const LEAF1_ECX: &[&str] = &[
    "sse3", "pclmulqdq", "dtes64", "monitor", "ds_cpl", "vmx", "smx", "est",
    "tm2", "ssse3", "cnxt_id", "sdbg", "fma", "cx16", "xtpr", "pdcm",
    "", "pcid", "dca", "sse4_1", "sse4_2", "x2apic", "movbe", "popcnt",
    "tsc_deadline_timer", "aes", "xsave", "osxsave", "avx", "f16c", "rdrand", "hypervisor",
];
#[rustfmt::skip]
const LEAF1_EDX: &[&str] = &[
    "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce",
    "cx8", "apic", "", "sep", "mtrr", "pge", "mca", "cmov",
    "pat", "pse36", "pn", "clflush", "", "ds", "acpi", "mmx",
    "fxsr", "sse", "sse2", "ss", "ht", "tm", "ia64", "pbe",
];
#[rustfmt::skip]
const LEAF7_EBX: &[&str] = &[
    "fsgsbase", "tsc_adjust", "sgx", "bmi1", "hle", "avx2", "fdp_excptn_only", "smep",
    "bmi2", "erms", "invpcid", "rtm", "cqm", "zero_fcs_fds", "mpx", "rdt_a",
    "avx512f", "avx512dq", "rdseed", "adx", "smap", "avx512ifma", "pcommit", "clflushopt",
    "clwb", "intel_pt", "avx512pf", "avx512er", "avx512cd", "sha_ni", "avx512bw", "avx512vl",
];
#[rustfmt::skip]
const LEAF7_ECX: &[&str] = &[
    "prefetchwt1", "avx512vbmi", "umip", "pku", "ospke", "waitpkg", "avx512_vbmi2", "shstk",
    "gfni", "vaes", "vpclmulqdq", "avx512_vnni", "avx512_bitalg", "tme", "avx512_vpopcntdq", "",
    "la57", "", "", "", "", "", "rdpid", "key_locker",
    "bus_lock_detect", "cldemote", "", "movdiri", "movdir64b", "enqcmd", "sgx_lc", "pks",
];
#[rustfmt::skip]
const LEAF7_EDX: &[&str] = &[
    "", "sgx_keys", "avx512_4vnniw", "avx512_4fmaps", "fsrm", "uintr", "", "",
    "avx512_vp2intersect", "srbds_ctrl", "md_clear", "rtm_always_abort", "", "tsx_force_abort",
    "serialize", "hybrid_cpu",
    "tsxldtrk", "", "pconfig", "arch_lbr", "ibt", "", "amx_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "spec_ctrl", "intel_stibp", "flush_l1d", "arch_capabilities",
    "core_capabilities", "ssbd",
];
#[rustfmt::skip]
const XSTATE: &[&str] = &[
    "x87 state", "SSE state", "AVX state", "MPX bound registers", "MPX bound configuration",
    "AVX-512 mask registers", "AVX-512 upper halves", "AVX-512 upper registers", "",
    "protection key state", "", "", "", "", "", "", "", "AMX tile configuration", "AMX tile data",
];
#[rustfmt::skip]
const KVM: &[&str] = &[
    "kvmclock", "kvm_nopiodelay", "kvm_mmu", "kvmclock2", "kvm_asyncpf", "kvm_steal_time",
    "kvm_pv_eoi", "kvm_pv_unhalt", "", "kvm_pv_tlb_flush", "kvm_asyncpf_vmexit",
    "kvm_pv_ipi", "kvm_poll_control", "kvm_pv_sched_yield", "kvm_asyncpf_int",
    "kvm_msi_ext_dest_id", "kvm_hc_map_gpa_range", "kvm_migration_control",
    "", "", "", "", "", "", "kvmclock_stable",
];
#[rustfmt::skip]
const LEAF8000_0001_ECX: &[&str] = &[
    "lahf_lm", "cmp_legacy", "svm", "extapic", "cr8_legacy", "abm", "sse4a", "misalignsse",
    "3dnowprefetch", "osvw", "ibs", "xop", "skinit", "wdt", "", "lwp",
    "fma4", "tce", "", "nodeid_msr", "", "tbm", "topoext", "perfctr_core",
    "perfctr_nb", "", "bpext", "ptsc", "perfctr_llc", "mwaitx",
];
#[rustfmt::skip]
const LEAF8000_0001_EDX: &[&str] = &[
    "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce",
    "cx8", "apic", "", "syscall", "mtrr", "pge", "mca", "cmov",
    "pat", "pse36", "", "mp", "nx", "", "mmxext", "mmx",
    "fxsr", "fxsr_opt", "pdpe1gb", "rdtscp", "", "lm", "3dnowext", "3dnow",
];
#[rustfmt::skip]
const LEAF8000_0008_EBX: &[&str] = &[
    "clzero", "irperf", "xsaveerptr", "", "rdpru", "", "", "",
    "", "wbnoinvd", "", "", "amd_ibpb", "", "amd_ibrs", "amd_stibp",
    "", "amd_stibp_always_on", "", "", "", "", "", "amd_ppin",
    "amd_ssbd", "virt_ssbd", "amd_ssb_no",
];
