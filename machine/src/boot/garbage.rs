//! Property tests: no kernel file, however broken, panics, hangs or writes below 1 MiB and above
//! RAM.

use std::io::Write;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::testing::{bzimage, pvh_elf, ram};
use super::*;

/// What may be loaded: a good kernel with some bytes changed and the end cut off.
fn mutated(good: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let len = good.len();
    let edge = prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(0x7f), Just(0x80),];
    // Most of what matters lies in the headers.
    let change = (prop_oneof![0..len, 0..0x40_usize, 0x1f0..0x270_usize], edge);
    (proptest::collection::vec(change, 0..12), 0..=len).prop_map(move |(changes, cut)| {
        let mut file = good.clone();
        for (at, byte) in changes {
            if let Some(old) = file.get_mut(at) {
                *old = byte;
            }
        }
        // Half of the files keep their length.
        if cut % 2 == 0 {
            file.truncate(cut);
        }
        file
    })
}

fn load_bytes(bytes: &[u8]) -> Result<EntryPoint, BootError> {
    let mut kernel = tempfile::NamedTempFile::new().unwrap();
    kernel.write_all(bytes).unwrap();
    let source = KernelSource::File(kernel.path().to_owned());
    let ram = ram(4);
    let loaded = load(&BootPlan {
        kernel: &source,
        initrd: None,
        cmdline: "",
        cpus: 1,
        ram: &ram,
        mmio_slots: &[],
        generation_id: [0; 16],
    });
    if loaded.is_err() {
        let mut low = [0; 16];
        ram.read_slice(&mut low, GuestAddress(layout::PVH_START_INFO))
            .unwrap();
        assert_eq!(low, [0; 16], "written by a kernel that was refused");
    }
    loaded
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn mutated_elf_is_loaded_or_refused(bytes in mutated(pvh_elf(&[0xf4; 64], 4096))) {
        if let Ok(EntryPoint::Pvh { entry, .. }) = load_bytes(&bytes) {
            prop_assert!((layout::HIGH_RAM..4 << 20).contains(&u64::from(entry)));
        }
    }

    #[test]
    fn mutated_bzimage_is_loaded_or_refused(bytes in mutated(bzimage(&[0xf4; 64]))) {
        if let Ok(EntryPoint::Linux64 { entry, .. }) = load_bytes(&bytes) {
            prop_assert!((layout::HIGH_RAM..4 << 20).contains(&entry));
        }
    }

    #[test]
    fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(load_bytes(&bytes).is_err());
    }
}
