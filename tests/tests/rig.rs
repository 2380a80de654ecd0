//! The rig of the nested job without `vmm`: what fails here is the rig's fault.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::nested::level1::Level1;
use tests::nested::level2;
use tests::nested::payload::Payload;
use tests::nested::rig::{Rig, find_program};
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

/// Asks the loader of the folders in the arguments for the libraries of each program and module there.
const LIBRARIES: &str = r#"
    for root; do
        for file in "$root"/usr/bin/* "$root"/usr/lib/x86_64-linux-gnu/qemu/*.so; do
            [ "$(head -c 4 "$file" | tail -c 3)" = ELF ] || continue
            echo "$file"
            LD_LIBRARY_PATH="$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu" \
                /lib64/ld-linux-x86-64.so.2 --list "$file" 2>&1
        done
    done"#;

/// Runs a command where only what every Debian system has is installed, beside the rig; or says why not.
fn on_a_base_system(rig: &Rig, command: &Command) -> Result<String, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("a root of its own needs root".into());
    }
    if find_program("dpkg").is_err() {
        return Err("this is not a Debian system".into());
    }
    let mut alone = Command::new("bash");
    alone
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("base-system.sh"))
        .arg(rig.dir())
        .arg("env");
    for (name, value) in command.get_envs() {
        let value = value.unwrap_or_default().to_string_lossy();
        alone.arg(format!("{}={value}", name.to_string_lossy()));
    }
    let output = alone
        .arg(command.get_program())
        .args(command.get_args())
        .output()
        .expect("start bash");
    let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{command:?}: {told}");
    Ok(told)
}

#[test]
fn unpacked_programs_need_nothing_but_the_base_system() {
    let rig = match Rig::find() {
        Ok(rig) => rig,
        Err(reason) => skip!("{reason}"),
    };
    let entries = std::fs::read_dir(rig.dir()).unwrap().flatten();
    let roots: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.join("usr/bin").is_dir())
        .collect();
    let mut libraries = Command::new("sh");
    libraries.args(["-c", LIBRARIES, "sh"]).args(&roots);
    let told = match on_a_base_system(&rig, &libraries) {
        Ok(told) => told,
        Err(reason) => skip!("{reason}"),
    };
    assert!(told.contains("/usr/bin/qemu-system-x86_64\n"), "{told}");
    let missing = told.lines().filter(|line| line.contains("not found"));
    assert_eq!(missing.collect::<Vec<_>>(), [""; 0], "{roots:?}");

    // And what it loads only when it works: its accelerator, its firmware.
    let qemu = rig.qemu();
    let mut works = Command::new("sh");
    works
        .args(["-c", "echo quit | \"$@\"", "sh"])
        .arg(qemu.get_program())
        .args(qemu.get_args())
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-S"])
        .args(["-machine", "q35", "-accel", "tcg", "-cpu", "EPYC"])
        .args(["-m", "64", "-monitor", "stdio"]);
    for (name, value) in qemu.get_envs() {
        works.env(name, value.unwrap_or_default());
    }
    let told = on_a_base_system(&rig, &works).unwrap();
    assert!(told.contains("monitor - type"), "{told}");
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
        [ $PROGRAMS = /usr/bin ] || exit 4
        cat word || exit 5
        exit 42";
    let payload = Payload::new(script).file("word", b"hello: from the payload\n");
    let level1 = Level1::new(&rig, &payload).unwrap();
    let run = level1.run("rig", DEADLINE).unwrap();
    assert_eq!(run.code, 42, "{}", run.tail());
    assert_eq!(
        run.lines_after("hello: ").collect::<Vec<_>>(),
        ["from the payload"]
    );
}
