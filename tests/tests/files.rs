//! A running VM is passed files by whoever asks, and opens none itself.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use tests::Host;
use tests::blackbox::passing::{MOST, Passing, request, told};
use tests::blackbox::{Guest, Pair, Vms, guest_lock, holds, images, leftovers};

fn has_open(pid: u32, path: &Path) -> bool {
    leftovers::open_files(pid).iter().any(|open| open == path)
}

fn kept(host: &Host, vm: &str) -> Vec<serde_json::Value> {
    let (status, answer) = request(host, vm, "GET /vm/files");
    assert_eq!(status, 200, "{answer}");
    answer["files"].as_array().expect("files").clone()
}

#[test]
fn a_confined_vm_is_passed_files_that_it_could_not_open() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let files = tempfile::tempdir().expect("a folder");
    let disk = images::sparse(files.path(), "disk.raw", 1 << 20);
    let disk = disk.canonicalize().expect("a path");
    let mut console = pair.source.run("guest", &Guest::idle());
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    // One that runs, and one that waits for its guest.
    for host in [&pair.source, &pair.destination] {
        let pid = host.pid("guest");
        let socket = host.folder("guest").join("files.sock");
        let mode = socket.metadata().expect("a socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let passing = Passing::to(host, "guest").expect("the VM listens");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&disk)
            .expect("a disk");
        let answer = passing.ask(&told(1, "read-write"), &[file.as_fd()]);
        let id = answer["kept"][0]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned();
        assert!(has_open(pid, &disk));
        let listed = kept(host, "guest");
        assert_eq!(
            (listed.len(), &listed[0]["id"], &listed[0]["name"]),
            (1, &answer["kept"][0], &"a disk".into())
        );

        let line = format!("DELETE /vm/files/{id}");
        assert_eq!(request(host, "guest", &line).0, 200);
        assert!(!has_open(pid, &disk), "it was let go");
        let (status, why) = request(host, "guest", &line);
        assert_eq!((status, &why["id"]), (404, &"file.unknown".into()));

        let _ = passing.ask(&told(1, "read-write"), &[file.as_fd()]);
        assert!(has_open(pid, &disk));
        drop(passing);
        holds("what nobody took is closed with its client", || {
            !has_open(pid, &disk)
        });
        assert_eq!(kept(host, "guest"), Vec::<serde_json::Value>::new());
    }
    // What a client keeps there does not hold the guest up.
    let passing = Passing::to(&pair.source, "guest").expect("the VM listens");
    let file = File::open(&disk).expect("a disk");
    let _ = passing.ask(&told(1, "read"), &[file.as_fd()]);
    let _ = pair
        .source
        .vmm(["migrate", "guest", "--to", &address])
        .success();
    assert_eq!(passing.answer(), None, "the VM has ended");
    console.moves_to(&pair.destination, "guest");
    pair.source.is_clean();
    console.verifies_ledger();
}

#[test]
fn whatever_clients_do_nothing_stays_open_and_the_guest_runs() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let files = tempfile::tempdir().expect("a folder");
    let path = images::sparse(files.path(), "disk.raw", 1 << 20);
    let path = path.canonicalize().expect("a path");
    let mut console = host.run("guest", &Guest::dirtying());
    let pid = host.pid("guest");
    let connect = || Passing::to(host, "guest").expect("the VM listens");
    let disk = File::open(&path).expect("a disk");
    // What comes with the first client and stays.
    let _ = connect().ask(&told(1, "read"), &[disk.as_fd()]);
    let open = || leftovers::open_files(pid).len();
    holds("the first is gone", || !has_open(pid, &path));
    // A connection of another client may still be among them: each of those below comes more than once.
    let before = open();

    let opened = |options: &mut OpenOptions| options.open(&path).expect("a disk");
    let others: [(OwnedFd, &str, &str); 6] = [
        (
            File::open(files.path()).expect("a folder").into(),
            "read",
            "file.type",
        ),
        (
            UnixStream::pair().expect("sockets").0.into(),
            "read-write",
            "file.type",
        ),
        (
            File::open("/dev/zero").expect("a device").into(),
            "read",
            "file.type",
        ),
        (
            opened(OpenOptions::new().read(true).custom_flags(libc::O_PATH)).into(),
            "read",
            "file.type",
        ),
        (
            opened(OpenOptions::new().append(true)).into(),
            "write",
            "file.access",
        ),
        (
            opened(OpenOptions::new().read(true)).into(),
            "read-write",
            "file.access",
        ),
    ];
    for (other, access, id) in others.iter().chain(&others).chain(&others) {
        let answer = connect().ask(&told(1, access), &[other.as_fd()]);
        assert_eq!(answer["refused"]["id"], *id, "{answer}");
    }
    let most: Vec<BorrowedFd<'_>> = vec![disk.as_fd(); MOST];
    let long = vec![b'['; 100 << 10];
    let packets = [
        (&told(MOST, "read")[..], &most[..], "file.too-many"),
        (&told(1, "read"), &most, "file.too-many"),
        (&told(1, "read"), &[], "file.message"),
        (&told(2, "read"), &most[..1], "file.message"),
        (&long, &most[..1], "file.message"),
        (b"\xff\0", &most[..1], "file.message"),
        (br#"{"version":7,"files":null}"#, &most[..1], "file.version"),
    ];
    for (text, descriptors, id) in [packets; 3].into_iter().flatten() {
        let answer = connect().ask(text, descriptors);
        assert_eq!(answer["refused"]["id"], id, "{answer}");
    }
    // Who is gone before it is answered, who says nothing, and both by the hundreds.
    for _ in 0..300 {
        let passing = connect();
        passing
            .say(&told(8, "read"), &most[..8])
            .expect("the VM listens");
        drop(passing);
        drop(connect());
    }
    let silent: Vec<_> = (0..300).map(|_| connect()).collect();
    let passing = connect();
    holds("there is room again", || {
        let answer = passing.ask(&told(1, "read"), &most[..1]);
        answer["kept"].is_array()
    });
    // One who keeps asking beyond what is kept.
    let refused = (0..40).find_map(|_| {
        let answer = passing.ask(&told(1, "read"), &most[..1]);
        answer["refused"]["id"].as_str().map(str::to_owned)
    });
    assert_eq!(refused.as_deref(), Some("file.too-many"));
    drop((passing, silent));

    holds("nothing stays open", || open() <= before);
    assert_eq!(host.status("guest")["state"], "running");
    console.wait_tick();
    console.verifies_ledger();
    host.stop("guest");
    host.is_clean();
}
