//! What signals do to the process of a VM, and to a terminal.

#![allow(missing_docs)]

#[path = "support/host.rs"]
mod host;
#[path = "support/terminal.rs"]
mod terminal;

use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use host::{Host, end_of, is_alive, signal, until};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use rustix::termios::{LocalModes, tcgetattr};
use terminal::terminal;

/// Signals by number that end a process which does not expect them.
const OTHERS: [i32; 10] = [
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGQUIT,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    libc::SIGXCPU,
];

/// `kill` knows every signal by its number.
fn kill(pid: Pid, number: i32) {
    let sent = Command::new("sh")
        .args(["-c", &format!("kill -{number} {}", pid.as_raw_nonzero())])
        .status()
        .unwrap();
    assert!(sent.success(), "signal {number}");
}

/// The tests themselves may run under `nohup`, whose children ignore hang-ups as it does.
const HEARS_HANG_UPS: [&str; 2] = ["env", "--default-signal=HUP"];

/// `command` by way of another program.
fn through(program: &[&str], command: &Command) -> Command {
    let mut wrapped = Command::new(program[0]);
    wrapped.args(&program[1..]);
    wrapped.arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(key, value),
            None => wrapped.env_remove(key),
        };
    }
    wrapped
}

#[test]
fn signals_that_ask_for_nothing_do_not_end_a_vm() {
    let host = Host::new();
    host.ok("run detached --detach");
    let mut foreground = host
        .command("run foreground")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("the VM runs", || {
        host.vmm("status foreground").status.success()
    });
    for name in ["detached", "foreground"] {
        let pid = host.pid(name);
        for number in OTHERS.into_iter().chain(32..=64) {
            kill(pid, number);
        }
        until("the last signal is logged", || {
            host.log(name).contains("signal=64")
        });
        let status = &host.json(&format!("status {name} --json"))[0];
        assert_eq!(status["state"], "running", "{name}");
        assert_eq!(host.pid(name), pid);
    }
    assert!(foreground.try_wait().unwrap().is_none());
    host.ok("stop foreground");
    assert_eq!(end_of(foreground), Some(0));
}

#[test]
fn a_hang_up_ends_a_vm_in_the_foreground_as_a_request_to_end_does() {
    let host = Host::new();
    // Of one that has ended the status stays, so each has its own name.
    for cmdline in ["hears", "deaf"] {
        let command = host.command(&format!("run {cmdline} --cmdline {cmdline}"));
        let run = through(&HEARS_HANG_UPS, &command)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        until("the VM runs", || {
            host.vmm(&format!("status {cmdline}")).status.success()
        });
        signal(Pid::from_child(&run), Signal::HUP);
        assert_eq!(end_of(run), Some(0), "{cmdline}");
    }
}

#[test]
fn a_vm_under_nohup_outlives_its_terminal() {
    let host = Host::new();
    let mut run = through(&["env", "--ignore-signal=HUP"], &host.command("run a"));
    let run = run
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("the VM runs", || host.vmm("status a").status.success());
    signal(Pid::from_child(&run), Signal::HUP);
    // One that asks for its end is heard after it.
    assert_eq!(host.json("status a --json")[0]["state"], "running");
    signal(Pid::from_child(&run), Signal::TERM);
    assert_eq!(end_of(run), Some(0));
    assert!(!host.log("a").contains("signal=1 "));
}

#[test]
fn a_hang_up_has_a_detached_vm_open_its_logs_again() {
    let host = Host::new();
    host.ok("run a --detach");
    let pid = host.pid("a");
    let folder = host.folder("a");
    for log in ["vmm.log", "serial.log"] {
        until(log, || {
            folder.join(log).metadata().is_ok_and(|log| log.len() > 0)
        });
        std::fs::rename(folder.join(log), folder.join(format!("{log}.old"))).unwrap();
    }
    signal(pid, Signal::HUP);
    until("the log is opened again", || {
        host.log("a").contains("opened again")
    });
    assert!(is_alive(pid));
    let mut console = host
        .command("console a")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    console
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"after\n")
        .unwrap();
    let read = |log: &str| std::fs::read_to_string(folder.join(log)).unwrap_or_default();
    until("the guest's output is in the new log", || {
        read("serial.log").contains("after")
    });
    assert_eq!(read("serial.log.old"), "hello from the guest\n");
    let stderr = std::fs::read_link(format!("/proc/{}/fd/2", pid.as_raw_nonzero())).unwrap();
    assert_eq!(stderr, folder.join("vmm.log"));
    console.kill().unwrap();
    console.wait().unwrap();
}

#[test]
fn a_vm_hears_signals_that_its_starter_had_blocked() {
    let host = Host::new();
    let blocked = ["env", "--block-signal=TERM", "--block-signal=INT"];
    for (name, detach) in [("a", ""), ("b", "--detach")] {
        let command = host.command(&format!("run {name} {detach}"));
        let mut run = through(&blocked, &command);
        let mut run = run
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        until("the VM runs", || {
            host.vmm(&format!("status {name}")).status.success()
        });
        let pid = host.pid(name);
        let status = format!("/proc/{}/status", pid.as_raw_nonzero());
        // The C library blocks all signals for the moment in which it starts a thread.
        until("no signal is blocked", || {
            let status = std::fs::read_to_string(&status).unwrap();
            let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
            mask.map(str::trim) == Some("0000000000000000")
        });
        signal(pid, Signal::TERM);
        until("the VM ends", || !is_alive(pid));
        run.wait().unwrap();
    }
}

#[test]
fn a_limit_of_file_sizes_does_not_end_a_vm() {
    let host = Host::new();
    host.ok("run a --detach");
    let pid = host.pid("a");
    let limit = Rlimit {
        current: Some(100),
        maximum: None,
    };
    let before = prlimit(Some(pid), Resource::Fsize, limit).unwrap();
    let mut console = host
        .command("console a")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let line = [[b'x'; 1000].as_slice(), b"\n"].concat();
    // What is typed is printed, and goes to the log.
    console.stdin.as_mut().unwrap().write_all(&line).unwrap();
    let mut shown = vec![0; "hello from the guest\n".len() + line.len()];
    std::io::Read::read_exact(console.stdout.as_mut().unwrap(), &mut shown).unwrap();
    assert!(is_alive(pid));
    prlimit(Some(pid), Resource::Fsize, before).unwrap();
    assert_eq!(host.json("status a --json")[0]["state"], "running");
    console.kill().unwrap();
    console.wait().unwrap();
}

fn is_raw(terminal: &File) -> bool {
    let modes = tcgetattr(terminal).unwrap().local_modes;
    !modes.contains(LocalModes::ICANON)
}

/// Has `command` run at `terminal`, which is its own as that of a shell in the foreground is.
fn at_terminal(command: &Command, terminal: &File) -> std::process::Child {
    through(&["setsid", "--ctty"], command)
        .stdin(terminal.try_clone().unwrap())
        .stdout(terminal.try_clone().unwrap())
        .stderr(terminal.try_clone().unwrap())
        .spawn()
        .unwrap()
}

#[test]
fn a_console_that_a_signal_ends_leaves_the_terminal_as_it_was() {
    let host = Host::new();
    host.ok("run a --detach");
    for number in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let (_user, terminal) = terminal();
        let mut console = at_terminal(&host.command("console a"), &terminal);
        until("the terminal is raw", || is_raw(&terminal));
        signal(Pid::from_child(&console), number);
        let status = console.wait().unwrap();
        assert_eq!(status.signal(), Some(number.as_raw()));
        assert!(!is_raw(&terminal), "{number:?}");
    }
    assert_eq!(host.json("status a --json")[0]["state"], "running");
}

#[test]
fn a_vm_that_a_signal_ends_leaves_the_terminal_as_it_was() {
    let host = Host::new();
    for number in [Signal::TERM, Signal::INT, Signal::HUP] {
        let (_user, terminal) = terminal();
        let command = through(&HEARS_HANG_UPS, &host.command("run a"));
        let run = at_terminal(&command, &terminal);
        until("the terminal is raw", || is_raw(&terminal));
        let pid = Pid::from_child(&run);
        // Does not end it, so that it leaves nothing.
        signal(pid, Signal::QUIT);
        until("it is heard", || host.log("a").contains("signal=3"));
        signal(pid, number);
        assert_eq!(end_of(run), Some(0), "{number:?}");
        assert!(!is_raw(&terminal), "{number:?}");
    }
}
