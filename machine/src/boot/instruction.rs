//! Names the instructions that an emulator of kernel code is known to refuse.
//!
//! Not a disassembler: prefixes and opcode are read, operands are not. Source: Intel SDM volume 2,
//! appendix A.

/// The name of the instruction that `bytes` begin with, or its class; `None` if it is cut off or
/// not in the table.
pub(super) fn name(bytes: &[u8]) -> Option<String> {
    let (prefixes, opcode) = Prefixes::read(bytes);
    let name = match *opcode.first()? {
        0xcc => "int3",
        0xcd => return Some(format!("int {:#x}", opcode.get(1)?)),
        0xce => "into",
        0xf1 => "int1",
        0x9b => "fwait",
        0xd8..=0xdf => "an x87 floating-point instruction",
        0x62 => "an AVX-512 instruction",
        0xc4 => return Some(vex(opcode.get(1)? & 0x1f, *opcode.get(3)?).to_owned()),
        0xc5 => return Some(vex(1, *opcode.get(2)?).to_owned()),
        0xc6 if opcode.get(1) == Some(&0xf8) => "xabort",
        0xc7 if opcode.get(1) == Some(&0xf8) => "xbegin",
        0x0f => return two_bytes(prefixes, opcode.get(1..)?).map(str::to_owned),
        _ => return None,
    };
    Some(name.to_owned())
}

/// Prefixes that change what an opcode means.
#[derive(Debug, Clone, Copy, Default)]
struct Prefixes {
    operand_size: bool,
    repne: bool,
    rep: bool,
    rex_w: bool,
}

impl Prefixes {
    /// Splits the prefixes from the opcode.
    fn read(bytes: &[u8]) -> (Self, &[u8]) {
        let mut prefixes = Self::default();
        for (at, byte) in bytes.iter().enumerate() {
            match byte {
                0x66 => prefixes.operand_size = true,
                0xf2 => prefixes.repne = true,
                0xf3 => prefixes.rep = true,
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 | 0xf0 => {}
                0x40..=0x4f => {
                    // REX is the last prefix.
                    prefixes.rex_w = byte & 8 != 0;
                    return (prefixes, &bytes[at + 1..]);
                }
                _ => return (prefixes, &bytes[at..]),
            }
        }
        (prefixes, &[])
    }
}

/// VEX-encoded: general-purpose ones lie in the second map from 0xf2 on, or are `rorx`.
fn vex(map: u8, opcode: u8) -> &'static str {
    match (map, opcode) {
        (2, 0xf2..=0xf7) | (3, 0xf0) => "a BMI instruction",
        _ => "an AVX instruction",
    }
}

fn two_bytes(prefixes: Prefixes, opcode: &[u8]) -> Option<&'static str> {
    let modrm = opcode.get(1).copied();
    Some(match *opcode.first()? {
        0x01 => return system(modrm?),
        0x05 => "syscall",
        0x07 => "sysret",
        0x08 => "invd",
        0x09 if prefixes.rep => "wbnoinvd",
        0x09 => "wbinvd",
        0x0b => "ud2",
        0x30 => "wrmsr",
        0x32 => "rdmsr",
        0x33 => "rdpmc",
        0x34 => "sysenter",
        0x35 => "sysexit",
        0x37 => "getsec",
        0x38 => return three_bytes(prefixes, *opcode.get(1)?),
        0x3a => "an SSE instruction",
        0x77 => "emms",
        0x78 => "vmread",
        0x79 => "vmwrite",
        0xae => return save_and_fence(prefixes, modrm?),
        0xb8 if prefixes.rep => "popcnt",
        0xbc if prefixes.rep => "tzcnt",
        0xbd if prefixes.rep => "lzcnt",
        0xc7 => return exchange(prefixes, modrm?),
        0x10..=0x17
        | 0x28..=0x2f
        | 0x50..=0x76
        | 0x7c..=0x7f
        | 0xc2
        | 0xc4..=0xc6
        | 0xd0..=0xfe => "an SSE or MMX instruction",
        _ => return None,
    })
}

/// `0f 01`: system instructions by their second operand byte.
fn system(modrm: u8) -> Option<&'static str> {
    Some(match modrm {
        0xc1 => "vmcall",
        0xc2 => "vmlaunch",
        0xc3 => "vmresume",
        0xc4 => "vmxoff",
        0xc8 => "monitor",
        0xc9 => "mwait",
        0xca => "clac",
        0xcb => "stac",
        0xd0 => "xgetbv",
        0xd1 => "xsetbv",
        0xd8 => "vmrun",
        0xd9 => "vmmcall",
        0xda => "vmload",
        0xdb => "vmsave",
        0xdc => "stgi",
        0xdd => "clgi",
        0xe8 => "serialize",
        0xee => "rdpkru",
        0xef => "wrpkru",
        0xf8 => "swapgs",
        0xf9 => "rdtscp",
        0xfa => "monitorx",
        0xfb => "mwaitx",
        0xfc => "clzero",
        _ => return None,
    })
}

/// `0f ae`: by the middle of the operand byte, and by whether it is a memory operand.
fn save_and_fence(prefixes: Prefixes, modrm: u8) -> Option<&'static str> {
    let memory = modrm < 0xc0;
    Some(match (memory, modrm >> 3 & 7) {
        (true, 0) => "fxsave",
        (true, 1) => "fxrstor",
        (true, 2) => "ldmxcsr",
        (true, 3) => "stmxcsr",
        (true, 4) => "xsave",
        (true, 5) => "xrstor",
        (true, 6) if prefixes.operand_size => "clwb",
        (true, 6) if prefixes.rep => "clrssbsy",
        (true, 6) => "xsaveopt",
        (true, 7) if prefixes.operand_size => "clflushopt",
        (true, 7) => "clflush",
        (false, 0) if prefixes.rep => "rdfsbase",
        (false, 1) if prefixes.rep => "rdgsbase",
        (false, 2) if prefixes.rep => "wrfsbase",
        (false, 3) if prefixes.rep => "wrgsbase",
        (false, 5) if prefixes.rep => "incssp",
        (false, 6) if prefixes.rep => "umonitor",
        (false, 6) if prefixes.repne => "umwait",
        (false, 6) if prefixes.operand_size => "tpause",
        _ => return None,
    })
}

/// `0f c7`: by the middle of the operand byte, and by whether it is a memory operand.
fn exchange(prefixes: Prefixes, modrm: u8) -> Option<&'static str> {
    let memory = modrm < 0xc0;
    Some(match (memory, modrm >> 3 & 7) {
        (true, 1) if prefixes.rex_w => "cmpxchg16b",
        (true, 1) => "cmpxchg8b",
        (true, 3) => "xrstors",
        (true, 4) => "xsavec",
        (true, 5) => "xsaves",
        (true, 6) if prefixes.rep => "vmxon",
        (true, 6) if prefixes.operand_size => "vmclear",
        (true, 6) => "vmptrld",
        (false, 6) => "rdrand",
        (false, 7) if prefixes.rep => "rdpid",
        (false, 7) => "rdseed",
        _ => return None,
    })
}

/// `0f 38`: SSE but for the general-purpose ones.
fn three_bytes(prefixes: Prefixes, opcode: u8) -> Option<&'static str> {
    Some(match opcode {
        0x80 if prefixes.operand_size => "invept",
        0x81 if prefixes.operand_size => "invvpid",
        0x82 if prefixes.operand_size => "invpcid",
        0xf0 | 0xf1 if prefixes.repne => "crc32",
        0xf0 | 0xf1 => "movbe",
        0xf6 if prefixes.operand_size => "adcx",
        0xf6 if prefixes.rep => "adox",
        0xf8 if prefixes.operand_size => "movdir64b",
        0xf9 => "movdiri",
        0x00..=0xdf => "an SSE instruction",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refused_instructions_have_names() {
        let table: &[(&[u8], &str)] = &[
            (&[0xcc], "int3"),
            (&[0xcd, 0x80], "int 0x80"),
            (&[0x0f, 0x01, 0xca], "clac"),
            (&[0x0f, 0x01, 0xcb], "stac"),
            (&[0x0f, 0x01, 0xc1], "vmcall"),
            (&[0x0f, 0x01, 0xd9], "vmmcall"),
            (&[0x0f, 0x01, 0xd0], "xgetbv"),
            (&[0x0f, 0x01, 0xf9], "rdtscp"),
            (&[0xf3, 0x48, 0x0f, 0xb8, 0xc7], "popcnt"),
            (&[0xf3, 0x0f, 0xb8, 0xc7], "popcnt"),
            (&[0x48, 0x0f, 0xc7, 0x1f], "xrstors"),
            (&[0x48, 0x0f, 0xc7, 0x27], "xsavec"),
            (&[0x48, 0x0f, 0xc7, 0x2f], "xsaves"),
            (&[0xf0, 0x48, 0x0f, 0xc7, 0x0f], "cmpxchg16b"),
            (&[0x48, 0x0f, 0xae, 0x2f], "xrstor"),
            (&[0x48, 0x0f, 0xae, 0x27], "xsave"),
            (&[0x0f, 0xae, 0x5c, 0x24, 0xfc], "stmxcsr"),
            (&[0x0f, 0xae, 0x54, 0x24, 0xfc], "ldmxcsr"),
            (&[0x66, 0x0f, 0xae, 0x37], "clwb"),
            (&[0x66, 0x0f, 0x38, 0x82, 0x04, 0x24], "invpcid"),
            (&[0xf2, 0x48, 0x0f, 0x38, 0xf1, 0xc1], "crc32"),
            (&[0x0f, 0x38, 0xf0, 0x07], "movbe"),
            (&[0xf3, 0x0f, 0xc7, 0xf8], "rdpid"),
            (&[0x0f, 0x33], "rdpmc"),
            (&[0xdb, 0xe3], "an x87 floating-point instruction"),
            (&[0xf2, 0x0f, 0x58, 0xc1], "an SSE or MMX instruction"),
            (&[0x66, 0x0f, 0x38, 0x00, 0xc1], "an SSE instruction"),
            (&[0xc5, 0xf8, 0x77], "an AVX instruction"),
            (&[0xc4, 0xe2, 0x78, 0xf2, 0xc1], "a BMI instruction"),
            (
                &[0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1],
                "an AVX-512 instruction",
            ),
            (&[0xc7, 0xf8, 0, 0, 0, 0], "xbegin"),
        ];
        for (bytes, expected) in table {
            assert_eq!(name(bytes).as_deref(), Some(*expected), "{bytes:02x?}");
        }
    }

    #[test]
    fn ordinary_and_cut_off_instructions_have_none() {
        for bytes in [
            &[][..],
            &[0x90],
            &[0x48],
            &[0x66; 15],
            &[0x0f],
            &[0x0f, 0x01],
            &[0xc5, 0xf8],
        ] {
            assert_eq!(name(bytes), None, "{bytes:02x?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            let _ = name(&bytes);
        }
    }
}
