//! The probe guest's load of a disk: it finds what is wrong with the disk, and only that.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tests::blackbox::disk_load::{self, printed};
use tests::blackbox::wait::eventually;
use tests::blackbox::{Console, Guest, Migration, Pair, Vms, guest_lock, images};
use tests::disk_judge::{Judge, Moment, composed};
use tests::probe::{DiskCounts, DiskReady, DiskStats, DiskVerified, Fault, ProbeLine};
use tests::units::{Head, Identity, State};

const SIZE: u64 = 32 << 20;

fn ready(console: &mut Console) -> DiskReady {
    disk_load::ready(console, 0)
}

/// What all loads have told of themselves.
fn counts(console: &mut Console) -> Vec<DiskCounts> {
    printed(console, |line| match line {
        ProbeLine::Disk(counts) => Some(counts),
        _ => None,
    })
}

fn stats(console: &mut Console) -> Vec<DiskStats> {
    printed(console, |line| match line {
        ProbeLine::DiskStats(stats) => Some(stats),
        _ => None,
    })
}

fn faults(console: &mut Console) -> Vec<Fault> {
    printed(console, |line| match line {
        ProbeLine::Fault(fault) => Some(fault),
        _ => None,
    })
}

/// Waits until the load has made all its requests and looked at all of the region.
#[track_caller]
fn rests(console: &mut Console) -> DiskCounts {
    eventually("the load ends", || {
        counts(console).into_iter().find(|counts| counts.end)
    })
}

/// Has the guest look at all of the region; what it saw.
#[track_caller]
fn looks(pair: &tests::Host, vm: &str, console: &mut Console) -> DiskVerified {
    let verified = |line| match line {
        ProbeLine::DiskVerified(verified) => Some(verified),
        _ => None,
    };
    let before = printed(console, verified).len();
    pair.press(vm, b'v');
    eventually("the guest looks at its disk", || {
        printed(console, verified).into_iter().nth(before)
    })
}

fn disk(pair: &Pair) -> PathBuf {
    images::sparse(pair.source.path(), "data.raw", SIZE)
}

/// A load runs to its end; the guest and the judge of its image find nothing.
#[track_caller]
fn ends_well(cpus: u32, options: &str) -> (Vec<DiskCounts>, Vec<DiskStats>) {
    let pair = Pair::new();
    let disk = disk(&pair);
    let guest = Guest::dirtying().cpus(cpus).memory("192MiB");
    let guest = guest.disk_load(&disk, options);
    let mut console = pair.source.run("guest", &guest);
    let ready = ready(&mut console);
    assert_eq!(ready.serial, "data");
    assert_eq!(ready.cpu, u64::from(cpus > 1), "{ready:?}");
    let end = rests(&mut console);
    console.is_unharmed();
    assert_eq!((end.errors, end.faults, end.passes), (0, 0, 1), "{end:?}");
    assert_eq!(end.acked, end.submitted, "{end:?}");
    assert!(end.units_verified > 0, "{end:?}");
    let pass = looks(&pair.source, "guest", &mut console);
    assert_eq!((pass.units, pass.faults), (ready.units, 0), "{pass:?}");
    assert_eq!((pass.unknown == 0), (ready.fill > 0), "{pass:?}");
    console.verifies_ledger();
    pair.source.press("guest", b'q');
    pair.source.ended("guest");

    let judge = Judge::new(&ready).expect("judge");
    let moment = Moment {
        flushed: end.flushed,
        submitted: Some(end.submitted),
    };
    let wrong = judge.judge(&disk, moment).expect("image");
    assert!(wrong.is_empty(), "{wrong:?}");
    let told = judge.flushed_by(&disk).expect("image");
    assert!(told <= end.flushed, "{told} of {end:?}");
    // What was never flushed for certain is no more than was in flight.
    let floor = end.submitted.saturating_sub(ready.depth);
    assert!(
        !options.contains("flush") || end.flushed >= floor,
        "{end:?}"
    );
    pair.is_clean();
    (counts(&mut console), stats(&mut console))
}

const MIXED: &str = "depth=32,start=fill,length=16M,read=30,verify=10,discard=10,zeroes=10,\
                     size=4K/16K/64K/256K,flush=16,interval_ms=100,count=4000";

#[test]
fn a_mixed_load_at_depth_32_finds_nothing_wrong_with_one_vcpu() {
    let Some(_lock) = guest_lock() else { return };
    let (counts, stats) = ends_well(1, MIXED);
    // Many are in flight at once.
    assert!(
        counts.iter().any(|counts| counts.in_flight >= 16),
        "{counts:?}"
    );
    for op in ["read", "write", "flush", "discard", "zeroes"] {
        let of = |span: &str| {
            let of = stats.iter().filter(|s| s.op == op && s.span == span);
            of.cloned().collect::<Vec<_>>()
        };
        let total = of("total");
        let [first, ..] = &total[..] else {
            panic!("no total of {op} in {stats:?}");
        };
        // The load's own count, of which each request is in one interval.
        let intervals: u64 = of("interval").iter().map(|s| s.count).sum();
        assert!(first.count > 0 && intervals >= first.count, "{stats:?}");
        let ordered = [first.p50_ns, first.p99_ns, first.p999_ns, first.max_ns];
        assert!(first.p50_ns > 0 && ordered.is_sorted(), "{first:?}");
    }
}

#[test]
fn a_mixed_load_at_depth_32_finds_nothing_wrong_on_a_vcpu_of_its_own() {
    let Some(_lock) = guest_lock() else { return };
    ends_well(2, MIXED);
}

#[test]
fn loads_of_every_kind_find_nothing_wrong() {
    let Some(_lock) = guest_lock() else { return };
    for options in [
        // Sectors alone, each write flushed before it counts.
        "depth=8,ack=flush,size=512/1K/1536,offset=1M,length=256K,read=20,verify=10,count=2000,\
         interval_ms=200",
        // In a row, the largest requests, of which not all of the region is written.
        "depth=64,pattern=sequential,size=1M,length=24M,read=50,flush_ms=20,count=30,\
         interval_ms=200,start=unknown",
        // Limited.
        "depth=4,rate=2000,read=50,length=1M,size=4K/8K,count=500,start=fill,seed=77,\
         interval_ms=200",
        "depth=4,bandwidth=8M,read=0,length=2M,size=64K,count=60,start=fill,unit=2K,interval_ms=200",
    ] {
        ends_well(1, options);
    }
}

/// Changes of the image that no guest made, and how each must be called.
struct Damage<'a> {
    judge: &'a Judge,
    image: &'a Path,
    unit: u64,
}

impl Damage<'_> {
    fn version(&self, unit: u64, sequence: u64) -> Vec<u8> {
        composed(self.unit, &self.judge.head(unit, sequence, 0))
    }

    fn write(&self, unit: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.image);
        file.and_then(|file| file.write_all_at(bytes, self.judge.offset_of(unit)))
            .expect("image is writable");
    }
}

#[test]
fn each_kind_of_damage_is_found_and_named() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let image = disk(&pair);
    let options = "depth=8,start=fill,length=1M,read=0,zeroes=20,size=4K/8K,count=400,flush=8,\
                   interval_ms=200";
    let guest = Guest::idle().disk_load(&image, options);
    let mut console = pair.source.run("guest", &guest);
    let ready = ready(&mut console);
    let end = rests(&mut console);
    let judge = Judge::new(&ready).expect("judge");
    let states = judge.states(end.submitted).expect("states");
    let damage = Damage {
        judge: &judge,
        image: &image,
        unit: ready.unit,
    };
    // Units that were written again after the region was filled, and one that was zeroed.
    let fills = ready.units / ready.fill;
    let mut written = states
        .iter()
        .zip(0..)
        .filter_map(|(state, unit)| match state {
            State::Data(sequence) if *sequence > fills => Some((unit, *sequence)),
            _ => None,
        });
    let mut next = || written.next().expect("a unit that was written twice");
    let zeroed = states.iter().position(|s| matches!(s, State::Zero(_)));
    let zeroed = zeroed.expect("a unit that was zeroed") as u64;
    let filled = |unit: u64| unit / ready.fill + 1;
    let mut expected: Vec<(&str, u64)> = Vec::new();

    let (stale, _) = next();
    damage.write(stale, &damage.version(stale, filled(stale)));
    expected.push(("disk-stale", stale));

    let (torn, newest) = next();
    let mut halves = damage.version(torn, newest);
    halves[2048..].copy_from_slice(&damage.version(torn, filled(torn))[2048..]);
    damage.write(torn, &halves);
    expected.push(("disk-torn", torn));

    let (misplaced, sequence) = next();
    damage.write(misplaced, &damage.version(misplaced + 1, sequence));
    expected.push(("disk-misplaced", misplaced));

    let (lost, _) = next();
    damage.write(lost, &[0; 4096]);
    expected.push(("disk-lost", lost));

    let (damaged, newest) = next();
    let mut flipped = damage.version(damaged, newest);
    flipped[1000] ^= 1;
    damage.write(damaged, &flipped);
    expected.push(("disk-damaged", damaged));

    let (foreign, newest) = next();
    let head = judge.head(foreign, newest, 0);
    let identity = Identity {
        run: head.identity.run ^ 1,
        ..head.identity
    };
    damage.write(foreign, &composed(ready.unit, &Head { identity, ..head }));
    expected.push(("disk-foreign", foreign));

    let (future, newest) = next();
    damage.write(future, &damage.version(future, newest + 1));
    expected.push(("disk-future", future));

    damage.write(zeroed, &damage.version(zeroed, filled(zeroed)));
    expected.push(("disk-stale", zeroed));

    let pass = looks(&pair.source, "guest", &mut console);
    assert_eq!(pass.faults, expected.len() as u64, "{pass:?}");
    let told = eventually("all faults are told", || {
        let told = faults(&mut console);
        (told.len() >= expected.len()).then_some(told)
    });
    let mut told: Vec<_> = told
        .iter()
        .map(|fault| {
            assert_eq!(fault.disk, Some(0), "{fault:?}");
            (fault.kind.as_str(), fault.gpa)
        })
        .collect();
    let mut wanted: Vec<_> = expected
        .iter()
        .map(|(kind, unit)| (*kind, judge.offset_of(*unit)))
        .collect();
    told.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(told, wanted);
    // The judge on this side says the same.
    let moment = Moment {
        flushed: end.flushed,
        submitted: Some(end.submitted),
    };
    let mut judged: Vec<_> = judge
        .judge(&image, moment)
        .expect("image")
        .iter()
        .map(|wrong| (wrong.kind, wrong.unit))
        .collect();
    judged.sort_unstable();
    expected.sort_unstable();
    assert_eq!(judged, expected);
    // Each is told once.
    let pass = looks(&pair.source, "guest", &mut console);
    assert_eq!(
        (pass.faults, pass.unknown),
        (0, expected.len() as u64),
        "{pass:?}"
    );
}

#[test]
fn loads_that_cannot_be_are_refused_by_name_and_others_go_on() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let image = disk(&pair);
    let huge = images::sparse(pair.source.path(), "huge.raw", 1 << 40);
    let names = ["huge", "region", "readonly", "cpu"];
    let mut words = String::new();
    for (name, options) in [
        ("huge", "depth=1"),
        ("region", "offset=31M,length=2M"),
        ("readonly", "read=50"),
        ("cpu", "cpu=3"),
        ("absent", "depth=1"),
    ] {
        words += &format!(" disk={name},{options}");
    }
    words += " disk=data,depth=65 disk=data,size=700 disk=data,read=60,discard=41";
    let guest = Guest::idle()
        .disk_load(&image, "start=fill,length=1M,count=100,interval_ms=200")
        .and(&words);
    let mut console = pair.source.run_with("guest", &guest, |command| {
        for name in names {
            let path = match name {
                "huge" => huge.clone(),
                _ => images::sparse(pair.source.path(), name, SIZE),
            };
            let more = if name == "readonly" { ",readonly" } else { "" };
            command.arg("--disk");
            command.arg(format!("{},id={name}{more}", path.display()));
        }
    });
    let end = rests(&mut console);
    assert_eq!((end.disk, end.faults), (0, 0));
    let told = eventually("all refusals are told", || {
        let told = faults(&mut console);
        (told.len() >= 8).then_some(told)
    });
    let mut refused: Vec<_> = told
        .iter()
        .map(|fault| (fault.disk, fault.kind.as_str()))
        .collect();
    refused.sort_unstable();
    assert_eq!(
        refused,
        [
            (None, "option"),
            (None, "option"),
            (None, "option"),
            (Some(1), "disk-memory"),
            (Some(2), "disk-region"),
            (Some(3), "disk-feature"),
            (Some(4), "disk-cpu"),
            (Some(5), "device-missing"),
        ]
    );
}

#[test]
fn a_guest_under_full_load_moves_there_and_back_and_finds_nothing_wrong() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let image = disk(&pair);
    let options = "depth=32,start=fill,length=16M,read=30,verify=10,discard=5,zeroes=5,\
                   size=4K/64K,flush=16,interval_ms=200";
    let guest = Guest::dirtying().cpus(2).disk_load(&image, options);
    let mut console = pair.source.run("guest", &guest);
    let ready = ready(&mut console);
    let moves = [
        (&pair.source, "guest", &pair.destination, "there"),
        (&pair.destination, "there", &pair.source, "back"),
    ];
    for (from, vm, to, name) in moves {
        console.verifies_blocks();
        let address = to.receive(name, "127.0.0.1:0");
        Migration::start(from, vm, &address, &[])
            .finish()
            .completed();
        console.moves_to(to, name);
        console.verifies_blocks();
        let before = counts(&mut console).last().map_or(0, |c| c.submitted);
        let pass = looks(to, name, &mut console);
        assert_eq!((pass.faults, pass.unknown), (0, 0), "{pass:?}");
        assert!(pass.sequence > before, "{pass:?} after {before}");
        // And the load goes on.
        eventually("the guest writes again", || {
            let newest = counts(&mut console).last().map_or(0, |c| c.submitted);
            (newest > pass.sequence).then_some(())
        });
        console.verifies_ledger();
    }
    pair.source.press("back", b'q');
    let end = rests(&mut console);
    pair.source.ended("back");
    assert_eq!((end.errors, end.faults), (0, 0), "{end:?}");
    let judge = Judge::new(&ready).expect("judge");
    let moment = Moment {
        flushed: end.flushed,
        submitted: Some(end.submitted),
    };
    let wrong = judge.judge(&image, moment).expect("image");
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn requests_that_fail_are_made_again_and_nothing_is_taken_for_lost() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let image = disk(&pair);
    let options = "depth=16,start=fill,length=4M,read=30,discard=10,zeroes=10,size=4K/16K,flush=8,\
                   interval_ms=200";
    let orders = pair.source.path().join("disk-faults");
    fs::write(&orders, "").expect("orders");
    let guest = Guest::idle().disk_load(&image, options);
    let mut console = pair.source.run_with("guest", &guest, |command| {
        command.env("VMM_DEBUG_DISK_FAULTS", &orders);
    });
    let failing = ["read", "write", "flush", "discard", "write-zeroes"];
    let kinds = ["read", "write", "flush", "discard", "zeroes"];
    let newest = |console: &mut Console| counts(console).last().copied();
    for (operation, kind) in failing.into_iter().zip(kinds) {
        fs::write(&orders, format!("data {operation} EIO\n")).expect("orders");
        let told = format!("disk-{kind}-error");
        let fault = eventually("the guest is told", || {
            let told = faults(&mut console).into_iter().find(|f| f.kind == told);
            told.filter(|fault| fault.found == "0x1")
        });
        assert_eq!(fault.disk, Some(0), "{fault:?}");
        fs::write(&orders, "").expect("orders");
        let failed = newest(&mut console).map_or(0, |counts| counts.acked);
        eventually("the load goes on", || {
            (newest(&mut console)?.acked > failed + 200).then_some(())
        });
    }
    let pass = looks(&pair.source, "guest", &mut console);
    assert_eq!((pass.faults, pass.unknown), (0, 0), "{pass:?}");
    let counts = newest(&mut console).expect("counts");
    assert!(counts.errors >= 5 && counts.faults == 0, "{counts:?}");
    let others = faults(&mut console);
    let others = others.iter().filter(|f| !f.kind.ends_with("-error"));
    assert_eq!(others.count(), 0);
}

#[test]
fn several_disks_are_loaded_at_once_each_by_its_index_or_its_serial_number() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let [first, second, third] =
        ["first", "second", "third"].map(|name| images::sparse(host.path(), name, SIZE));
    let load = "depth=8,start=fill,length=2M,read=40,size=4K/8K,flush=8,count=500,interval_ms=200";
    // The one between the loads is the one that `block=` finds.
    let words = format!("disk=2,{load} disk=first,{load} block=verify,size=1M block_rate=200");
    let mut console = host.run_with("guest", &Guest::dirtying().cpus(2).and(&words), |command| {
        for (id, path) in [("first", &first), ("second", &second), ("third", &third)] {
            let disk = format!("{},id={id}", path.display());
            command.args(["--disk", &disk]);
        }
    });
    let readies = |line| match line {
        ProbeLine::DiskReady(ready) => Some(ready),
        _ => None,
    };
    let readies = eventually("both loads are ready", || {
        let readies = printed(&mut console, readies);
        (readies.len() == 2).then_some(readies)
    });
    let mut named: Vec<_> = readies
        .iter()
        .map(|r| (r.disk, r.serial.as_str()))
        .collect();
    named.sort_unstable();
    assert_eq!(named, [(0, "third"), (1, "first")]);
    let ends = eventually("both loads end", || {
        let ends = counts(&mut console).into_iter().filter(|counts| counts.end);
        let ends: Vec<_> = ends.collect();
        (ends.len() == 2).then_some(ends)
    });
    // With the loads at rest, what is verified from here on is the other disk.
    console.verifies_blocks();
    for end in ends {
        let ready = readies.iter().find(|ready| ready.disk == end.disk);
        let judge = Judge::new(ready.expect("load")).expect("judge");
        let image = if end.disk == 0 { &third } else { &first };
        let moment = Moment {
            flushed: end.flushed,
            submitted: Some(end.submitted),
        };
        assert_eq!(judge.judge(image, moment).expect("image"), []);
        // The image of the other load is not its own.
        let other = if end.disk == 0 { &first } else { &third };
        let wrong = judge.judge(other, moment).expect("image");
        assert!(wrong.iter().any(|wrong| wrong.kind == "disk-misplaced"));
    }
}
