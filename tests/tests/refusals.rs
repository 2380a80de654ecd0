//! What cannot be used is refused with the right exit code and one line that says why.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::Host;
use tests::blackbox::{Guest, Pair, Vms, fails, guest_lock, images};
use tests::process::Outcome;

/// Runs the binary below `wrapper`, on `host`.
fn wrapped(host: &Host, wrapper: &[&str], args: &[&str]) -> Outcome {
    let vmm = host.command(args);
    let mut command = Command::new(wrapper[0]);
    command
        .args(&wrapper[1..])
        .arg(vmm.get_program())
        .args(vmm.get_args());
    command.envs(
        vmm.get_envs()
            .filter_map(|(key, value)| Some((key, value?))),
    );
    host.start(command)
        .finish(tests::blackbox::wait::PATIENCE)
        .unwrap_or_else(|e| panic!("{e:#}"))
}

/// The probe guest as a file.
#[track_caller]
fn export_probe(host: &Host) -> PathBuf {
    let probe = host.path().join("probe");
    let _ = host
        .vmm(["demo", "--export-guest", probe.to_str().expect("path")])
        .success();
    probe
}

#[test]
fn unusable_kernels_are_refused() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let (host, dir) = (&pair.source, pair.source.path());
    let probe = dir.join("probe");
    let _ = host
        .vmm(["demo", "--export-guest", probe.to_str().expect("path")])
        .success();
    let whole = fs::metadata(&probe).expect("probe").len();
    let cases = [
        (dir.join("absent"), "no such file"),
        (dir.to_owned(), "not a regular file"),
        (images::empty(dir), "kernel"),
        (images::text(dir), "kernel"),
        (images::elf32(dir), "64-bit"),
        (images::elf_without_note(dir), "pvh"),
        (
            images::truncated(&probe, dir, usize::try_from(whole / 2).expect("length")),
            "truncated",
        ),
    ];
    for (kernel, word) in &cases {
        let path = kernel.to_str().expect("path");
        println!("{path}");
        for detach in [&[][..], &["--detach"]] {
            let mut args = vec!["run", "guest", "--memory", "64MiB", "--kernel", path];
            args.extend(detach);
            fails(host.vmm(args), 1, &[word, path]);
        }
    }
    pair.is_clean();
    // What was exported whole does run.
    let args = ["run", "guest", "--memory", "64MiB", "--detach", "--kernel"];
    let _ = host
        .vmm(args.iter().copied().chain(probe.to_str()))
        .success();
}

#[test]
fn unusable_initrds_disks_and_memory_are_refused() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let (host, dir) = (&pair.source, pair.source.path());
    let odd = images::sparse(dir, "odd.raw", 1000);
    let empty = images::sparse(dir, "empty.raw", 0);
    let large = images::sparse(dir, "large.initrd", 1 << 30);
    let probe = export_probe(host);
    let probe = probe.to_str().expect("path");
    let (odd, empty) = (odd.to_str().expect("path"), empty.to_str().expect("path"));
    let (large, dir) = (large.to_str().expect("path"), dir.to_str().expect("path"));
    let cases: &[(&[&str], i32, &[&str])] = &[
        (
            &["--kernel", probe, "--initrd", "/nowhere/initrd"],
            1,
            &["/nowhere/initrd", "no such file"],
        ),
        (
            &["--kernel", probe, "--initrd", large, "--memory", "64MiB"],
            1,
            &[large],
        ),
        (&["--kernel", probe, "--initrd", dir], 1, &[dir]),
        (&["--initrd", probe], 2, &["--kernel"]),
        (
            &["--disk", "/nowhere/disk"],
            1,
            &["/nowhere/disk", "does not exist"],
        ),
        (&["--disk", dir], 1, &[dir]),
        (&["--disk", odd], 1, &[odd, "1000"]),
        (&["--disk", empty], 1, &[empty]),
        (&["--disk", "/dev/null"], 1, &["/dev/null"]),
        (&["--memory", "64TiB"], 1, &["memory"]),
        (&["--kernel", "/nowhere/kernel"], 1, &["/nowhere/kernel"]),
    ];
    for (args, code, words) in cases {
        println!("{args:?}");
        let run = host.vmm(["run", "guest"].iter().chain(*args).chain(&["--detach"]));
        fails(run, *code, words);
        host.is_clean();
    }
}

#[test]
fn unusable_configurations_are_refused() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let (host, dir) = (&pair.source, pair.source.path());
    let cases: &[(&str, &[&str])] = &[
        ("memroy = \"64MiB\"\n", &["memroy", "config.toml"]),
        ("memory = \"much\"\n", &["much"]),
        ("cpus = 17\n", &["cpus"]),
        ("cpus = \"two\"\n", &["config.toml", "line 1", "two"]),
        ("name = \"a/b\"\n", &["a/b"]),
        ("[[disk]]\npath = \"x\"\ncolour = \"blue\"\n", &["colour"]),
        ("this is no toml", &["config.toml"]),
        ("\u{0}\u{1}", &["config.toml"]),
    ];
    let file = dir.join("config.toml");
    let path = file.to_str().expect("path");
    for (text, words) in cases {
        println!("{text:?}");
        fs::write(&file, text).expect("config");
        let run = host.vmm(["run", "--config", path, "--detach"]);
        assert!(matches!(run.code(), 1 | 2), "{run}");
        let code = run.code();
        fails(run, code, words);
        host.is_clean();
    }
    let run = host.vmm(["run", "--config", "/nowhere/config.toml"]);
    assert!(run.stderr.contains("/nowhere/config.toml"), "{run}");
    assert_ne!(run.code(), 0, "{run}");
    fs::write(&file, "name = \"good\"\ncpus = 2\nmemory = \"64MiB\"\n").expect("config");
    let _ = host.vmm(["run", "--config", path, "--detach"]).success();
    assert_eq!(host.status("good")["cpus"], 2);
}

#[test]
fn names_and_addresses_in_use_are_refused() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let mut console = host.run("guest", &Guest::idle());
    let pid = host.pid("guest").to_string();
    fails(
        host.vmm(Guest::idle().run_args("guest")),
        1,
        &["guest", "in use", &pid],
    );
    let listen = [
        "receive",
        "--listen",
        "127.0.0.1:0",
        "--name",
        "guest",
        "--detach",
    ];
    fails(host.vmm(listen), 1, &["guest", "in use"]);

    let address = pair.destination.receive("first", "127.0.0.1:0");
    let listen = [
        "receive", "--listen", &address, "--name", "second", "--detach",
    ];
    fails(host.vmm(listen), 1, &[&address, "in use"]);
    let socket = format!("unix:{}", pair.destination.path().join("in.sock").display());
    pair.destination.receive("unix-first", &socket);
    let listen = [
        "receive", "--listen", &socket, "--name", "second", "--detach",
    ];
    fails(host.vmm(listen), 1, &[&socket, "in use"]);
    fails(
        host.vmm([
            "receive",
            "--listen",
            "unix:/nowhere/in.sock",
            "--name",
            "second",
            "--detach",
        ]),
        1,
        &["/nowhere/in.sock"],
    );
    assert_eq!(host.state("second"), None);
    console.verifies_ledger();

    // A guest that arrives under a name that is taken stays where it is.
    let anonymous = format!("unix:{}", host.path().join("in.sock").display());
    pair.destination.run("guest", &Guest::idle());
    let _ = host
        .vmm(["receive", "--listen", &anonymous, "--detach"])
        .success();
    let run = pair
        .destination
        .vmm(["migrate", "guest", "--to", &anonymous]);
    fails(run, 1, &["guest", "in use"]);
    assert_eq!(pair.destination.status("guest")["state"], "running");
    console.verifies_ledger();
}

#[test]
fn unknown_names_are_refused_by_every_command() {
    let pair = Pair::new();
    for command in ["status", "console", "pause", "resume", "stop", "wait"] {
        fails(pair.source.vmm([command, "nobody"]), 1, &["nobody"]);
        let run = pair.source.vmm([command, "a/b"]);
        assert!(matches!(run.code(), 1 | 2), "{run}");
    }
    fails(
        pair.source
            .vmm(["migrate", "nobody", "--to", "127.0.0.1:1"]),
        1,
        &["nobody"],
    );
    for action in ["--cancel", "--resolve"] {
        fails(
            pair.source.vmm(["migrate", "nobody", action]),
            1,
            &["nobody"],
        );
    }
    pair.is_clean();
}

/// Whether mount namespaces can be made here.
fn can_unshare() -> bool {
    Command::new("unshare")
        .args(["-m", "true"])
        .output()
        .is_ok_and(|o| o.status.success())
}

#[test]
fn host_without_kvm_is_told_with_the_fix() {
    let Some(_lock) = guest_lock() else { return };
    if !can_unshare() {
        println!("skipped: no mount namespace can be made");
        return;
    }
    let pair = Pair::new();
    let empty = pair.source.path().join("dev");
    fs::create_dir(&empty).expect("directory");
    let empty = empty.to_str().expect("path");
    // A /dev with nothing but what every program needs.
    let absent = "touch $0/null && mount --bind /dev/null $0/null && mount --rbind $0 /dev && \
                  exec \"$@\"";
    let other = "mount --bind /dev/null /dev/kvm && exec \"$@\"";
    for (what, script) in [("absent", absent), ("something else", other)] {
        println!("/dev/kvm is {what}");
        for args in [
            &["run", "guest", "--detach"][..],
            &["run", "guest"],
            &[
                "receive",
                "--listen",
                "127.0.0.1:0",
                "--name",
                "guest",
                "--detach",
            ],
        ] {
            let wrapper = ["unshare", "-m", "sh", "-c", script, empty];
            let run = wrapped(&pair.source, &wrapper, args);
            fails(run, 5, &["/dev/kvm"]);
            pair.is_clean();
        }
    }
}

#[test]
fn user_without_rights_is_told_with_the_fix() {
    let Some(_lock) = guest_lock() else { return };
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can try it as somebody else");
        return;
    }
    let pair = Pair::new();
    // Somebody else must be able to reach the binary and a directory of his own.
    let dir = tempfile::Builder::new()
        .prefix("vmm-nobody-")
        .tempdir()
        .expect("directory");
    let open = |path: &Path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("mode");
    };
    open(dir.path());
    let binary = dir.path().join("vmm");
    fs::copy(tests::binary::vmm().expect("binary"), &binary).expect("copy of the binary");
    open(&binary);
    let run = dir.path().join("run");
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&binary);
    command
        .args(["run", "guest", "--detach"])
        .env("VMM_RUNTIME_DIR", &run);
    command.env_remove("HOME").env_remove("VMM_STATE_DIR");
    let ended = pair
        .source
        .start(command)
        .finish(tests::blackbox::wait::PATIENCE)
        .unwrap_or_else(|e| panic!("{e:#}"));
    fails(ended, 5, &["/dev/kvm", "kvm"]);
    let left = tests::blackbox::leftovers::folders(&run);
    assert!(left.is_empty(), "{left:?}");
}
