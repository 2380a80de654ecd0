//! The process of a VM keeps no more rights than it needs, and needs no more than it keeps.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use tests::blackbox::wait::PATIENCE;
use tests::blackbox::{Console, Guest, Migration, Pair, Vms, fails, guest_lock, holds, images};
use tests::{Host, Unprivileged, kernel, skip};

/// Filters of a thread that keeps only what its kind needs: two of every thread, the process's, its own.
const CONFINED: u32 = 4;

/// The system calls that make the limits.
const LANDLOCK: libc::c_long = libc::SYS_landlock_create_ruleset;
const SECCOMP: libc::c_long = libc::SYS_seccomp;

/// A line of a thread's status, as a number.
fn field(status: &str, name: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim_start_matches(':').trim().parse().ok()
}

/// Checks every thread of the process; the names of all.
#[track_caller]
fn all_threads_are_confined(pid: u32) -> Vec<String> {
    let mut names = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("threads") {
        let task = task.expect("thread").path();
        let read = |name| fs::read_to_string(task.join(name)).unwrap_or_default();
        let (name, status) = (read("comm").trim().to_owned(), read("status"));
        // A thread that ended meanwhile has none.
        let Some(filters) = field(&status, "Seccomp_filters") else {
            continue;
        };
        assert!(filters >= CONFINED, "thread {name} has {filters} filters");
        assert_eq!(field(&status, "NoNewPrivs"), Some(1), "thread {name}");
        names.push(name);
    }
    assert!(!names.is_empty());
    names
}

#[track_caller]
fn runs_strictly(host: &Host, vm: &str, guest: &Guest) -> Console {
    let mut args = guest.run_args(vm);
    args.extend(["--sandbox".into(), "strict".into()]);
    let _ = host.vmm(args).success();
    let mut console = Console::of(host, vm);
    console.wait_ready();
    console
}

const STRICT: &[&str] = &["--sandbox", "strict"];

#[test]
fn every_thread_is_confined_while_a_guest_runs_and_moves() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let files = Pair::new();
    let disk = images::sparse(files.source.path(), "data.raw", 16 << 20);
    let guest = Guest::slow_to_move().cpus(2).disk(&disk);
    let mut console = pair.source.run("guest", &guest);
    let source = pair.source.pid("guest");
    let names = all_threads_are_confined(source);
    for name in ["vmm", "control", "console", "vcpu0", "vcpu1", "rtc"] {
        assert!(names.iter().any(|known| known == name), "{name}: {names:?}");
    }
    assert!(!names.iter().any(|name| name == "opener"), "{names:?}");
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    let destination = pair.destination.pid("guest");
    let slow = ["--bandwidth", "16MiB/s"];
    let mut migration = Migration::start(&pair.source, "guest", &address, &slow);
    migration.wait_progress();
    let _ = all_threads_are_confined(source);
    migration.finish().completed();
    console.moves_to(&pair.destination, "guest");
    console.verifies_ledger();
    let names = all_threads_are_confined(destination);
    assert!(!names.iter().any(|name| name == "opener"), "{names:?}");
}

#[test]
fn files_that_were_not_given_cannot_be_opened() {
    let Some(_lock) = guest_lock() else { return };
    let elsewhere = tempfile::tempdir().expect("a folder");
    let identity = elsewhere.path().join("identity");
    fs::write(&identity, "00112233445566778899aabbccddeeff\n").expect("a file");
    let pair = Pair::new();
    for (sandbox, works) in [("on", false), ("off", true)] {
        let mut args = Guest::idle().run_args("guest");
        args.extend(["--sandbox".into(), sandbox.into()]);
        let _ = pair.source.vmm(args).success();
        let address = pair.destination.receive("guest", "127.0.0.1:0");
        // What the process reads by a name that it was given now leads to a file that it was not.
        let given = pair.source.runtime_dir().join("migrations/identity");
        fs::remove_file(&given).expect("the identity of the host's records");
        symlink(&identity, &given).expect("a link");
        let run = pair.source.vmm(["migrate", "guest", "--to", &address]);
        if works {
            let _ = run.success();
            continue;
        }
        fails(run, 1, &["permission denied", "identity"]);
        assert_eq!(pair.source.status("guest")["state"], "running");
        fs::remove_file(&given).expect("the link");
        fs::copy(&identity, &given).expect("a copy");
        let _ = pair
            .source
            .vmm(["migrate", "guest", "--to", &address])
            .success();
        pair.destination.stop("guest");
        pair.is_clean();
    }
}

/// Everything that a user does, with the mode in which a call that is not listed ends the process.
#[test]
fn nothing_that_a_vm_does_is_refused() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let (a, b) = (&pair.source, &pair.destination);
    let files = Pair::new();
    let disk = images::sparse(files.source.path(), "data.raw", 16 << 20);
    let guest = Guest::slow_to_move().cpus(2).disk(&disk);
    let mut console = runs_strictly(a, "guest", &guest);
    for step in ["pause", "resume"] {
        let _ = a.vmm([step, "guest"]).success();
    }
    let mut viewer = a.spawn(["console", "guest"]);
    holds("the console shows something", || {
        viewer.stdout().contains("PROBE")
    });
    viewer.kill();
    // Nobody listens there.
    fails(
        a.vmm(["migrate", "guest", "--to", "127.0.0.1:1"]),
        1,
        &["refused"],
    );
    fails(
        a.vmm(["migrate", "guest", "--to", "no-such-host.invalid:1"]),
        1,
        &["no-such-host", "migration.look-up"],
    );
    // An address with a scope, which that of an interface needs.
    fails(
        a.vmm(["migrate", "guest", "--to", "[fe80::1%1]:1", "--insecure"]),
        1,
        &["cannot connect", "fe80::1%1"],
    );
    fails(
        a.vmm(["migrate", "guest", "--to", "unix:/no/such/socket"]),
        1,
        &["no such file"],
    );

    // By the name of a host, cancelled.
    let address = b.receive_with("guest", "localhost:0", STRICT);
    let named = address
        .replace("127.0.0.1", "localhost")
        .replace("[::1]", "localhost");
    let plan = a.vmm(["migrate", "guest", "--to", &named, "--plan"]);
    let _ = plan.success();
    let slow = ["--bandwidth", "4MiB/s"];
    let mut migration = Migration::start(a, "guest", &named, &slow);
    migration.wait_progress();
    let _ = a
        .vmm(["migrate", "guest", "--set", "bandwidth=5MiB/s"])
        .success();
    let _ = a.vmm(["migrate", "guest", "--cancel"]).success();
    assert_eq!(migration.finish().code, 4);
    b.is_clean();

    // There over a unix socket, with all memory hashed, and back under the guest's own name.
    let socket = format!("unix:{}", b.path().join("incoming.sock").display());
    let address = b.receive_with("guest", &socket, STRICT);
    Migration::start(a, "guest", &address, &["--verify", "full"])
        .finish()
        .completed();
    console.moves_to(b, "guest");
    console.verifies_ledger();
    a.is_clean();
    let line = [
        "receive",
        "--listen",
        "127.0.0.1:0",
        "--detach",
        "--sandbox",
        "strict",
    ];
    let _ = a.vmm(line).success();
    let address = a.status("incoming-1")["listen"]
        .as_str()
        .expect("address")
        .to_owned();
    Migration::start(b, "guest", &address, &["--streams", "4"])
        .finish()
        .completed();
    console.moves_to(a, "guest");
    console.verifies_ledger();
    assert_eq!(a.status("guest")["state"], "running");
    a.stop("guest");
    pair.is_clean();

    // A guest that ends by itself in the foreground, one that crashes, and one that cannot begin. The claim
    // on a disk is let go by whoever comes last.
    let disks = images::sparse(files.source.path(), "own.raw", 16 << 20);
    for (words, code) in [
        ("exit_after=3t", 0),
        ("crash=triple", 1),
        ("crash=reset", 0),
    ] {
        for guest in [Guest::idle(), Guest::idle().disk(&disks)] {
            let mut args = guest.and(words).foreground_args("guest");
            args.extend(["--sandbox".into(), "strict".into()]);
            let _ = a.vmm(args).expect_code(code);
            a.is_clean();
        }
    }
    let text = images::text(files.source.path());
    let run = [
        Path::new("run"),
        Path::new("--sandbox"),
        Path::new("strict"),
        Path::new("--kernel"),
        &text,
    ];
    let _ = a.vmm(run).expect_code(1);
    pair.is_clean();
}

/// Runs a command where `/etc/hosts` is the file `hosts`; what else there is keeps its own.
fn with_names(hosts: &Path, command: &Command) -> Command {
    let mut wrapped = Command::new("unshare");
    wrapped
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg("mount --bind \"$0\" /etc/hosts && exec \"$@\"")
        .arg(hosts)
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

/// As after an editor or cloud-init has replaced the file of names: a VM that runs for long knows nothing of
/// what is in it now, and need not.
#[test]
fn names_are_looked_up_by_whoever_asks_for_the_move() {
    let Some(_lock) = guest_lock() else { return };
    if !rustix::process::geteuid().is_root() {
        skip!("only root can have an /etc/hosts of its own");
    }
    let pair = Pair::new();
    let mut console = runs_strictly(&pair.source, "guest", &Guest::dirtying());
    let address = pair
        .destination
        .receive_with("guest", "127.0.0.1:0", STRICT);
    let port = address.rsplit_once(':').expect("port").1;
    let to = format!("evacuation.vmm-test:{port}");
    let hosts = pair.source.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 evacuation.vmm-test\n").expect("names");
    let move_to = || pair.source.command(["migrate", "guest", "--to", &to]);
    let run = |command: Command| {
        let process = pair.source.start(command);
        process.finish(PATIENCE).unwrap_or_else(|e| panic!("{e:#}"))
    };
    fails(run(move_to()), 1, &["migration.look-up"]);
    // That nothing leaves this host is known by what the name stands for.
    let _ = run(with_names(&hosts, &move_to())).success();
    console.moves_to(&pair.destination, "guest");
    console.verifies_ledger();
    fs::remove_file(&hosts).expect("the file of names");
    pair.source.is_clean();
}

#[test]
fn a_vm_without_a_sandbox_says_so() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let mut args = Guest::idle().run_args("guest");
    args.extend(["--sandbox".into(), "off".into()]);
    let run = host.vmm(args).success();
    assert!(
        run.stderr.contains("warning") && run.stderr.contains("--sandbox off"),
        "{run}"
    );
    let status = fs::read_to_string(format!("/proc/{}/status", host.pid("guest"))).expect("status");
    assert_eq!(field(&status, "Seccomp"), Some(0));
    host.stop("guest");
    let run = host.vmm(Guest::idle().run_args("guest")).success();
    assert_eq!(
        run.stderr, "",
        "a confined VM has nothing to warn of on this kernel"
    );
}

#[test]
fn an_ordinary_user_of_the_devices_group_runs_and_moves_guests() {
    let Some(_lock) = guest_lock() else { return };
    let user = match Unprivileged::new() {
        Ok(user) => user,
        Err(why) => skip!("no other user can be given /dev/kvm here: {why}"),
    };
    let pair = Pair::new();
    let (a, b) = (&pair.source, &pair.destination);
    for host in [a, b] {
        user.own(host);
    }
    let files = Pair::new();
    let disk = images::sparse(files.source.path(), "data.raw", 16 << 20);
    user.own(&files.source);
    let run = |host: &Host, args: &[String]| {
        let process = host.start(user.command(&host.command(args)));
        process.finish(PATIENCE).unwrap_or_else(|e| panic!("{e:#}"))
    };
    let _ = run(a, &Guest::dirtying().disk(&disk).run_args("guest")).success();
    let mut console = Console::of(a, "guest");
    console.wait_ready();
    let pid = a.pid("guest");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    assert_eq!(field(&status, "CapEff"), Some(0), "{status}");
    assert!(
        status.contains(&format!("Uid:\t{}", user.uid())),
        "{status}"
    );
    let _ = all_threads_are_confined(pid);
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let _ = run(b, &words("receive --listen 127.0.0.1:0 --detach")).success();
    let address = b.status("incoming-1")["listen"]
        .as_str()
        .expect("address")
        .to_owned();
    let _ = run(a, &words(&format!("migrate guest --to {address}"))).success();
    console.moves_to(b, "guest");
    console.verifies_ledger();
    a.is_clean();
    let _ = run(b, &words("stop guest --force")).success();
    b.is_clean();

    // With the folders that a login session gives its user.
    let mut guest = Guest::idle().and("exit_after=3t").foreground_args("guest");
    guest.push("--json".into());
    let mut command: Command = a.command(&guest);
    command
        .env_remove("VMM_RUNTIME_DIR")
        .env("XDG_RUNTIME_DIR", a.path().join("run/session"))
        .env("XDG_STATE_HOME", a.path().join("run/home"));
    let run = a.start(user.command(&command)).finish(PATIENCE);
    let _ = run.unwrap_or_else(|e| panic!("{e:#}")).success();
    assert!(a.path().join("run/home/vmm/migrations/identity").exists());

    // Without the group.
    let denied = a.start(user.without_group(&a.command(Guest::idle().run_args("guest"))));
    let denied = denied.finish(PATIENCE).unwrap_or_else(|e| panic!("{e:#}"));
    fails(denied, 5, &["/dev/kvm", "group kvm"]);
}

/// A call that fails in the middle of a migration, at every kind of thread that takes part in one.
#[test]
fn a_refused_call_costs_no_guest_and_is_told() {
    let Some(_lock) = guest_lock() else { return };
    // Whose process, which thread and call, and whether the migration fails of it.
    let cases = [
        (Side::Source, "migration", "connect", true),
        (Side::Source, "stream", "sendmsg", true),
        (Side::Source, "reader", "ppoll", true),
        (Side::Source, "link", "recvfrom", true),
        (Side::Source, "migration", "openat", true),
        (Side::Source, "stream", "setpriority", false),
        (Side::Destination, "incoming", "eventfd2", true),
        (Side::Destination, "stream", "recvmsg", true),
        (Side::Destination, "stream", "setpriority", false),
    ];
    for (side, kind, call, fails) in cases {
        let what = format!("{side:?} {kind} {call}");
        println!("{what}");
        let pair = Pair::new();
        let order = format!("{kind}:{call}");
        let run = |host: &Host, here: Side, args: Vec<String>| {
            let mut command = host.command(&args);
            // The suite may run with VMs that end at such a call.
            command.env("VMM_SANDBOX", "on");
            if here == side {
                command.env("VMM_DEBUG_REFUSED_CALLS", &order);
            }
            let process = host.start(command);
            process.finish(PATIENCE).unwrap_or_else(|e| panic!("{e:#}"))
        };
        let guest = Guest::dirtying();
        let _ = run(&pair.source, Side::Source, guest.run_args("guest")).success();
        let mut console = Console::of(&pair.source, "guest");
        console.wait_ready();
        let words = "receive --listen 127.0.0.1:0 --name guest --detach".split(' ');
        let words = words.map(str::to_owned).collect();
        let _ = run(&pair.destination, Side::Destination, words).success();
        let address = pair.destination.status("guest")["listen"]
            .as_str()
            .expect("address")
            .to_owned();
        let host = match side {
            Side::Source => &pair.source,
            Side::Destination => &pair.destination,
        };
        let log = host.runtime_dir().join("guest/vmm.log");
        let ended = Migration::start(&pair.source, "guest", &address, &[]).finish();
        let line = format!("({call}) of a thread of kind {kind}");
        if fails {
            let said = ended.ended(1, "failed");
            assert!(
                said.contains("the sandbox refused system call") && said.contains(&line),
                "{what}: {said}"
            );
            assert_eq!(pair.source.status("guest")["state"], "running", "{what}");
            let there = pair.destination.state("guest");
            assert_ne!(there.as_deref(), Some("running"), "{what}");
        } else {
            let _ = ended.completed();
            console.moves_to(&pair.destination, "guest");
            if side == Side::Destination {
                let log = fs::read_to_string(&log).expect("log");
                assert!(log.contains(&line), "{what}: {log}");
            }
        }
        console.verifies_ledger();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

/// As the kernels of some hosts are: without landlock, and without filters of system calls.
#[test]
fn an_older_kernel_limits_what_it_can_and_says_what_it_cannot() {
    let Some(_lock) = guest_lock() else { return };
    let cases = [
        (LANDLOCK, libc::ENOSYS, "landlock", CONFINED),
        (SECCOMP, libc::EINVAL, "seccomp", 0),
    ];
    for (call, errno, missing, filters) in cases {
        let pair = Pair::new();
        let host = &pair.source;
        let command = kernel::without(call, errno, host.command(Guest::idle().run_args("guest")));
        let process = host.start(command);
        let run = process.finish(PATIENCE).unwrap_or_else(|e| panic!("{e:#}"));
        let lines: Vec<_> = run.stderr.lines().collect();
        assert_eq!(lines.len(), 1, "{run}");
        assert!(
            lines[0].contains("warning") && lines[0].contains(missing),
            "{run}"
        );
        assert!(lines[0].ends_with("[sandbox.partial]"), "{run}");
        let _ = run.success();
        let mut console = Console::of(host, "guest");
        console.wait_ready();
        let status = fs::read_to_string(format!("/proc/{}/status", host.pid("guest")));
        // One more is what plays the older kernel.
        let seen = field(&status.expect("status"), "Seccomp_filters").expect("filters");
        assert_eq!(seen > CONFINED, filters > 0, "{missing}: {seen}");
        assert!(seen > filters, "{missing}: {seen}");
        let address = pair.destination.receive("guest", "127.0.0.1:0");
        Migration::start(host, "guest", &address, &[])
            .finish()
            .completed();
        console.moves_to(&pair.destination, "guest");
        console.verifies_ledger();
    }
}
