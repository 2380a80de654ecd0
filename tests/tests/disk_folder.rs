//! All that a VM keeps beside its runtime directory leaves the file system that its disks have left.

use std::fs;
use std::path::{Path, PathBuf};

use tests::blackbox::{Console, Guest, Mounted, Pair, Vms, eventually, guest_lock, images};
use tests::skip;

/// What of a process lies below `folder`: what it has open or mapped, where it works, what it was started from.
fn held_below(pid: u32, folder: &Path) -> Vec<String> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let open = fs::read_dir(process.join("fd")).expect("the process");
    let links = open
        .filter_map(|entry| Some(entry.ok()?.path()))
        .chain(["cwd", "root", "exe"].map(|name| process.join(name)));
    let mut held: Vec<_> = links
        .filter_map(|link| fs::read_link(link).ok())
        .filter(|path| path.starts_with(folder))
        .map(|path| path.display().to_string())
        .collect();
    let maps = fs::read_to_string(process.join("maps")).expect("the process");
    let folder = folder.display().to_string();
    let mapped = maps.lines().filter(|line| line.contains(&folder));
    held.extend(mapped.map(str::to_owned));
    held
}

#[test]
fn a_file_system_that_all_disks_have_left_can_be_unmounted_and_the_guest_starts_anew_without_it() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let old = match Mounted::at(host.path().join("old"), "96M") {
        Ok(old) => old,
        Err(why) => return println!("{}", skip::line(format_args!("{why}"))),
    };
    let disks = ["one.raw", "two.raw"].map(|name| images::sparse(old.path(), name, 16 << 20));
    let guest = Guest::dirtying()
        .disk_with(&disks[0], "id=one", "block=verify,size=4M block_rate=200")
        .disk_with(&disks[1], "id=two", "");
    // It is started from there, too.
    let mut console = host.run_with("guest", &guest, |command| {
        command.current_dir(old.path());
    });
    console.verifies_blocks();
    let folder = host.path().join("new");
    fs::create_dir(&folder).expect("folder");
    let to = folder.display().to_string();
    let told = host.vmm([
        "disk", "move", "guest", "--all", "--to", &to, "--format", "qcow2",
    ]);
    let told = told.success().stdout;
    console.verifies_blocks();

    let pid = host.pid("guest");
    assert_eq!(held_below(pid, old.path()), [] as [String; 0]);
    let status = host.status("guest");
    let text = old.path().display().to_string();
    assert!(!status["disks"].to_string().contains(&text), "{status:#}");
    assert_eq!(status["disks"][1]["path"], format!("{to}/two.qcow2"));
    assert!(old.unmount(), "something is left there");
    console.verifies_blocks();
    console.verifies_ledger();

    host.stop("guest");
    // As it is told, word for word.
    let options = told.lines().last().expect("options").trim();
    assert!(options.starts_with("--disk "), "{told}");
    let args = ["run", "again", "--detach", "--memory", "64MiB"].map(str::to_owned);
    let words = options.split(' ').map(str::to_owned);
    let cmdline = "ledger=8M tick_ms=100 idle=halt block=check,size=4M block_rate=200";
    let cmdline = ["--cmdline", cmdline].map(str::to_owned);
    let _ = host
        .vmm(args.into_iter().chain(words).chain(cmdline))
        .success();
    let mut console = Console::of(host, "again");
    console.wait_ready();
    console.verifies_blocks();
    eventually("it has both disks", || {
        let status = host.status("again");
        (status["disks"][1]["id"] == "two").then_some(())
    });
    host.stop("again");
    pair.is_clean();
}
