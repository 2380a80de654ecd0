//! What is left of a VM that has ended: how it did, with its logs; a name and a port that are free; and
//! everything that was somebody else's.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::blackbox::wait::PATIENCE;
use tests::blackbox::{Guest, Migration, Pair, Vms, fails, guest_lock, holds, leftovers};

/// A port that nobody has now.
fn port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("address").to_string()
}

#[track_caller]
fn ended_as(status: &Value, state: &str, end: &[(&str, &str)]) {
    assert_eq!(status["state"], state, "{status:#}");
    for (key, value) in end {
        assert_eq!(status["end"][key], *value, "{status:#}");
    }
}

#[test]
fn guest_that_resets_soon_after_its_start_can_be_read() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    // It may be over before, or after, `run` returns.
    let guest = Guest::idle().and("crash=reset");
    let _ = host.vmm(guest.run_args("guest")).success();
    let status = host.ended("guest");
    ended_as(&status, "stopped", &[("how", "reset")]);
    assert_eq!(status["memory_bytes"], 64 << 20, "{status:#}");
    let shown = host.vmm(["status", "guest"]).success().stdout;
    assert!(shown.contains("the guest asked for a reset"), "{shown}");
    assert_eq!(host.vmm(["list", "--json"]).success().stdout, "");
    let listed = host.vmm(["list", "--all"]).success().stdout;
    assert!(listed.contains("the guest asked for a reset"), "{listed}");
    for args in [
        &["logs", "guest"][..],
        &["logs", "guest", "--follow"],
        &["logs", "guest", "--console"],
    ] {
        let printed = host.vmm(args).success().stdout;
        let bye = "PROBE bye reason=crash-reset";
        assert!(printed.contains(bye), "{args:?}: {printed}");
    }
    let log = host.vmm(["logs", "guest", "--vmm"]).success().stdout;
    assert!(log.contains("the guest asked for a reset"), "{log}");
    host.is_clean();
}

#[test]
fn each_way_to_end_is_told() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let signal = |signal: Signal| {
        let pid = i32::try_from(host.pid("guest")).expect("pid");
        let pid = Pid::from_raw(pid).expect("pid");
        kill_process(pid, signal).expect("signal");
    };

    let _ = host.vmm(Guest::idle().and("exit_after=2t").run_args("guest"));
    ended_as(&host.ended("guest"), "stopped", &[("how", "powered-off")]);

    let _ = host.vmm(Guest::idle().and("crash=triple").run_args("guest"));
    let crashed = host.ended("guest");
    ended_as(&crashed, "failed", &[("how", "crashed")]);
    assert!(crashed["error"]["message"].is_string(), "{crashed:#}");

    host.run("guest", &Guest::idle());
    host.stop("guest");
    let by_force = [("how", "stopped"), ("by", "stop --force")];
    ended_as(&host.ended("guest"), "stopped", &by_force);

    host.run("guest", &Guest::idle());
    // The second one does not wait for a guest that does not hear its power button.
    signal(Signal::TERM);
    signal(Signal::INT);
    ended_as(
        &host.ended("guest"),
        "stopped",
        &[("how", "stopped"), ("by", "SIGTERM")],
    );

    host.run("guest", &Guest::idle());
    signal(Signal::KILL);
    holds("the process is gone", || host.processes().is_empty());
    let killed = host.ended("guest");
    ended_as(&killed, "failed", &[("how", "killed")]);
    assert_eq!(killed["error"]["id"], "vm.killed", "{killed:#}");
    assert!(
        host.vmm(["logs", "guest"])
            .success()
            .stdout
            .contains("PROBE ready")
    );
    host.is_clean();

    host.run("guest", &Guest::idle());
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    Migration::start(host, "guest", &address, &[])
        .finish()
        .completed();
    // The last event is told when it is so.
    ended_as(
        &host.ended("guest"),
        "migrated",
        &[("how", "migrated"), ("to", &address)],
    );
    // The guest is not ended by whoever does not know that it left.
    fails(
        host.vmm(["stop", "guest", "--force"]),
        1,
        &["moved to", &address],
    );
    assert_eq!(pair.destination.status("guest")["state"], "running");
    pair.destination.stop("guest");

    pair.destination.receive("guest", "127.0.0.1:0");
    pair.destination.stop("guest");
    ended_as(&pair.destination.ended("guest"), "stopped", &by_force);
    pair.is_clean();
}

#[test]
fn receive_that_never_had_a_guest_is_remembered_by_a_name_that_it_was_given() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    host.receive("given", "127.0.0.1:0");
    let _ = host
        .vmm(["receive", "--listen", "127.0.0.1:0", "--detach"])
        .success();
    for name in ["given", "incoming-1"] {
        host.stop(name);
    }
    ended_as(&host.ended("given"), "stopped", &[("by", "stop --force")]);
    fails(host.vmm(["status", "incoming-1"]), 1, &["no vm"]);
    host.is_clean();
}

/// A guest with enough memory in use for its process to take a while to free it.
fn filled() -> Guest {
    Guest::idle()
        .memory("512MiB")
        .and("fill=random fill_size=300M")
}

#[test]
fn port_of_a_receive_that_was_stopped_is_free() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let (host, port) = (&pair.source, port());
    for round in 0..20 {
        println!("round {round}");
        // Memory that takes a while to be freed.
        host.receive_with("guest", &port, &["--reserve", "256MiB"]);
        host.stop("guest");
    }
    let socket = host.path().join("in.sock");
    let listen = format!("unix:{}", socket.display());
    for _ in 0..5 {
        host.receive("guest", &listen);
        host.stop("guest");
        assert!(!socket.exists());
    }
    host.is_clean();
}

#[test]
fn name_is_free_when_wait_has_told_the_end() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    for round in 0..20 {
        println!("round {round}");
        // Its memory takes a while to be freed.
        let guest = filled().and("exit_after=1t");
        let _ = host.vmm(guest.run_args("guest")).success();
        let _ = host.vmm(["wait", "guest"]).success();
    }
    host.is_clean();
}

#[test]
fn two_hosts_play_ping_pong_at_fixed_ports() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let disk = pair.source.path().join("disk");
    fs::write(&disk, vec![0; 1 << 20]).expect("disk");
    let mut console = pair.source.run("guest", &filled().disk(&disk));
    let ports = [port(), port()];
    let (mut from, mut to) = (&pair.source, &pair.destination);
    for round in 0..20 {
        println!("round {round}");
        let address = to.receive("guest", &ports[round % 2]);
        Migration::start(from, "guest", &address, &[])
            .finish()
            .completed();
        ended_as(&from.status("guest"), "migrated", &[("to", &address)]);
        std::mem::swap(&mut from, &mut to);
    }
    console.moves_to(from, "guest");
    console.verifies_ledger();
    from.stop("guest");
    pair.is_clean();
}

/// Every path below `root` but the host's own, with what is in it.
fn everything(root: &Path) -> Vec<(String, String)> {
    let list = "find . -mindepth 1 -not -path './.lock' -not -path './migrations*' \
                -printf '%p %y %l\\n' -type f -exec cat {} +; true";
    let found = Command::new("sh")
        .args(["-c", list])
        .current_dir(root)
        .output()
        .expect("find");
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    let mut lines: Vec<_> = text
        .lines()
        .map(|line| (root.display().to_string(), line.to_owned()))
        .collect();
    lines.sort();
    lines
}

#[test]
fn folders_of_others_are_left_alone() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let root = host.runtime_dir();
    let album = root.join("photos");
    fs::create_dir(&album).expect("folder");
    fs::write(album.join("a.jpg"), "x\n").expect("file");
    fs::create_dir(root.join("empty")).expect("folder");
    std::os::unix::fs::symlink(&album, root.join("link")).expect("link");
    let before = everything(&root);
    assert!(before.len() >= 4, "{before:?}");
    for name in ["photos", "empty", "link"] {
        let run = Guest::idle().run_args(name);
        let run: Vec<_> = run.iter().map(String::as_str).collect();
        let receive = [
            "receive",
            "--listen",
            "127.0.0.1:0",
            "--detach",
            "--name",
            name,
        ];
        for (args, words) in [
            (&["status", name][..], &["no vm"][..]),
            (&["stop", name], &["no vm"]),
            (&["forget", name], &["no vm"]),
            (&run, &["vm.foreign-folder", name]),
            (&run[..run.len() - 1], &["vm.foreign-folder", name]),
            (&receive, &["vm.foreign-folder", name]),
        ] {
            fails(host.vmm(args), 1, words);
            let listed = host.vmm(["list", "--all", "--json"]).success().stdout;
            assert_eq!(listed, "", "{args:?}");
            assert_eq!(everything(&root), before, "{args:?}");
        }
    }
    // Beside a VM that lives, ends, is killed and forgotten.
    host.run("guest", &Guest::idle());
    host.stop("guest");
    host.run("guest", &Guest::idle());
    host.crash("guest");
    holds("the process is gone", || host.processes().is_empty());
    host.ended("guest");
    let _ = host.vmm(["forget", "guest"]).success();
    assert_eq!(everything(&root), before);
}

#[test]
fn folder_that_cannot_be_read_is_told_and_hides_no_other() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let root = host.runtime_dir();
    let secret = root.join("secret");
    fs::create_dir(&secret).expect("folder");
    fs::write(secret.join("pid"), "1\n").expect("file");
    // Root reads everything, so the folder is another user's there, who is asked.
    let mut list = host.command(["list", "--all", "--json"]);
    if rustix::process::geteuid().is_root() {
        let open = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
        };
        let binary = host.path().join("vmm");
        fs::copy(list.get_program(), &binary).expect("copy of the program");
        for path in [host.path(), &root, &binary] {
            open(path, 0o777);
        }
        let mut as_nobody = Command::new("setpriv");
        as_nobody
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&binary)
            .args(["list", "--all", "--json"])
            .env("VMM_RUNTIME_DIR", &root);
        std::os::unix::fs::chown(&secret, Some(65534), None).expect("owner");
        open(&secret, 0o0);
        list = as_nobody;
        let ended = root.join("ended");
        fs::create_dir(&ended).expect("folder");
        fs::write(ended.join("pid"), "1\n").expect("file");
    } else {
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o0)).expect("mode");
        host.run("ended", &Guest::idle());
        host.stop("ended");
    }
    let listed = host
        .start(list)
        .finish(PATIENCE)
        .unwrap_or_else(|e| panic!("{e:#}"))
        .success()
        .json_lines();
    let row = |name: &str| listed.iter().find(|vm| vm["name"] == name).cloned();
    let told = row("secret").unwrap_or_else(|| panic!("{listed:?}"));
    let message = told["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("secret"), "{told:#}");
    assert!(row("ended").is_some(), "{listed:?}");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).expect("mode");
    fs::remove_dir_all(&secret).expect("folder");
    let _ = leftovers::folders(&root);
}

#[test]
fn live_vm_whose_files_a_cleaner_removed_keeps_its_name() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let mut console = host.run("guest", &Guest::idle());
    for file in ["pid", ".vmm"] {
        fs::remove_file(host.folder("guest").join(file)).expect("file");
        let _ = host.vmm(["list"]).success();
        assert_eq!(host.status("guest")["state"], "running");
        fails(host.vmm(Guest::idle().run_args("guest")), 1, &["in use"]);
        fails(host.vmm(["forget", "guest"]), 1, &["has not ended"]);
    }
    console.wait_tick();
    host.stop("guest");
    ended_as(&host.ended("guest"), "stopped", &[("by", "stop --force")]);
    host.is_clean();
}
