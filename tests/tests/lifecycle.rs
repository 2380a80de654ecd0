//! A guest is started, looked at, paused, resumed and ended from the command line.

use std::process::Command;

use tests::blackbox::{Guest, Pair, Vms, fails, guest_lock, holds, leftovers, one_json};
use tests::process::Process;

#[test]
fn guest_runs_pauses_resumes_and_stops() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let mut console = host.run("guest", &Guest::dirtying().cpus(2));
    let status = host.status("guest");
    assert_eq!(status["name"], "guest", "{status}");
    assert_eq!(status["state"], "running", "{status}");
    assert_eq!(status["cpus"], 2, "{status}");
    assert_eq!(status["memory_bytes"], 64 << 20, "{status}");
    assert_eq!(leftovers::machines(host.pid("guest")), 1);

    let _ = host.vmm(["pause", "guest"]).success();
    assert_eq!(host.status("guest")["state"], "paused");
    let silent = console.text();
    let _ = host.vmm(["pause", "guest"]).success();
    assert_eq!(host.status("guest")["state"], "paused");
    assert_eq!(console.text(), silent, "a paused guest prints nothing");

    let _ = host.vmm(["resume", "guest"]).success();
    assert_eq!(host.status("guest")["state"], "running");
    console.wait_tick();
    console.verifies_ledger();

    let _ = host.vmm(["stop", "guest", "--force"]).success();
    host.is_clean();
    assert_eq!(host.ended("guest")["end"]["by"], "stop --force");
    let _ = host.vmm(["forget", "guest"]).success();
    fails(host.vmm(["status", "guest"]), 1, &["guest", "no vm"]);
}

#[test]
fn guests_are_listed_by_name() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    assert_eq!(host.vmm(["list", "--json"]).success().stdout, "");
    for name in ["beta", "alpha"] {
        host.run(name, &Guest::idle());
    }
    let _ = host.vmm(["pause", "beta"]).success();
    let listed = host.vmm(["list", "--json"]).success().json_lines();
    let rows: Vec<_> = listed
        .iter()
        .map(|vm| (vm["name"].as_str(), vm["state"].as_str()))
        .collect();
    let expected = [
        (Some("alpha"), Some("running")),
        (Some("beta"), Some("paused")),
    ];
    assert_eq!(rows, expected);
    let table = host.vmm(["list"]).success().stdout;
    for word in ["alpha", "beta", "running", "paused"] {
        assert!(table.contains(word), "{word:?} is missing in {table}");
    }
    // Hosts do not see each other.
    assert_eq!(
        pair.destination.vmm(["list", "--json"]).success().stdout,
        ""
    );
}

#[test]
fn detached_guest_can_be_asked_at_once() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    for _ in 0..10 {
        let _ = pair.source.vmm(Guest::idle().run_args("guest")).success();
        assert_eq!(pair.source.status("guest")["state"], "running");
        pair.source.stop("guest");
        // The name is free as soon as stop has returned.
        assert_eq!(pair.source.state("guest").as_deref(), Some("stopped"));
    }
    pair.is_clean();
}

#[test]
fn detached_guest_keeps_nothing_of_its_caller() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let mut shell = Command::new("sh");
    // Ends only when nobody holds the pipe any more.
    shell.args(["-c", "exec 2>&1; \"$0\" \"$@\" | cat"]);
    let vmm = host.command::<&str>([]);
    shell
        .arg(vmm.get_program())
        .args(Guest::idle().run_args("guest"));
    shell.envs(
        vmm.get_envs()
            .filter_map(|(key, value)| Some((key, value?))),
    );
    let output = host.path().join("output");
    let ended = Process::start(shell, &output)
        .and_then(|process| process.finish(tests::blackbox::wait::PATIENCE))
        .unwrap_or_else(|e| panic!("{e:#}"));
    let _ = ended.success();
    assert_eq!(host.status("guest")["state"], "running");
}

#[test]
fn guest_without_a_name_gets_one() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    for _ in 0..2 {
        let _ = host.vmm(["run", "--memory", "64MiB", "--detach"]).success();
    }
    let names: Vec<_> = host
        .vmm(["list", "--json"])
        .success()
        .json_lines()
        .iter()
        .map(|vm| vm["name"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_ne!(names[0], names[1]);
}

#[test]
fn guest_in_the_foreground_prints_its_console_and_ends_well() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let guest = Guest::idle().and("exit_after=3t");
    let run = pair.source.vmm(guest.foreground_args("guest")).success();
    for word in ["PROBE hello", "PROBE ready", "PROBE bye"] {
        assert!(run.stdout.contains(word), "{word:?} is missing in {run}");
    }
    pair.is_clean();
}

#[test]
fn wait_ends_with_the_guest() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    host.run("guest", &Guest::idle());
    let mut waiting = host.spawn(["wait", "guest", "--json"]);
    assert_eq!(host.status("guest")["state"], "running");
    assert!(waiting.is_running(), "{}", waiting.stderr());
    host.stop("guest");
    let ended = waiting
        .finish(tests::blackbox::wait::PATIENCE)
        .unwrap_or_else(|e| panic!("{e:#}"));
    assert_eq!(one_json(&ended.success())["state"], "stopped");
    pair.is_clean();
}

#[test]
fn guest_that_powers_off_or_resets_ends_its_vm() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let mut console = host.run("guest", &Guest::idle().and("exit_after=5t"));
    console.wait_for("bye", |line| line.kind == "bye");
    assert_eq!(host.ended("guest")["end"]["how"], "powered-off");
    host.is_clean();
    let run = host
        .vmm(Guest::idle().and("crash=reset").foreground_args("guest"))
        .success();
    assert!(run.stdout.contains("PROBE bye reason=crash-reset"), "{run}");
    assert_eq!(host.ended("guest")["end"]["how"], "reset");
    host.is_clean();
}

#[test]
fn guest_that_crashes_is_told_from_one_that_ended() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let guest = Guest::idle().and("crash=triple");
    let run = host.vmm(guest.foreground_args("guest"));
    fails(run, 1, &["triple fault"]);
    host.is_clean();
    // It may be over before, or after, `run` returns.
    let _ = host.vmm(guest.run_args("guest"));
    host.wait_state("guest", "failed");
    let status = host.status("guest");
    assert!(status["error"]["message"].is_string(), "{status}");
    let cause = &status["error"]["causes"][0];
    assert_eq!(cause["id"], "guest.registers", "{status}");
    let registers = cause["message"].as_str().unwrap();
    assert!(registers.contains("rip 0x"), "{status}");
    assert!(!registers.contains("cr3 0x0 "), "{status}");
    fails(host.vmm(["wait", "guest"]), 1, &["triple fault"]);
    // The name can be used again at once.
    host.run("guest", &Guest::idle());
    assert_eq!(host.status("guest")["state"], "running");
    host.stop("guest");
    host.is_clean();
}

#[test]
fn console_shows_what_the_guest_prints() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let mut followed = host.run("guest", &Guest::idle());
    let viewer = host.spawn(["console", "guest"]);
    let ticks = |text: &str| text.matches("PROBE tick").count();
    holds("the console shows ticks", || ticks(&viewer.stdout()) > 2);
    followed.wait_tick();
    host.stop("guest");
    // Nobody looks at a console of which nothing comes any more.
    let ended = viewer
        .finish(tests::blackbox::wait::PATIENCE)
        .unwrap_or_else(|e| panic!("{e:#}"));
    assert_eq!(ended.code(), 0, "{ended}");
}

#[test]
fn usage_errors_exit_with_two() {
    let pair = Pair::new();
    let cases: &[(&[&str], &str)] = &[
        (&["run", "--cpus", "0"], "cpus"),
        (&["run", "--cpus", "17"], "cpus"),
        (&["run", "--cpus", "many"], "cpus"),
        (&["run", "--memory", "lots"], "memory"),
        (&["run", "--memory", "0"], "memory"),
        (&["run", "a/b"], "a/b"),
        (&["run", ".."], ".."),
        (&["run", "--disk", ""], "disk"),
        (&["run", "--disk", "x,format=vmdk"], "vmdk"),
        (&["run", "--cpu", "z80"], "z80"),
        (&["run", "--unheard-of"], "unheard-of"),
        (&["receive"], "listen"),
        (&["receive", "--listen", "nowhere"], "nowhere"),
        (&["receive", "--listen", "unix:"], "unix:"),
        (&["migrate", "guest"], "--to"),
        (&["migrate", "guest", "--to", "nowhere"], "nowhere"),
        (
            &[
                "migrate",
                "guest",
                "--to",
                "127.0.0.1:1",
                "--downtime-limit",
                "soon",
            ],
            "soon",
        ),
        (
            &["migrate", "guest", "--to", "127.0.0.1:1", "--streams", "0"],
            "streams",
        ),
        (
            &[
                "migrate",
                "guest",
                "--to",
                "127.0.0.1:1",
                "--on-timeout",
                "explode",
            ],
            "explode",
        ),
        (
            &["migrate", "guest", "--to", "127.0.0.1:1", "--cancel"],
            "--cancel",
        ),
        (&["migrate", "guest", "--set", "colour=blue"], "colour"),
        (&["frobnicate"], "frobnicate"),
        (&[], "usage"),
    ];
    for (args, word) in cases {
        let run = pair.source.vmm(*args).expect_code(2);
        let said = run.stderr.to_lowercase();
        assert!(said.contains(word), "{word:?} is missing in {run}");
        assert!(!said.contains("panicked"), "{run}");
    }
    pair.is_clean();
}
