//! CPU models: what a guest sees is what every host must have, and a host that lacks some of it says so.

use std::fs;

use tests::Host;
use tests::blackbox::{Console, Guest, Migration, Pair, Vms, fails, guest_lock};

/// Makes the host offer at most what `text` says.
fn limit(host: &Host, text: &str) {
    fs::write(host.runtime_dir().join("host-cpu.toml"), text).expect("host-cpu.toml");
}

#[track_caller]
fn moves(from: &Host, to: &Host, console: &mut Console) {
    let address = to.receive("guest", "127.0.0.1:0");
    Migration::start(from, "guest", &address, &[])
        .finish()
        .completed();
    console.moves_to(to, "guest");
    from.is_clean();
    console.verifies_ledger();
}

/// Whether KVM here offers a level; says so if not.
fn offers(host: &Host, level: &str) -> bool {
    let run = host.vmm([
        "run", "trial", "--memory", "64MiB", "--cpu", level, "--detach",
    ]);
    if run.code() == 0 {
        host.stop("trial");
        return true;
    }
    fails(run, 5, &[level, "cpuid"]);
    println!("skipped: KVM on this machine does not offer {level}");
    false
}

#[test]
fn guest_of_the_lowest_level_moves_to_a_host_that_offers_no_more() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    limit(&pair.destination, "base = \"x86-64-v1\"\n");
    let guest = Guest::dirtying().cpus(2).cpu("x86-64-v1");
    let mut console = pair.source.run("guest", &guest);
    moves(&pair.source, &pair.destination, &mut console);
    moves(&pair.destination, &pair.source, &mut console);
    pair.source.stop("guest");
    pair.is_clean();
}

#[test]
fn guest_that_has_more_than_a_host_offers_stays_and_runs() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    limit(&pair.destination, "base = \"x86-64-v1\"\nname = \"pool\"\n");
    let mut console = pair.source.run("guest", &Guest::dirtying());
    for plan in [&["--plan"][..], &[]] {
        let address = pair.destination.receive("guest", "127.0.0.1:0");
        let ended = Migration::start(&pair.source, "guest", &address, plan).finish();
        let said = ended.ended(1, "failed");
        for word in ["at most pool", "cx16 (cpuid 0x1:0 ecx bit 13)", "lahf_lm"] {
            assert!(said.contains(word), "{word:?} is missing in {said}");
        }
        assert_eq!(
            ended.report["error"]["phase"], "negotiate",
            "{:#}",
            ended.report
        );
        assert_eq!(pair.source.status("guest")["state"], "running");
        console.verifies_ledger();
        if pair.destination.state("guest").is_some() {
            pair.destination.stop("guest");
        }
        pair.destination.is_clean();
    }
}

#[test]
fn level_above_what_a_host_offers_is_refused_by_its_bits() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    limit(host, "base = \"x86-64-v1\"\n");
    for (level, words) in [
        (
            "x86-64-v2",
            &["sse4_2 (cpuid 0x1:0 ecx bit 20)", "popcnt"][..],
        ),
        (
            "x86-64-v3",
            &["avx2 (cpuid 0x7:0 ebx bit 5)", "fma", "bmi2"],
        ),
        ("x86-64-v4", &["avx512vl (cpuid 0x7:0 ebx bit 31)"]),
    ] {
        for detach in [&[][..], &["--detach"]] {
            let args = ["run", "guest", "--memory", "64MiB", "--cpu", level];
            let run = host.vmm(args.iter().chain(detach));
            let mut all = vec![level, "host-cpu"];
            all.extend(words);
            fails(run, 5, &all);
            host.is_clean();
        }
    }
    // What `host` is there is the level itself.
    let mut console = host.run("guest", &Guest::dirtying());
    moves(host, &pair.destination, &mut console);
    moves(&pair.destination, host, &mut console);
}

#[test]
fn model_of_a_file_is_what_the_guest_needs_everywhere() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let file = pair.source.path().join("pool.toml");
    let path = file.to_str().expect("path");
    fs::write(&file, "base = \"x86-64-v1\"\nadd = [\"cx16\"]\n").expect("model");
    let mut console = pair.source.run("guest", &Guest::dirtying().cpu(path));
    limit(&pair.destination, "base = \"x86-64-v1\"\n");
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    let ended = Migration::start(&pair.source, "guest", &address, &[]).finish();
    let said = ended.ended(1, "failed");
    assert!(
        said.contains("cpu has: cx16 (cpuid 0x1:0 ecx bit 13)"),
        "{said}"
    );
    assert!(!said.contains("lahf_lm"), "{said}");
    pair.destination.waits_on("guest");
    // What the host offers is read when a receiver starts.
    pair.destination.waits_no_more("guest");
    // The operator allows one more.
    limit(
        &pair.destination,
        "base = \"x86-64-v1\"\nadd = [\"cx16\"]\n",
    );
    moves(&pair.source, &pair.destination, &mut console);
}

#[test]
fn files_that_are_no_models_are_usage_errors() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let file = host.path().join("model.toml");
    let path = file.to_str().expect("path");
    let run = [
        "run", "guest", "--memory", "64MiB", "--detach", "--cpu", path,
    ];
    fails(host.vmm(run), 2, &[path]);
    for (text, word) in [
        ("base = \"x86-64-v7\"", "x86-64-v7"),
        ("base = \"host\"\nadd = [\"warp\"]", "warp"),
        ("\u{0}", "line 1"),
    ] {
        fs::write(&file, text).expect("model");
        fails(host.vmm(run), 2, &[path, word]);
        host.is_clean();
    }
    // A limit that cannot be read stops what would go past it.
    limit(host, "base = \"x86-64-v7\"");
    fails(
        host.vmm(["run", "guest", "--detach"]),
        2,
        &["host-cpu.toml", "x86-64-v7"],
    );
    let receive = [
        "receive",
        "--listen",
        "127.0.0.1:0",
        "--name",
        "guest",
        "--detach",
    ];
    fails(host.vmm(receive), 2, &["host-cpu.toml"]);
    host.is_clean();
}

#[test]
fn guest_of_the_second_level_moves_between_hosts_that_differ_above_it() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    if !offers(&pair.source, "x86-64-v2") || !offers(&pair.source, "x86-64-v3") {
        return;
    }
    limit(&pair.destination, "base = \"x86-64-v2\"\n");
    let mut console = pair
        .source
        .run("guest", &Guest::dirtying().cpus(2).cpu("x86-64-v2"));
    moves(&pair.source, &pair.destination, &mut console);
    moves(&pair.destination, &pair.source, &mut console);
    pair.source.stop("guest");
    let mut console = pair
        .source
        .run("guest", &Guest::dirtying().cpu("x86-64-v3"));
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    let ended = Migration::start(&pair.source, "guest", &address, &[]).finish();
    let said = ended.ended(1, "failed");
    assert!(said.contains("avx2 (cpuid 0x7:0 ebx bit 5)"), "{said}");
    assert!(said.contains("avx state"), "{said}");
    console.verifies_ledger();
}
