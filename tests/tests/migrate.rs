//! A running guest moves between two hosts and does not notice.

use tests::Host;
use tests::blackbox::wait::eventually;
use tests::blackbox::{Console, Guest, Migration, Pair, Vms, fails, guest_lock, images, leftovers};

/// Moves `vm` and checks what everybody may see of it: report, processes, console, ledger.
#[track_caller]
fn moves(
    from: &Host,
    to: &Host,
    vm: &str,
    listen: &str,
    console: &mut Console,
    more: &[&str],
) -> serde_json::Value {
    let old = from.pid(vm);
    let before = console.last("ledger_verified").unwrap_or(0);
    let address = to.receive(vm, listen);
    let report = Migration::start(from, vm, &address, more)
        .finish()
        .completed();
    assert_eq!(to.status(vm)["state"], "running");
    from.is_clean();
    assert!(!from.processes().contains(&old));
    console.moves_to(to, vm);
    assert!(
        console.last("ledger_verified").unwrap_or(0) >= before,
        "the ledger's count went back"
    );
    console.verifies_ledger();
    report
}

fn listen_at(kind: &str, host: &Host) -> String {
    match kind {
        "tcp" => "127.0.0.1:0".into(),
        _ => format!("unix:{}", host.path().join("incoming.sock").display()),
    }
}

#[test]
fn guest_moves_with_its_ledger_intact() {
    let Some(_lock) = guest_lock() else { return };
    let cases = [
        ("one vCPU, idle", Guest::idle(), "tcp"),
        ("one vCPU, dirtying", Guest::dirtying(), "unix"),
        ("two vCPUs, idle", Guest::idle().cpus(2), "unix"),
        ("two vCPUs, dirtying", Guest::dirtying().cpus(2), "tcp"),
    ];
    for (what, guest, kind) in cases {
        println!("{what}, {kind}");
        let pair = Pair::new();
        let mut console = pair.source.run("guest", &guest);
        let listen = listen_at(kind, &pair.destination);
        let report = moves(
            &pair.source,
            &pair.destination,
            "guest",
            &listen,
            &mut console,
            &[],
        );
        assert_eq!(report["verified"], true, "{report:#}");
        assert_eq!(report["guest_bytes"], 64 << 20, "{report:#}");
        // The ledger's pages are random: they must have travelled.
        assert!(report["wire_bytes"].as_u64() > Some(8 << 20), "{report:#}");
        let status = pair.destination.status("guest");
        assert_eq!(status["memory_bytes"], 64 << 20, "{status}");
        // One ends by its user's force, the other by its own.
        match kind {
            "tcp" => pair.destination.stop("guest"),
            _ => drop(pair.destination.vmm(["stop", "guest"]).success()),
        }
        pair.is_clean();
        assert!(
            !pair.destination.path().join("incoming.sock").exists(),
            "socket is left"
        );
    }
}

#[test]
fn guest_goes_there_and_back_twenty_times() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::dirtying().cpus(2));
    for round in 0..20 {
        println!("round {round}");
        let (there, back) = (&pair.source, &pair.destination);
        for (from, to) in [(there, back), (back, there)] {
            moves(from, to, "guest", "127.0.0.1:0", &mut console, &[]);
        }
    }
    ticks_follow_each_other(&mut console);
    pair.source.stop("guest");
    pair.is_clean();
}

/// No tick of the guest was lost or printed twice on its way from console to console.
fn ticks_follow_each_other(console: &mut Console) {
    let numbers: Vec<_> = console
        .lines()
        .iter()
        .filter(|line| line.kind == "tick")
        .map(|line| line.number("n").expect("number of the tick"))
        .collect();
    for pair in numbers.windows(2) {
        assert_eq!(
            pair[1],
            pair[0] + 1,
            "ticks {pair:?} do not follow each other"
        );
    }
}

#[test]
fn verification_and_streams_are_as_asked() {
    let Some(_lock) = guest_lock() else { return };
    let cases: [(&[&str], bool); 4] = [
        (&["--verify", "stream", "--streams", "1"], true),
        (&["--verify", "full", "--streams", "3"], true),
        (&["--verify", "off"], false),
        (&["--streams", "16"], true),
    ];
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::dirtying());
    let (mut from, mut to) = (&pair.source, &pair.destination);
    for (options, verified) in cases {
        println!("{options:?}");
        let report = moves(from, to, "guest", "127.0.0.1:0", &mut console, options);
        assert_eq!(report["verified"], verified, "{report:#}");
        std::mem::swap(&mut from, &mut to);
    }
}

#[test]
fn guest_brings_its_name_unless_one_is_given() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("web-1", &Guest::idle());
    let listen = format!("unix:{}", pair.destination.path().join("in.sock").display());
    let _ = pair
        .destination
        .vmm(["receive", "--listen", &listen, "--detach"])
        .success();
    Migration::start(&pair.source, "web-1", &listen, &[])
        .finish()
        .completed();
    console.moves_to(&pair.destination, "web-1");
    console.verifies_ledger();
    let address = pair.source.receive("web-2", "127.0.0.1:0");
    Migration::start(&pair.destination, "web-1", &address, &[])
        .finish()
        .completed();
    console.moves_to(&pair.source, "web-2");
    console.verifies_ledger();
    pair.source.stop("web-2");
    pair.is_clean();
}

#[test]
fn plan_says_whether_it_would_work_and_changes_nothing() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::dirtying());
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    let planned = Migration::start(&pair.source, "guest", &address, &["--plan"]).finish();
    assert_eq!(planned.code, 0, "{:#}", planned.report);
    assert_eq!(planned.report["status"], "planned", "{:#}", planned.report);
    assert_eq!(pair.source.status("guest")["state"], "running");
    assert_eq!(pair.destination.status("guest")["state"], "incoming");
    assert_eq!(leftovers::memories(pair.destination.pid("guest")), 0);
    console.verifies_ledger();
    // And it does work.
    Migration::start(&pair.source, "guest", &address, &[])
        .finish()
        .completed();
    console.moves_to(&pair.destination, "guest");
    console.verifies_ledger();
}

#[test]
fn claim_on_a_shared_disk_changes_hands() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let third = Pair::new();
    let disk = images::sparse(third.source.path(), "data.raw", 16 << 20);
    let intruder = Guest::idle().disk(&disk);
    let refused = |when: &str| {
        println!("third party {when}");
        let run = third.source.vmm(intruder.run_args("intruder"));
        fails(run, 1, &[disk.to_str().expect("path"), "in use"]);
        third.source.is_clean();
    };
    let guest = Guest::slow_to_move().disk(&disk);
    let mut console = pair.source.run("guest", &guest);
    refused("before");
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    let mut migration =
        Migration::start(&pair.source, "guest", &address, &["--bandwidth", "8MiB/s"]);
    migration.wait_phase("precopy");
    refused("during");
    let _ = pair
        .source
        .vmm(["migrate", "guest", "--set", "bandwidth=10GiB/s"])
        .success();
    migration.finish().completed();
    pair.source.is_clean();
    refused("after");
    console.moves_to(&pair.destination, "guest");
    let before = console.last("blocks_verified").unwrap_or(0);
    eventually("the guest verifies its blocks", || {
        (console.last("blocks_verified")? > before).then_some(())
    });
    console.verifies_ledger();
    pair.destination.stop("guest");
    pair.is_clean();
    let mut console = third.source.run("intruder", &intruder);
    console.verifies_ledger();
    // A killed holder leaves no claim either.
    third.source.crash("intruder");
    third.source.is_swept();
    third.source.run("intruder", &intruder);
}

#[test]
fn what_was_loaded_into_the_guest_travels_once() {
    const INITRD: u64 = 96 << 20;
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let files = tempfile::tempdir().expect("folder for kernel and initrd");
    let (kernel, initrd) = (files.path().join("probe.elf"), files.path().join("initrd"));
    std::fs::write(&kernel, tests::probe::PROBE_GUEST).expect("kernel");
    std::fs::write(&initrd, vec![0x5a; INITRD as usize]).expect("initrd");
    let guest = Guest::idle().memory("256MiB").initrd(&kernel, &initrd);
    let mut console = pair.source.run("guest", &guest);
    let (from, to) = (&pair.source, &pair.destination);
    let report = moves(from, to, "guest", "127.0.0.1:0", &mut console, &[]);
    let sum = |passes: &[serde_json::Value], field: &str| -> u64 {
        passes.iter().filter_map(|pass| pass[field].as_u64()).sum()
    };
    let passes = report["iterations"].as_array().expect("iterations");
    assert!(sum(&passes[..1], "bytes") > INITRD, "{report:#}");
    // What the guest itself writes while it is idle. KVM takes pages for written that are only read, if their neighbours in
    // the same two mebibytes of the guest's page tables are written.
    assert!(sum(&passes[1..], "pages") < 2 * 512, "{report:#}");
    let raw = report["encodings"]["raw"]["bytes"].as_u64().expect("raw");
    let distinct = sum(&passes[..1], "bytes");
    assert!(
        raw < distinct + (4 << 20),
        "{raw} bytes of {distinct}: {report:#}"
    );
}

#[test]
fn untouched_memory_neither_travels_nor_takes_room() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run(
        "guest",
        &Guest::idle().memory("1GiB").and("fill=zero fill_size=1M"),
    );
    let report = moves(
        &pair.source,
        &pair.destination,
        "guest",
        "127.0.0.1:0",
        &mut console,
        &[],
    );
    // What the guest touched: 8 MiB of ledger, its own image, stacks and tables.
    let wire = report["wire_bytes"].as_u64().expect("wire_bytes");
    assert!(wire < 12 << 20, "{wire} bytes for 8 MiB: {report:#}");
    assert_eq!(report["guest_bytes"], 1 << 30, "{report:#}");
    let resident = leftovers::shared_memory_kib(pair.destination.pid("guest"));
    assert!(
        resident < 32 << 10,
        "{resident} KiB of guest memory at the destination"
    );
}
