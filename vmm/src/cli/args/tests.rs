use std::time::Duration;

use clap::CommandFactory;

use control::units::Rate;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn lines_of_the_contract_are_understood() {
    for line in [
        "vmm run",
        "vmm run a --kernel k --initrd i --cmdline console=ttyS0 --cpus 4 --memory 1GiB",
        "vmm run a --cpu x86-64-v2",
        "vmm run a --cpu ./pool.toml",
        "vmm run a --cpu host --pages thp --disk d.img,readonly,id=x --disk e.img --detach",
        "vmm run --config f.toml --json",
        "vmm run --sandbox strict",
        "vmm receive --listen 127.0.0.1:0 --sandbox off",
        "vmm run --net tap=t0,mac=52:54:00:12:34:56,queues=4,id=lan --net tap=t1",
        "vmm receive --listen unix:/s --net net0=tap7 --net lan=tap8",
        "vmm receive --listen unix:/s --reserve 1GiB",
        "vmm --json receive --listen 127.0.0.1:0 --name b --disk x=/d.img --detach",
        "vmm migrate a --to h:1 --downtime-limit 50ms --bandwidth 500MiB/s --streams 4",
        "vmm migrate a --to unix:/s --timeout 1h --on-timeout stop --mode precopy --verify full",
        "vmm migrate a --to h:1 --insecure --plan --json",
        "vmm migrate a --cancel",
        "vmm migrate a --resolve",
        "vmm migrate a --set downtime-limit=1s,bandwidth=unlimited",
        "vmm jobs a",
        "vmm jobs a 7 --json",
        "vmm jobs a 7 --cancel",
        "vmm jobs a 7 --set downtime-limit=1s,bandwidth=unlimited",
        "vmm run --disk d.qcow2,format=qcow2 --allow-backing /a --allow-backing /b",
        "vmm receive --listen unix:/s --allow-backing /a",
        "vmm disk info d --json",
        "vmm disk info d --format raw --allow-backing /a",
        "vmm disk check d --json",
        "vmm disk create d --size 1GiB",
        "vmm disk create d --size 1GiB --format qcow2 --cluster-size 64KiB --backing b --backing-format raw",
        "vmm disk resize d --size 1GiB --shrink --format qcow2",
        "vmm list --json",
        "vmm status a",
        "vmm console a",
        "vmm pause a",
        "vmm resume a",
        "vmm stop a --force",
        "vmm wait a --state running --timeout 30s",
        "vmm demo --export-guest f --memory 1GiB",
        "vmm bench --runs 3 --memory 512MiB --streams 2 --scenario idle --json",
        "vmm completions bash",
        "vmm man d -vv --log-format json",
    ] {
        assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
    }
}

#[test]
fn wrong_lines_are_usage_errors() {
    for line in [
        "vmm",
        "vmm fly",
        "vmm run a b",
        "vmm run --cpus 0",
        "vmm run --cpus 17",
        "vmm run --cpu qemu64",
        "vmm run --cpu x86-64-v5",
        "vmm run --memory lots",
        "vmm run --sandbox loose",
        "vmm run --net t0",
        "vmm run --net tap=",
        "vmm run --net tap=t0,queues=0",
        "vmm run --net tap=t0,tap=t1",
        "vmm run --net tap=t0,mac=52:54:00:12:34:56,mac=52:54:00:12:34:57",
        "vmm run --net tap=t0,queues=1,queues=2",
        "vmm run --net tap=t0,id=a,id=b",
        "vmm run --disk d.img,id=a,id=b",
        "vmm run --disk d.img,readonly,readonly",
        "vmm run --disk d.img,format=raw,format=raw",
        "vmm migrate a --set bandwidth=1MiB/s,bandwidth=2MiB/s",
        "vmm migrate a --set downtime-limit=1s,downtime-limit=2s",
        "vmm migrate a --to h:1 --bandwidth 0.9B/s",
        "vmm migrate a --to fd:3",
        "vmm run --net tap=t0,queues=9",
        "vmm run --net tap=t0,mac=01:00:5e:00:00:01",
        "vmm run --net mac=52:54:00:00:00:01",
        "vmm receive --listen h:1 --net net0",
        "vmm receive --listen h:1 --net net0=a/b",
        "vmm run --disk d.img,format=vmdk",
        "vmm disk",
        "vmm disk create d",
        "vmm disk create d --size 1GiB --format vdi",
        "vmm disk create d --size 1GiB --cluster-size 3KiB",
        "vmm disk create d --size 1GiB --format qcow2 --cluster-size 4MiB",
        "vmm disk create d --size 1GiB --format qcow2 --backing b",
        "vmm disk resize d",
        "vmm disk move a",
        "vmm receive",
        "vmm migrate a",
        "vmm migrate a --to nowhere",
        "vmm migrate a --to h:0",
        "vmm migrate a --to h:1 --cancel",
        "vmm migrate a --to h:1 --mode postcopy",
        "vmm migrate a --to h:1 --mode hybrid",
        "vmm migrate a --to h:1 --timeout 1s --on-timeout postcopy",
        "vmm migrate a --to h:1 --on-timeout stop",
        "vmm migrate a --to h:1 --streams 17",
        "vmm migrate a --to h:1 --compress zstd",
        "vmm migrate a --to h:1 --tls-dir d",
        "vmm migrate a --cancel --plan",
        "vmm migrate a --set cpus=4",
        "vmm migrate a --resume",
        "vmm jobs",
        "vmm jobs a --cancel",
        "vmm jobs a --set bandwidth=1MiB/s",
        "vmm jobs a 7 --set cpus=4",
        "vmm jobs a 7 --cancel --set bandwidth=1MiB/s",
        "vmm stop",
        "vmm wait a --state asleep",
    ] {
        match parse(line) {
            Ok(_) => panic!("{line} is accepted"),
            Err(e) => assert_eq!(e.exit_code(), 2, "{line}"),
        }
    }
}

#[test]
fn limits_are_read_in_their_units() {
    let limits = parse_limits("downtime-limit=1.5s,bandwidth=10MB/s").unwrap();
    assert_eq!(
        limits.downtime_limit,
        Some(Span(Duration::from_millis(1500)))
    );
    assert_eq!(limits.bandwidth, Some(Rate(Some(10_000_000))));
    let limits = parse_limits("bandwidth=unlimited").unwrap();
    assert_eq!(limits.bandwidth, Some(Rate(None)));
    let limits = parse_limits("downtime-limit=1us").unwrap();
    assert_eq!(limits.downtime_limit, Some(Span(Duration::from_micros(1))));
}

fn migrate_args(line: &str) -> MigrateArgs {
    match parse(line).unwrap().command {
        Command::Migrate(args) => args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_migration_is_asked_for_as_over_the_api() {
    let asked = migrate_args("vmm migrate a --to h:1").request.unwrap();
    assert_eq!(asked, MigrateRequest::new("h:1"));
    let line = "vmm migrate a --to h:1 --downtime-limit 1500us --bandwidth 1KiB/s --streams 4 --timeout 2s \
                --on-timeout stop --verify off --insecure --plan";
    let asked = migrate_args(line).request.unwrap();
    let body = serde_json::json!({
        "to": "h:1", "downtime_limit_ms": 2, "bandwidth_bytes_per_s": 1024, "streams": 4,
        "timeout_ms": 2000, "on_timeout": "stop", "verify": "off", "insecure": true, "plan": true,
    });
    assert_eq!(serde_json::to_value(asked).unwrap(), body);
}

#[test]
fn who_steers_a_migration_asks_for_none() {
    for line in ["--cancel", "--resolve", "--set bandwidth=1MiB/s"] {
        assert_eq!(migrate_args(&format!("vmm migrate a {line}")).request, None);
        for option in [
            "--to h:1",
            "--downtime-limit 1s",
            "--bandwidth 1MiB/s",
            "--streams 1",
            "--timeout 1s",
            "--verify off",
            "--insecure",
            "--plan",
            "--mode precopy",
        ] {
            let line = format!("vmm migrate a {line} {option}");
            assert_eq!(parse(&line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
