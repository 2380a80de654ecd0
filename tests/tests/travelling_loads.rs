//! Disks that travel under the probe guest's load: the guest itself judges them after each move, and a judge on the host
//! all images that are left.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tests::blackbox::disk_load::{counts, goes_on, printed, ready};
use tests::blackbox::migration::number;
use tests::blackbox::storage::qemu_program;
use tests::blackbox::wait::eventually;
use tests::blackbox::{Console, Guest, Migration, Pair, Vms, guest_lock};
use tests::disk_judge::{Judge, Moment};
use tests::probe::{DiskReady, DiskVerified, ProbeLine};
use tests::{Host, skip};

const LISTEN: &str = "127.0.0.1:0";

/// Has the guest look at all of the region of each of its `loads`.
#[track_caller]
fn looks(host: &Host, vm: &str, console: &mut Console, loads: u64) {
    let verified = |line| match line {
        ProbeLine::DiskVerified(verified) => Some(verified),
        _ => None,
    };
    let before = printed(console, verified).len();
    host.press(vm, b'v');
    let seen: Vec<DiskVerified> = eventually("the guest looks at its disks", || {
        let seen = printed(console, verified);
        (seen.len() as u64 >= before as u64 + loads).then(|| seen[before..].to_vec())
    });
    for pass in seen {
        assert_eq!((pass.faults, pass.unknown), (0, 0), "{pass:?}");
    }
    console.is_unharmed();
}

/// The guest powers off; what its load has done until then.
#[track_caller]
fn powers_off(host: &Host, vm: &str, console: &mut Console, disk: u64) -> Moment {
    host.press(vm, b'q');
    let end = eventually("the load ends", || {
        counts(console, disk).into_iter().find(|counts| counts.end)
    });
    assert_eq!((end.errors, end.faults), (0, 0), "{end:?}");
    host.ended(vm);
    Moment {
        flushed: end.flushed,
        submitted: Some(end.submitted),
    }
}

/// What is known of the load at the time at which the guest left, of what it had printed until then.
fn left(console: &mut Console, disk: u64) -> Moment {
    let counts = counts(console, disk);
    let flushed = counts.last().expect("the load has told of itself").flushed;
    Moment {
        flushed,
        submitted: None,
    }
}

/// The judge's verdict of a raw image.
#[track_caller]
fn judge(ready: &DiskReady, image: &Path, moment: Moment) {
    let judge = Judge::new(ready).expect("judge");
    let wrong = judge.judge(image, moment).expect("image");
    assert!(wrong.is_empty(), "{}: {wrong:?}", image.display());
}

/// A raw copy of a qcow2 image, which QEMU's tool finds nothing wrong with; `None` without that tool.
#[track_caller]
fn as_raw(qcow2: &Path) -> Option<PathBuf> {
    let raw = qcow2.with_extension("copy");
    let check = [
        &["check", "-q", "-f", "qcow2"][..],
        &["convert", "-f", "qcow2", "-O", "raw"],
    ];
    for (number, args) in check.into_iter().enumerate() {
        let Some(mut qemu_img) = qemu_program("qemu-img") else {
            println!("{}", skip::line(format_args!("there is no qemu-img")));
            return None;
        };
        qemu_img.args(args).arg(qcow2);
        if number == 1 {
            qemu_img.arg(&raw);
        }
        let output = qemu_img.output().expect("qemu-img");
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {why}");
    }
    Some(raw)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn sparse(host: &Host, name: &str, size: u64) -> PathBuf {
    let path = host.path().join(name);
    let made = File::create(&path).and_then(|file| file.set_len(size));
    made.expect("image");
    path
}

/// Moves the guest, whose disk `data` is put there as `how` says; it is judged there.
#[track_caller]
fn moves(
    console: &mut Console,
    (from, name): (&Host, &str),
    (to, there): (&Host, &str),
    disks: &[&str],
    loads: u64,
) {
    let mut args = Vec::new();
    for disk in disks {
        args.extend(["--disk", disk]);
    }
    let address = to.receive_with(there, LISTEN, &args);
    // Slow enough that the load writes meanwhile, and fast enough that it ends.
    let options = [
        "--disks",
        "data=precopy",
        "--downtime-limit",
        "2s",
        "--bandwidth",
        "16MiB/s",
    ];
    let report = Migration::start(from, name, &address, &options)
        .finish()
        .completed();
    assert_eq!(report["verified"], true, "{report:#}");
    // Again in a later pass, or while the guest stood still: which, is the engine's choice.
    let first = number(&report["iterations"][0], "disk_bytes");
    let all = number(&report["disks"], "bytes");
    assert!(all > first, "the load wrote nothing meanwhile: {report:#}");
    console.moves_to(to, there);
    goes_on(console, 0, 50);
    console.verifies_ledger();
    looks(to, there, console, loads);
    goes_on(console, 0, 50);
}

#[test]
fn a_load_of_all_kinds_at_depth_32_goes_there_and_back_with_its_disk() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let first = sparse(&pair.source, "first.raw", 24 << 20);
    let load = "depth=32,start=fill,length=8M,read=30,verify=10,discard=10,zeroes=10,size=4K/16K/64K,flush=16,\
                interval_ms=200,rate=600";
    let guest = Guest::dirtying().memory("192MiB").disk_load(&first, load);
    let mut console = pair.source.run("guest", &guest);
    let ready = ready(&mut console, 0);
    goes_on(&mut console, 0, 200);

    let qcow2 = pair.destination.path().join("there.qcow2");
    let place = format!("data={},create,format=qcow2", text(&qcow2));
    let moment = {
        let (from, to) = ((&pair.source, "guest"), (&pair.destination, "there"));
        let mut before = Console::of(&pair.source, "guest");
        moves(&mut console, from, to, &[&place], 1);
        left(&mut before, 0)
    };
    judge(&ready, &first, moment);

    // Back over what it was before.
    let place = format!("data={},existing", text(&first));
    let moment = {
        let (from, to) = ((&pair.destination, "there"), (&pair.source, "back"));
        let mut before = Console::of(&pair.destination, "there");
        moves(&mut console, from, to, &[&place], 1);
        left(&mut before, 0)
    };
    if let Some(raw) = as_raw(&qcow2) {
        judge(&ready, &raw, moment);
    }
    let end = powers_off(&pair.source, "back", &mut console, 0);
    judge(&ready, &first, end);
    pair.is_clean();
}

/// One disk travels, whose size is no multiple of a page or a block, and one is shared.
#[test]
fn a_disk_of_odd_size_travels_under_a_load_of_sectors_beside_one_that_is_shared() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let size = (2 << 20) + 3 * 512;
    let odd = sparse(&pair.source, "odd.raw", size);
    let shared = sparse(&pair.source, "shared.raw", 8 << 20);
    let load = |id: &str, more: &str| {
        format!(
            "disk={id},depth=8,start=fill,read=20,verify=10,interval_ms=300,rate=300,flush=16,{more}"
        )
    };
    let travels = load("data", "size=512/1536/4K/64K,unit=512,discard=10,zeroes=10");
    let stays = load("shared", "size=4K/64K,length=2M");
    let guest = Guest::dirtying()
        .memory("192MiB")
        .disk_with(&odd, "id=data", &travels)
        .disk_with(&shared, "id=shared", &stays);
    let mut console = pair.source.run("guest", &guest);
    let [odd_ready, shared_ready] = [0, 1].map(|disk| ready(&mut console, disk));
    assert_eq!(odd_ready.units * odd_ready.unit, size, "{odd_ready:?}");
    goes_on(&mut console, 0, 100);
    goes_on(&mut console, 1, 50);

    let there = pair.destination.path().join("there.raw");
    let disks = [
        format!("data={},create", text(&there)),
        format!("shared={}", text(&shared)),
    ];
    let disks = disks.each_ref().map(String::as_str);
    let from = (&pair.source, "guest");
    let mut before = Console::of(&pair.source, "guest");
    moves(&mut console, from, (&pair.destination, "there"), &disks, 2);
    let moment = left(&mut before, 0);
    judge(&odd_ready, &odd, moment);
    assert_eq!(fs::metadata(&there).expect("image").len(), size);

    let end = {
        let host = &pair.destination;
        let end = powers_off(host, "there", &mut console, 0);
        let counts = counts(&mut console, 1);
        let shared = counts.into_iter().find(|counts| counts.end);
        [
            end,
            shared
                .map(|c| Moment {
                    flushed: c.flushed,
                    submitted: Some(c.submitted),
                })
                .expect("end"),
        ]
    };
    judge(&odd_ready, &there, end[0]);
    judge(&shared_ready, &shared, end[1]);
    pair.is_clean();
}
