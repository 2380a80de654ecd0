//! What is not listed fails, kind by kind, and the documentation says what is listed.

// System calls that the filters must refuse are made by number.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use control::rotating_file::RotatingFile;
use landlock::LandlockStatus;

use super::call::Call;
use super::calls::{HOSTILE, THREAD};
use super::files::FilesError;
use super::*;

/// Tells the child what to try: `KIND WHAT`.
const TRY: &str = "VMM_SANDBOX_TRY";
/// Numbers of system calls that there may be.
const NUMBERS: std::ops::Range<libc::c_long> = 0..480;

/// Calls of the kernel's own trampolines, which no filter sees and nobody else may make (335 uretprobe,
/// 336 uprobe; Linux 6.11 and 6.18).
const UNFILTERED: [libc::c_long; 2] = [335, 336];

#[test]
fn every_list_compiles_and_fits_the_kernel() {
    for kind in Kind::ALL {
        for program in filter::of_kind(kind).unwrap() {
            // BPF_MAXINSNS
            assert!(program.len() < 4096, "{}: {}", kind.name(), program.len());
        }
    }
    assert!(filter::of_all().is_ok());
}

#[test]
fn a_thread_that_starts_others_may_do_all_that_they_may() {
    let names = |kind: Kind| -> BTreeSet<_> { kind.groups().iter().map(|g| g.name).collect() };
    for kind in Kind::ALL {
        for &started in kind.starts() {
            assert!(
                names(started).is_subset(&names(kind)),
                "{kind:?} {started:?}"
            );
        }
        assert!(names(kind).is_subset(&names(Kind::Process)), "{kind:?}");
    }
}

/// Starts this test program again, where it runs only [`child`].
fn child_that_tries(kind: Kind, what: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["sandbox::tests::child", "--exact", "--nocapture"])
        .arg("--test-threads=1")
        .env(TRY, format!("{} {what}", kind.name()))
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap()
}

/// A part of other tests, which start it in a process of its own; nothing by itself.
#[test]
fn child() {
    let Ok(task) = std::env::var(TRY) else { return };
    let (kind, what) = task.split_once(' ').unwrap();
    let kind = Kind::ALL.into_iter().find(|k| k.name() == kind).unwrap();
    let what = what.to_owned();
    let folder = tempfile::tempdir().unwrap();
    let log = RotatingFile::create(&folder.path().join("log"), 1000).unwrap();
    // The filter of the thread does not reach this one.
    filter::settle_allocator();
    std::thread::spawn(move || {
        refused::handle(Consequence::Fails).unwrap();
        filter::no_new_privileges().unwrap();
        filter::install_all(&filter::of_all().unwrap()).unwrap();
        filter::install_all(filter::of_kind(kind).unwrap()).unwrap();
        refused::this_thread_is(kind);
        attempt(kind, &what, log);
    })
    .join()
    .unwrap();
}

fn listed(kind: Kind) -> BTreeSet<libc::c_long> {
    let groups = kind.groups();
    groups
        .iter()
        .flat_map(|g| g.calls)
        .map(|c| c.number)
        .collect()
}

fn attempt(kind: Kind, what: &str, mut log: RotatingFile) {
    match what {
        "log" => {
            for _ in 0..30 {
                log.write_all(&[b'x'; 100]).unwrap();
            }
            assert_eq!(refused::count(), 0);
            println!("logged");
        }
        "unlisted" => {
            let listed = listed(kind);
            let hostile: BTreeSet<_> = HOSTILE.iter().map(|call| call.number).collect();
            let mut tried = 0;
            for number in NUMBERS {
                let filtered = !UNFILTERED.contains(&number);
                if listed.contains(&number) || hostile.contains(&number) || !filtered {
                    continue;
                }
                let before = refused::count();
                let errno = call(number, [0; 4]);
                assert_eq!(errno, Some(libc::EPERM), "system call {number}");
                // Refused without a signal, see the filter.
                let counted = u64::from(number != libc::SYS_clone3);
                assert_eq!(refused::count(), before + counted, "system call {number}");
                tried += 1;
            }
            println!("tried {tried}");
        }
        "memory" => {
            for _ in 0..3 {
                let pieces: Vec<Vec<u8>> =
                    (0..100).map(|_| Vec::with_capacity(100 << 10)).collect();
                std::hint::black_box(&pieces);
            }
            assert_eq!(refused::count(), 0);
            println!("freed");
        }
        "panic" => {
            let panicked = std::panic::catch_unwind(|| panic!("on purpose"));
            assert!(panicked.is_err());
            println!("lives on");
        }
        "particular" => particular(kind),
        number => {
            let errno = call(number.parse().unwrap(), [0; 4]);
            println!("returned {errno:?}");
        }
    }
}

/// The error of a call; `None` when it succeeds.
fn call(number: libc::c_long, [a, b, c, d]: [u64; 4]) -> Option<i32> {
    call_with(number, [a, b, c, d, 0, 0])
}

fn call_with(number: libc::c_long, [a, b, c, d, e, f]: [u64; 6]) -> Option<i32> {
    // SAFETY: calls that reach the kernel have no valid address and no open descriptor to act on.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    (result < 0).then(|| std::io::Error::last_os_error().raw_os_error().unwrap())
}

/// What is tried: the call with its arguments, and the kinds that may make it.
type Case<'a> = (&'a str, (libc::c_long, [u64; 4]), &'a [Kind]);

/// What a thread may do with some arguments only, or what must never be listed for it.
fn particular(kind: Kind) {
    use Kind::*;
    const KVM_RUN: u64 = 0xae80;
    const KVM_SET_MSRS: u64 = 0x4008_ae89;
    const KVM_CREATE_VM: u64 = 0xae01;
    const NO_FD: u64 = u64::MAX;
    let exec = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let coordinators = [Caretaker, Control, Migration, Incoming, Process];
    let openers = [
        Control, Migration, DiskMove, Incoming, Reception, Serving, Main, Process,
    ];
    let connectors = [Control, Migration, Pull, Incoming, Process];
    let stream = libc::SOCK_STREAM as u64;
    let packets = libc::SOCK_SEQPACKET as u64;
    let socket = |domain: i32| (libc::SYS_socket, [domain as u64, stream, u64::MAX, 0]);
    let cases: [Case<'_>; 22] = [
        (
            "open a file",
            (libc::SYS_openat, [NO_FD, 0, 0, 0]),
            &openers,
        ),
        ("remove a file", (libc::SYS_unlink, [0; 4]), &openers),
        (
            "connect",
            (libc::SYS_connect, [NO_FD, 0, 0, 0]),
            &connectors,
        ),
        ("a unix socket", socket(libc::AF_UNIX), &connectors),
        ("a TCP socket", socket(libc::AF_INET), &connectors),
        // One that was taken over passes no files to another VM.
        (
            "a unix socket of packets",
            (
                libc::SYS_socket,
                [libc::AF_UNIX as u64, packets, u64::MAX, 0],
            ),
            &[Process],
        ),
        ("a packet socket", socket(libc::AF_PACKET), &[]),
        ("a vsock socket", socket(libc::AF_VSOCK), &[]),
        ("listen", (libc::SYS_listen, [NO_FD, 0, 0, 0]), &[Process]),
        (
            "accept",
            (libc::SYS_accept4, [NO_FD, 0, 0, 0]),
            &[
                Console, Holder, Control, Incoming, Reception, Serving, Process,
            ],
        ),
        ("make code", (libc::SYS_mprotect, [1, 4096, exec, 0]), &[]),
        ("map code", (libc::SYS_mmap, [0, 4096, exec, private]), &[]),
        (
            "signal another process",
            (libc::SYS_kill, [1, 0, 0, 0]),
            &[],
        ),
        (
            "signal a thread of another process",
            (libc::SYS_tgkill, [1, 1, 0, 0]),
            &[],
        ),
        (
            "type into a terminal",
            (libc::SYS_ioctl, [NO_FD, libc::TIOCSTI, 0, 0]),
            &[],
        ),
        (
            "make a ring",
            (libc::SYS_io_uring_setup, [0; 4]),
            &[Incoming, Process],
        ),
        (
            "limit a ring",
            (libc::SYS_io_uring_register, [NO_FD, 11, 0, 0]),
            &[Incoming, Process],
        ),
        // A ring of a personality other than its own, say.
        (
            "do more with a ring",
            (libc::SYS_io_uring_register, [NO_FD, 9, 0, 0]),
            &[],
        ),
        (
            "use a ring",
            (libc::SYS_io_uring_enter, [NO_FD, 0, 0, 0]),
            &[Ring, Incoming, Process],
        ),
        (
            "run a vCPU",
            (libc::SYS_ioctl, [NO_FD, KVM_RUN, 0, 0]),
            &[Vcpu, Caretaker, Control, Migration, Incoming, Process],
        ),
        (
            "set MSRs",
            (libc::SYS_ioctl, [NO_FD, KVM_SET_MSRS, 0, 0]),
            &[Caretaker, Control, Migration, Incoming, Process],
        ),
        (
            "create a VM",
            (libc::SYS_ioctl, [NO_FD, KVM_CREATE_VM, 0, 0]),
            &[Incoming, Process],
        ),
    ];
    for (what, (number, arguments), allowed) in cases {
        let before = refused::count();
        let errno = call(number, arguments);
        let was_refused = refused::count() > before;
        assert_eq!(was_refused, !allowed.contains(&kind), "{what}: {errno:?}");
        assert!(errno.is_some(), "{what} succeeds");
    }
    // The least address whose low half is zero, too.
    for (address, everybody) in [(0, true), (1 << 32, false)] {
        let before = refused::count();
        let errno = call_with(libc::SYS_sendto, [NO_FD, 0, 0, 0, address, 16]);
        let may = everybody || kind.groups().iter().any(|g| g.name == "transfer");
        assert_eq!(refused::count() == before, may, "send: {errno:?}");
    }
    let before = refused::count();
    let thread = std::thread::Builder::new().spawn(|| ());
    let may_start =
        coordinators.contains(&kind) || matches!(kind, Reception | Flush | DiskMove | Serving);
    assert_eq!(thread.is_ok(), may_start, "start a thread");
    assert_eq!(refused::count(), before, "start a thread");
    println!("as listed");
}

#[track_caller]
fn says(output: &Output, word: &str) {
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && out.contains(word),
        "{word}: {output:?}"
    );
}

#[test]
fn no_kind_of_thread_can_make_a_call_that_is_not_listed() {
    for kind in Kind::ALL {
        let output = child_that_tries(kind, "unlisted");
        says(&output, "tried");
        let err = String::from_utf8_lossy(&output.stderr);
        let line = format!("of a thread of kind {}", kind.name());
        assert!(
            err.contains("refused system call") && err.contains(&line),
            "{err}"
        );
    }
}

#[test]
fn arguments_and_kinds_matter() {
    for kind in Kind::ALL {
        says(&child_that_tries(kind, "particular"), "as listed");
    }
}

#[test]
fn a_hostile_call_ends_the_process() {
    for call in HOSTILE {
        let output = child_that_tries(Kind::Process, &call.number.to_string());
        assert_eq!(
            output.status.signal(),
            Some(libc::SIGSYS),
            "{}: {output:?}",
            call.name()
        );
    }
    for kind in Kind::ALL {
        let output = child_that_tries(kind, &libc::SYS_execve.to_string());
        assert_eq!(
            output.status.signal(),
            Some(libc::SIGSYS),
            "{kind:?}: {output:?}"
        );
    }
}

#[test]
fn a_panic_with_a_backtrace_is_survived_by_every_kind() {
    for kind in Kind::ALL {
        says(&child_that_tries(kind, "panic"), "lives on");
    }
}

#[test]
fn every_kind_can_use_and_free_memory() {
    for kind in Kind::ALL {
        says(&child_that_tries(kind, "memory"), "freed");
    }
}

#[test]
fn every_kind_can_rotate_the_log_that_it_writes_to() {
    for kind in Kind::ALL {
        says(&child_that_tries(kind, "log"), "logged");
    }
}

/// Runs `act` on a thread that is limited to `grants`; `None` where this kernel has no landlock.
fn limited<T: Send + 'static>(
    grants: Vec<Grant>,
    act: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let thread = std::thread::spawn(move || {
        let status = files::limit(&grants)?;
        let acted = matches!(status, LandlockStatus::Available { .. }).then(act);
        Ok::<_, FilesError>(acted)
    });
    let acted = thread.join().unwrap().unwrap();
    if acted.is_none() {
        println!("skipped: this kernel has no landlock");
    }
    acted
}

#[test]
fn only_what_was_granted_can_be_opened() {
    let (given, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (inside, outside) = (given.path().to_owned(), other.path().to_owned());
    for dir in [&inside, &outside] {
        std::fs::write(dir.join("file"), "text").unwrap();
    }
    let grants = vec![
        grant(&inside, Use::Folder),
        grant("/dev/null", Use::ReadWrite),
    ];
    limited(grants, move || {
        use std::fs::{File, OpenOptions, create_dir, read, remove_file, rename, write};
        let denied = |result: std::io::Result<()>| {
            let kind = result.map_err(|e| e.kind());
            assert_eq!(kind, Err(std::io::ErrorKind::PermissionDenied));
        };
        assert_eq!(read(inside.join("file")).unwrap(), b"text");
        write(inside.join("new"), "x").unwrap();
        remove_file(inside.join("new")).unwrap();
        OpenOptions::new().write(true).open("/dev/null").unwrap();
        denied(read(outside.join("file")).map(drop));
        denied(write(outside.join("file"), "x"));
        denied(write(outside.join("new"), "x"));
        denied(remove_file(outside.join("file")));
        denied(rename(inside.join("file"), outside.join("moved")));
        denied(create_dir(outside.join("new")));
        denied(create_dir(inside.join("new")));
        denied(File::open("/etc/passwd").map(drop));
        // A link does not lead out.
        std::os::unix::fs::symlink(outside.join("file"), inside.join("link")).unwrap_err();
        denied(std::os::unix::fs::symlink("/", inside.join("link")));
    });
}

#[test]
fn a_file_that_is_passed_open_can_be_used_and_a_folder_leads_nowhere() {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsRawFd;

    use rustix::fs::{Mode, OFlags, openat};

    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("file"), "text").unwrap();
    let mut file = File::open(elsewhere.path().join("file")).unwrap();
    let folder = File::open(elsewhere.path()).unwrap();
    limited(vec![grant("/proc", Use::Read)], move || {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
        let below = openat(&folder, "file", OFlags::RDONLY, Mode::empty());
        assert_eq!(below.unwrap_err(), rustix::io::Errno::ACCESS);
        let again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        assert_eq!(
            again.unwrap_err().kind(),
            std::io::ErrorKind::PermissionDenied
        );
    });
}

#[test]
fn no_port_can_be_listened_at_and_any_can_be_connected_to() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    limited(Vec::new(), move || {
        std::net::TcpStream::connect(address).unwrap();
        let bound = std::net::TcpListener::bind("127.0.0.1:0").map_err(|e| e.kind());
        match bound {
            Err(kind) => assert_eq!(kind, std::io::ErrorKind::PermissionDenied),
            Ok(_) => println!("skipped: this kernel's landlock knows no ports"),
        }
    });
}

/// The tables of `docs/threat-model.md` as the code has them.
fn tables() -> String {
    let mut text = String::from("| thread | allowed | starts |\n|---|---|---|\n");
    for kind in Kind::ALL {
        let own: Vec<_> = kind.own().iter().map(|group| group.name).collect();
        let starts: Vec<_> = kind.starts().iter().map(|kind| kind.name()).collect();
        text += &format!(
            "| {} | {} | {} |\n",
            kind.name(),
            own.join(", "),
            starts.join(", ")
        );
    }
    text += "\n| group | system calls | for |\n|---|---|---|\n";
    let mut groups = Kind::Process.groups();
    groups.sort_by_key(|group| group.name != THREAD.name);
    for group in groups {
        let calls: Vec<_> = group.calls.iter().map(described).collect();
        text += &format!(
            "| {} | {} | {} |\n",
            group.name,
            calls.join(", "),
            group.why
        );
    }
    let hostile: Vec<_> = HOSTILE.iter().map(described).collect();
    text += &format!(
        "\n| ends the process |\n|---|\n| {} |\n",
        hostile.join(", ")
    );
    text += "\n| path | use | for |\n|---|---|---|\n";
    for (path, what, why) in COMMON {
        let what = match what {
            Use::Read => "read",
            Use::ReadWrite => "read, write",
            Use::Device => "read, write, control",
            Use::Folder | Use::RemoveFiles | Use::RemoveFolders => "folder",
        };
        text += &format!("| `{path}` | {what} | {why} |\n");
    }
    text
}

/// A call, with a mark where its arguments matter.
fn described(call: &Call) -> String {
    let mark = if call.any_of.is_empty() { "" } else { "*" };
    format!("{}{mark}", call.name())
}

const BEGIN: &str = "<!-- begin: checked tables -->\n";
const END: &str = "<!-- end: checked tables -->";

#[test]
fn the_threat_model_lists_what_the_code_allows() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/threat-model.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (written, after) = rest.split_once(END).unwrap();
    let tables = tables();
    if std::env::var_os("VMM_UPDATE_DOCS").is_some() {
        let page = format!("{before}{BEGIN}\n{tables}\n{END}{after}");
        std::fs::write(path, page).unwrap();
        return;
    }
    assert!(
        written.trim() == tables.trim(),
        "docs/threat-model.md differs from the code; run this test with VMM_UPDATE_DOCS=1, and read the \
         difference. Its tables must be:\n\n{tables}"
    );
}
