//! The probe guest on another VMM: what measures ours must run on its peers.

use std::time::Duration;

use tests::nested::rig::Rig;
use tests::probe::{PROBE_GUEST, ProbeLine, probe_lines};
use tests::process::Process;
use tests::skip;

const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn the_probe_runs_on_qemus_microvm_and_finds_its_memory_and_disk_intact() {
    let rig = match Rig::find() {
        Ok(rig) => rig,
        Err(reason) => skip!("{reason}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("probe.elf");
    std::fs::write(&kernel, PROBE_GUEST).unwrap();
    let disk = dir.path().join("disk.img");
    std::fs::File::create(&disk)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();

    let mut qemu = rig.qemu();
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ])
    .args([
        "-machine",
        "microvm",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "EPYC",
    ])
    .args(["-smp", "2", "-m", "128", "-serial", "stdio", "-kernel"])
    .arg(&kernel)
    .args([
        "-append",
        "fill=random fill_size=16M dirty_rate=500 dirty_set=1M block=verify \
             tick_ms=500 exit_after=4t tsc_khz=1000000",
    ])
    .args(["-global", "virtio-mmio.force-legacy=false", "-drive"])
    .arg(format!(
        "id=disk,if=none,format=raw,file={}",
        disk.display()
    ))
    .args(["-device", "virtio-blk-device,drive=disk"])
    .args(["-device", "isa-debug-exit,iobase=0x501,iosize=0x04"]);
    let guest = Process::start(qemu, dir.path()).unwrap();
    let outcome = guest.finish(DEADLINE).unwrap();

    let lines: Vec<ProbeLine> = probe_lines(&outcome.stdout).collect();
    assert!(
        matches!(lines.first(), Some(ProbeLine::Hello(_))),
        "{outcome}"
    );
    assert!(
        !lines.iter().any(|line| matches!(line, ProbeLine::Fault(_))),
        "{outcome}"
    );
    assert!(matches!(lines.last(), Some(ProbeLine::Bye(_))), "{outcome}");
    let mut ticks = lines.iter().filter_map(|line| match line {
        ProbeLine::Tick(tick) => Some(tick),
        _ => None,
    });
    let last = ticks
        .next_back()
        .unwrap_or_else(|| panic!("no tick: {outcome}"));
    assert!(
        last.ledger_verified > 0 && last.fill_verified > 0,
        "{outcome}"
    );
    assert!(last.blocks_verified > 0, "{outcome}");
}
