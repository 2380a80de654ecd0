//! A guest whose RAM is backed by transparent huge pages.

use std::path::Path;

use vm_memory::GuestMemoryBackend;

use super::probe_tests::{Probe, Setup};
use super::tests::has_kvm;
use crate::memory::PageBacking;

const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// The host's setting, put back when dropped.
struct Restored(String);

impl Drop for Restored {
    fn drop(&mut self) {
        if let Err(e) = std::fs::write(SETTING, &self.0) {
            println!("{SETTING} stays changed: {e}");
        }
    }
}

/// The chosen one of the words in the setting's file.
fn chosen() -> Option<String> {
    let words = std::fs::read_to_string(SETTING).ok()?;
    let word = words.split('[').nth(1)?.split(']').next()?;
    Some(word.to_owned())
}

/// Lets memory files that ask for huge pages have them; what puts the setting back, if it changed.
fn allow() -> Result<Option<Restored>, String> {
    let before = chosen().ok_or("this kernel has no transparent huge pages for memory files")?;
    if ["advise", "always", "within_size", "force"].contains(&before.as_str()) {
        return Ok(None);
    }
    std::fs::write(SETTING, "advise")
        .map_err(|e| format!("shmem_enabled is {before} and cannot be changed: {e}"))?;
    Ok(Some(Restored(before)))
}

/// Bytes of the mapping at `address` that huge pages map.
fn huge_bytes_at(address: usize) -> u64 {
    let smaps = std::fs::read_to_string(Path::new("/proc/self/smaps")).unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        let range = line.split(' ').next().unwrap();
        if let Some((start, end)) = range.split_once('-')
            && let (Ok(start), Ok(end)) = (
                usize::from_str_radix(start, 16),
                usize::from_str_radix(end, 16),
            )
        {
            inside = (start..end).contains(&address);
        } else if let Some(amount) = line.strip_prefix("ShmemPmdMapped:")
            && inside
        {
            return amount
                .trim()
                .trim_end_matches(" kB")
                .parse::<u64>()
                .unwrap()
                << 10;
        }
    }
    panic!("no mapping at {address:#x}");
}

#[test]
fn a_guest_on_huge_pages_has_them_and_finds_no_fault() {
    if !has_kvm() {
        return;
    }
    let _restored = match allow() {
        Ok(restored) => restored,
        Err(why) => {
            println!("skipped: {why}");
            return;
        }
    };
    let mut probe = Probe::start(&Setup {
        cpus: 1,
        memory: 128 << 20,
        pages: PageBacking::Thp,
        disk: None,
        cmdline: "fill=random fill_size=64M dirty_set=8M dirty_rate=1000 tick_ms=20",
    });
    probe.ready();
    let start = probe.machine().ram().iter().next().unwrap().as_ptr() as usize;
    let huge = huge_bytes_at(start);
    assert!(huge >= 32 << 20, "{huge} bytes of huge pages");
    probe.move_to_another_machine();
    assert_eq!(probe.tick().faults, 0);
}
