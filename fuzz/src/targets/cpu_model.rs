//! Files of CPU models, and the CPUID that a model makes of a host's.

use machine::cpuid::{CpuidLeaf, missing};

use crate::target::SMALL;
use crate::{Input, Target};

/// Leaves of a host, and the TOML of a model.
pub(super) const CPU_MODEL: Target = Target {
    name: "cpu-model",
    run,
    seeds,
    words: &[
        "base = ",
        "\"host\"",
        "\"x86-64-v3\"",
        "add = [",
        "remove = [",
        "\"avx2\"",
        "\"7:0:ebx:5\"",
        "\"0x80000001:0:ecx:31\"",
        "name = ",
        "]\n",
    ],
    longest: 1024,
    memory: SMALL,
};

/// Leaves that a model looks at or writes, and one that it knows nothing of.
const FUNCTIONS: [u32; 11] = [
    0,
    1,
    6,
    7,
    0xd,
    0x14,
    0x4000_0000,
    0x4000_0001,
    0x8000_0001,
    0x8000_0008,
    0x8000_001e,
];
const MOST_LEAVES: u8 = 24;

fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut host: Vec<CpuidLeaf> = Vec::new();
    for _ in 0..input.u8() % MOST_LEAVES {
        let leaf = leaf(&mut input);
        // KVM tells of each once.
        let place = |l: &CpuidLeaf| (l.function, l.index);
        if !host.iter().any(|other| place(other) == place(&leaf)) {
            host.push(leaf);
        }
    }
    let ram_end = u64::from(input.u32()) << 12;
    let text = String::from_utf8_lossy(input.rest());
    let model = match machine::fuzzing::cpu_model(&text) {
        Ok(model) => model,
        Err(message) => {
            assert!(!message.is_empty());
            return;
        }
    };
    assert!((1..=32).contains(&model.name().len()));
    let (limited, guest) = machine::fuzzing::cpuid_of(&model, &host, ram_end);
    // A limit takes away; and what a guest is given, its host has.
    assert_eq!(missing(&limited, &host), Vec::<String>::new());
    if let Some(guest) = guest {
        assert_eq!(missing(&guest, &host), Vec::<String>::new());
    }
}

fn leaf(input: &mut Input<'_>) -> CpuidLeaf {
    let function = FUNCTIONS[usize::from(input.u8()) % FUNCTIONS.len()];
    let index = match function {
        7 | 0xd => u32::from(input.u8() % 20),
        _ => 0,
    };
    CpuidLeaf {
        function,
        index,
        flags: u32::from(index > 0),
        eax: input.u32(),
        ebx: input.u32(),
        ecx: input.u32(),
        edx: input.u32(),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let models = [
        "base = \"host\"\nremove = [\"avx512f\"]\n",
        "base = \"x86-64-v1\"\n",
        "base = \"x86-64-v2\"\nname = \"pool\"\nadd = [\"aes\", \"0x1:0:ecx:1\"]\n\
         remove = [\"kvm_pv_eoi\"]\n",
        "base = \"x86-64-v4\"\n",
    ];
    let all = u32::MAX;
    let mut host = Vec::new();
    // Everything that there is, of a vendor of no name, with room for the states of AVX.
    for (which, indices, registers) in [
        (0_u8, 0..1, [0x1f, 0x2020_2020, 0x2020_2020, 0x2020_2020]),
        (1, 0..1, [all; 4]),
        (3, 0..1, [0, all, all, all]),
        (4, 0..2, [all; 4]),
        (4, 2..3, [256, 576, 0, 0]),
        (7, 0..1, [all; 4]),
        (8, 0..1, [all; 4]),
        (9, 0..1, [0x3030, all, 0, 0]),
    ] {
        for index in indices {
            host.push(which);
            if matches!(which, 3 | 4) {
                host.push(index);
            }
            host.extend(registers.iter().flat_map(|r: &u32| r.to_le_bytes()));
        }
    }
    let seed = |leaves: u8, host: &[u8], text: &str| {
        let ram_end = 0x0010_0000_u32.to_le_bytes();
        [&[leaves][..], host, &ram_end, text.as_bytes()].concat()
    };
    let mut seeds: Vec<_> = models.iter().map(|text| seed(9, &host, text)).collect();
    seeds.push(seed(0, &[], models[1]));
    seeds
}
