//! A guest whose RAM is backed by transparent huge pages.

use vm_memory::GuestMemoryBackend;

use crate::memory::testing::huge_bytes_at;
use crate::memory::{PageBacking, RamFile};
use crate::tests::has_kvm;
use crate::tests::probe::{Probe, Setup};

#[test]
fn a_guest_on_huge_pages_has_them_and_finds_no_fault() {
    if !has_kvm() {
        return;
    }
    if let Err(why) = RamFile::on_own_tmpfs() {
        println!("skipped: huge pages need a tmpfs of one's own: {why}");
        return;
    }
    // A host that has built and cached for hours has few huge pages left in one piece until it is asked for them.
    let _ = std::fs::write("/proc/sys/vm/compact_memory", "1");
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
