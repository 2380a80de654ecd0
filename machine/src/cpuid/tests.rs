//! What is hidden, what models make of a host's CPU, and what KVM says to it.

use super::leaf::is_amd;
use super::*;

pub(super) fn entry(function: u32, index: u32, registers: [u32; 4]) -> CpuidLeaf {
    let [eax, ebx, ecx, edx] = registers;
    CpuidLeaf {
        function,
        index,
        flags: 0,
        eax,
        ebx,
        ecx,
        edx,
    }
}

pub(super) fn find(entries: &[CpuidLeaf], function: u32, index: u32) -> CpuidLeaf {
    *entries
        .iter()
        .find(|e| e.function == function && e.index == index)
        .unwrap()
}

#[test]
fn what_cannot_move_is_hidden() {
    let mut entries = vec![
        entry(1, 0, [0, 0, u32::MAX, u32::MAX]),
        entry(7, 0, [0, u32::MAX, u32::MAX, u32::MAX]),
        entry(0xa, 0, [u32::MAX; 4]),
        entry(0x4000_0000, 0, [0x4000_0010, 1, 2, 3]),
        entry(0x4000_0001, 0, [u32::MAX, 0, 0, 1]),
        entry(0x4000_0010, 0, [u32::MAX; 4]),
        entry(0x8000_0007, 0, [0, 0, 0, 1 << 8]),
    ];
    hide(&mut entries, false);
    let ecx = find(&entries, 1, 0).ecx;
    assert_eq!(
        ecx & (1 << 3 | 1 << 5 | 1 << 27),
        0,
        "MONITOR, VMX or OSXSAVE is there"
    );
    assert_ne!(ecx & LEAF1_ECX_HYPERVISOR, 0);
    assert_eq!(
        find(&entries, 7, 0).ebx & (1 << 2 | 1 << 25),
        0,
        "SGX or PT is there"
    );
    assert!(
        entries.iter().all(|e| e.function != 0xa),
        "performance counters are there"
    );
    assert_eq!(find(&entries, 0x4000_0000, 0).eax, 0x4000_0001);
    let features = find(&entries, 0x4000_0001, 0);
    assert_eq!(features.eax & 0b1001, 0b1001, "kvmclock is missing");
    assert_eq!(
        features.eax & (1 << 4 | 1 << 14),
        0,
        "asynchronous page faults are there"
    );
    assert_eq!(features.edx, 0);
    assert!(entries.iter().all(|e| e.function != 0x4000_0010));
    assert!(
        entries.iter().all(|e| e.function != 0x8000_0007),
        "an invariant TSC is there"
    );
}
/// A server of 2022 by Intel, as KVM tells of it, as far as it matters here.
fn intel() -> Vec<CpuidLeaf> {
    vec![
        entry(0, 0, [0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        entry(1, 0, [0x0008_06f8, 0x0010_0800, 0xfffa_3203, 0x1f8b_fbff]),
        entry(4, 0, [0xfc1c_4121, 0x02c0_003f, 0x3f, 0]),
        entry(6, 0, [4, 0, 0, 0]),
        entry(7, 0, [2, 0xf1bf_27eb, 0x1b41_5f6e, 0xbc81_4410]),
        entry(7, 1, [0x30, 0, 0, 0]),
        entry(0xd, 0, [0x2e7, 0x240, 0xa88, 0]),
        entry(0xd, 1, [0x1f, 0x240, 0x1800, 0]),
        entry(0xd, 2, [0x100, 0x240, 0, 0]),
        entry(0xd, 5, [0x40, 0x440, 0, 0]),
        entry(0xd, 6, [0x200, 0x480, 0, 0]),
        entry(0xd, 7, [0x400, 0x680, 0, 0]),
        entry(0xd, 9, [8, 0xa80, 0, 0]),
        entry(0xd, 11, [0x10, 0, 1, 0]),
        entry(KVM_SIGNATURE, 0, [KVM_FEATURES, 1, 2, 3]),
        entry(KVM_FEATURES, 0, [0x0100_3aeb, 0, 0, 0]),
        entry(0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
        entry(0x8000_0001, 0, [0, 0, 0x121, 0x2c10_0800]),
        entry(0x8000_0008, 0, [0x3934, 0x0100_d000, 0, 0]),
    ]
}

/// A server of 2017 by AMD.
fn amd() -> Vec<CpuidLeaf> {
    vec![
        entry(0, 0, [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        entry(1, 0, [0x0080_0f12, 0x0010_0800, 0xfff8_320b, 0x178b_fbff]),
        entry(6, 0, [4, 0, 0, 0]),
        entry(7, 0, [0, 0x2098_01ab, 0, 0]),
        entry(0xd, 0, [7, 0x340, 0x340, 0]),
        entry(0xd, 1, [0xf, 0x340, 0, 0]),
        entry(0xd, 2, [0x100, 0x240, 0, 0]),
        entry(KVM_SIGNATURE, 0, [KVM_FEATURES, 1, 2, 3]),
        entry(KVM_FEATURES, 0, [0x0100_3aeb, 0, 0, 0]),
        entry(0x8000_0000, 0, [0x8000_001f, 0, 0, 0]),
        entry(
            0x8000_0001,
            0,
            [0x0080_0f12, 0x4000_0000, 0x0040_01f3, 0x2fd3_fbff],
        ),
        entry(0x8000_0008, 0, [0x3030, 0x1000, 0x7007, 0]),
        entry(0x8000_001d, 0, [0x121, 0, 0, 0]),
        entry(0x8000_001e, 0, [0, 0x100, 0, 0]),
    ]
}

const RAM_END: u64 = 5 << 30;

fn guest_of(model: &Model, host: &[CpuidLeaf]) -> Vec<CpuidLeaf> {
    model.leaves(host, "this host", RAM_END).unwrap()
}

#[test]
fn a_level_looks_the_same_on_every_host_of_a_vendor() {
    // A newer generation: more features, other numbers.
    let mut newer = intel();
    for leaf in &mut newer {
        match leaf.function {
            1 => leaf.eax += 0x10,
            7 if leaf.index == 0 => leaf.edx |= 1 << 22,
            0x8000_0008 => leaf.eax = 0x3934,
            _ => {}
        }
    }
    let mut older = intel();
    older.retain(|leaf| (leaf.function, leaf.index) != (7, 1));
    older
        .iter_mut()
        .find(|l| l.function == 0x8000_0008)
        .unwrap()
        .eax = 0x302e;
    for level in Level::ALL {
        let model = Model::level(level);
        let guests = [intel(), newer.clone(), older.clone()].map(|host| guest_of(&model, &host));
        assert_eq!(guests[0], guests[1], "{level}");
        assert_eq!(guests[0], guests[2], "{level}");
        assert_eq!(missing(&guests[1], &older), Vec::<String>::new(), "{level}");
    }
}

#[test]
fn a_level_has_its_features_and_no_other() {
    for host in [intel(), amd()] {
        for level in [Level::V1, Level::V2, Level::V3] {
            let guest = guest_of(&Model::level(level), &host);
            let mut expected = level.features();
            if is_amd(&host) {
                expected.repeat(0x0183_f3ff);
            }
            assert_eq!(set::Features::of(&guest), expected, "{level}");
            assert_eq!(find(&guest, 0, 0).eax, 0xd);
            assert_eq!(find(&guest, 0x8000_0008, 0).eax, 0x3027);
            let avx = level >= Level::V3;
            assert_eq!(guest.iter().any(|e| e.function == 0xd), avx, "{level}");
            if avx {
                assert_eq!(find(&guest, 0xd, 0), entry(0xd, 0, [7, 576, 832, 0]));
                assert_eq!(guest.iter().filter(|e| e.function == 0xd).count(), 2);
            }
        }
    }
    let v4 = guest_of(&Model::level(Level::V4), &intel());
    assert_eq!(find(&v4, 0xd, 0).ecx, 0x680 + 0x400);
    assert!(!v4.iter().any(|e| (e.function, e.index) == (0xd, 9)));
}

#[test]
fn a_level_that_a_host_lacks_is_refused_with_the_bits() {
    let error = Model::level(Level::V4)
        .leaves(&amd(), "this host", RAM_END)
        .unwrap_err()
        .to_string();
    for word in [
        "x86-64-v4",
        "avx512f (cpuid 0x7:0 ebx bit 16)",
        "AVX-512 mask registers",
    ] {
        assert!(error.contains(word), "{word}: {error}");
    }
    let mut narrow = intel();
    narrow
        .iter_mut()
        .find(|l| l.function == 0x8000_0008)
        .unwrap()
        .eax = 0x3024;
    let error = Model::level(Level::V1)
        .leaves(&narrow, "x", RAM_END)
        .unwrap_err();
    assert!(
        error.to_string().contains("39 bits of physical address"),
        "{error}"
    );
}

#[test]
fn more_ram_than_a_level_addresses_widens_the_addresses() {
    let guest = Model::level(Level::V1)
        .leaves(&intel(), "x", 1 << 40)
        .unwrap();
    assert_eq!(find(&guest, 0x8000_0008, 0).eax & 0xff, 40);
}

#[test]
fn a_host_that_offers_less_refuses_what_is_above_and_takes_what_is_not() {
    let limited = Model::level(Level::V2).limit(&intel());
    let v3 = Model::level(Level::V3);
    let lacks = missing(&guest_of(&v3, &intel()), &limited).join(", ");
    for word in ["avx2 (", "fma (", "xsave (", "AVX state ("] {
        assert!(lacks.contains(word), "{word}: {lacks}");
    }
    assert!(v3.leaves(&limited, "x", RAM_END).is_err());
    let v2 = guest_of(&Model::level(Level::V2), &intel());
    assert!(missing(&v2, &limited).is_empty());
    assert_eq!(guest_of(&Model::level(Level::V2), &limited), v2);
    // What is left for `host` there is no more than the level, and can go to an unlimited host.
    let left = guest_of(&Model::host(), &limited);
    assert!(
        set::Features::of(&left)
            .minus(&Level::V2.features())
            .is_empty()
    );
    assert!(missing(&left, &intel()).is_empty());
    assert!(!left.iter().any(|e| e.function == 0xd));
}

#[test]
fn a_model_of_a_file_adds_and_removes() {
    let mut model = Model::level(Level::V2);
    let aes = set::Bit::parse("aes").unwrap();
    model.add.push((aes, "aes".into()));
    model.remove.push(set::Bit::parse("kvm_pv_eoi").unwrap());
    let features = set::Features::of(&guest_of(&model, &intel()));
    assert!(features.has(aes));
    assert!(!features.has_named("kvm_pv_eoi"));
    let mut less = Model::host();
    less.remove.push(set::Bit::parse("avx512f").unwrap());
    let guest = guest_of(&less, &intel());
    assert_eq!(find(&guest, 0xd, 0).eax, 0x207);
    assert_eq!(
        find(&guest, 1, 0).eax,
        0x0008_06f8,
        "the host's own signature"
    );
    assert!(!set::Features::of(&guest).has_named("avx512vl"));
    // The repeated bits of AMD go with the ones that they repeat.
    let mut less = Model::host();
    less.remove.push(set::Bit::parse("mtrr").unwrap());
    let guest = guest_of(&less, &amd());
    assert_eq!(find(&guest, 0x8000_0001, 0).edx & 1 << 12, 0);
}

#[test]
fn kvm_takes_every_model_that_it_offers_and_lacks_nothing_of_it() {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("skipped: /dev/kvm cannot be opened: {error}");
            return;
        }
    };
    let host = HostCpu::probe(&kvm, None).unwrap();
    let models = Level::ALL.map(Model::level);
    for model in models.iter().chain([&Model::host()]) {
        let guest = match host.guest(model, 2, RAM_END) {
            Ok(guest) => guest,
            Err(error) => {
                println!("{error}");
                println!(
                    "skipped: KVM on this machine does not offer {}",
                    model.name()
                );
                continue;
            }
        };
        let vm = kvm.create_vm().unwrap();
        for (index, leaves) in guest.iter().enumerate() {
            let vcpu = vm.create_vcpu(index as u64).unwrap();
            vcpu.set_cpuid2(&from_leaves(leaves).unwrap()).unwrap();
            assert_eq!(missing(leaves, host.leaves()), Vec::<String>::new());
        }
    }
}
