//! The rig of the nested job without `vmm`: what fails here is the rig's fault.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::nested::level1::Level1;
use tests::nested::level2;
use tests::nested::rig::Rig;
use tests::process::Process;
use tests::{eventually, skip};

/// Emulation has no kvmclock, and microvm nothing else to calibrate by: its TSC runs at 1 GHz.
const WITHOUT_KVMCLOCK: &str = "tsc_early_khz=1000000 lpj=4000000 no_timer_check tsc=reliable";

const DEADLINE: Duration = Duration::from_secs(240);

/// Boots the guest of the nested job in QEMU's microvm, which describes virtio-mmio devices as we do.
fn start_guest(rig: &Rig, dir: &Path, disk: &Path, cpus: u32) -> Process {
    let initramfs = dir.join("level2.cpio");
    std::fs::write(
        &initramfs,
        level2::initramfs(&rig.kernel().modules().unwrap()).unwrap(),
    )
    .unwrap();
    let mut qemu: Command = rig.qemu();
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ])
    .args([
        "-machine",
        "microvm,acpi=on,rtc=on",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "EPYC",
    ])
    .args(["-global", "virtio-mmio.force-legacy=false"])
    .args([
        "-smp",
        &cpus.to_string(),
        "-m",
        "256",
        "-serial",
        "stdio",
        "-kernel",
    ])
    .arg(rig.kernel().image())
    .arg("-initrd")
    .arg(initramfs)
    .args([
        "-append",
        &format!("{} {WITHOUT_KVMCLOCK}", level2::CMDLINE),
        "-device",
        "virtio-blk-device,drive=disk",
        "-drive",
    ])
    .arg(format!(
        "id=disk,if=none,format=raw,file={}",
        disk.display()
    ))
    .arg("-monitor")
    .arg(format!(
        "unix:{},server=on,wait=off",
        dir.join("monitor").display()
    ));
    Process::start(qemu, dir).unwrap()
}

#[test]
fn guest_writes_until_the_power_button_and_leaves_a_clean_disk() {
    let rig = match Rig::find() {
        Ok(rig) => rig,
        Err(reason) => skip!("{reason}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.img");
    let witness = Path::new(env!("CARGO_BIN_EXE_witness"));
    level2::make_disk(&disk, &level2::root_tree(witness).unwrap()).unwrap();
    let mut guest = start_guest(&rig, dir.path(), &disk, 2);

    let wrote = eventually(DEADLINE, || {
        let log = guest.stdout();
        let done = log.contains("guest: wrote 1-3 ") && log.contains("guest: wrote 2-3 ");
        (done || !guest.is_running()).then_some(done)
    });
    assert_eq!(wrote, Some(true), "{}{}", guest.stdout(), guest.stderr());

    let mut monitor = UnixStream::connect(dir.path().join("monitor")).unwrap();
    monitor.write_all(b"system_powerdown\n").unwrap();
    let outcome = guest.finish(DEADLINE).unwrap().success();
    assert!(outcome.stdout.contains("guest: verified"), "{outcome}");
    assert!(!outcome.stdout.contains("FAILED"), "{outcome}");
    level2::check_disk(&disk).unwrap();
    assert!(
        level2::read_from_disk(&disk, "/result")
            .unwrap()
            .starts_with("verified")
    );
}

#[test]
fn level_1_offers_kvm_and_passes_exit_codes_on() {
    let rig = match Rig::find() {
        Ok(rig) => rig,
        Err(reason) => skip!("{reason}"),
    };
    let script = "
        [ -c /dev/kvm ] || exit 1
        [ \"$(cat /sys/module/kvm_amd/parameters/npt)\" = Y ] || exit 2
        [ -c /dev/net/tun ] || exit 3
        losetup -f >/dev/null || exit 4
        cat word || exit 5
        exit 42";
    let level1 = Level1::new(&rig, script)
        .unwrap()
        .file("word", b"hello: from the payload\n");
    let run = level1.run("rig", DEADLINE).unwrap();
    assert_eq!(run.code, 42, "{}", run.tail());
    assert_eq!(
        run.lines_after("hello: ").collect::<Vec<_>>(),
        ["from the payload"]
    );
}
