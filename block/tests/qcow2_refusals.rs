//! qcow2 images that are not used, each by its name, and unharmed.

mod judge;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use block::image::Format;
use block::image::qcow2::chain::MAX_BELOW;
use block::image::qcow2::create::{self, NewImage};
use block::image::qcow2::{BackingRules, Qcow2Image, check};
use block::{Access, BlockDevice, Buffer, Durability, Error};
use tempfile::TempDir;

fn new_image(path: &Path, backing: Option<(&str, Format)>) {
    let image = NewImage {
        size: 1 << 20,
        cluster_bits: 16,
        backing: backing.map(|(name, format)| (name.into(), format)),
    };
    create::create(path, &image).unwrap();
}

fn use_it(path: &Path, access: Access, rules: &BackingRules) -> block::Result<Qcow2Image> {
    let image = Qcow2Image::open(path, access, rules)?;
    image.begin_use()?;
    Ok(image)
}

/// Why the image is refused; it is as it was afterwards.
#[track_caller]
fn refusal(path: &Path, access: Access) -> String {
    let before = fs::read(path).unwrap();
    let refused = use_it(path, access, &BackingRules::default());
    let why = refused.unwrap_err().to_string();
    assert!(fs::read(path).unwrap() == before, "{why}");
    why
}

fn put(path: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

fn fresh(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("disk.qcow2");
    let _ = fs::remove_file(&path);
    new_image(&path, None);
    path
}

const BOTH: [Access; 2] = [Access::ReadOnly, Access::ReadWrite];

#[test]
fn features_that_are_not_known_well_are_refused_by_name_with_what_helps() {
    let dir = TempDir::new().unwrap();
    for (bit, name) in [
        (1, "qemu-img check -r all"),
        (2, "external data file"),
        (3, "zstd"),
        (4, "extended_l2=off"),
        (5, "unknown features 0x20"),
    ] {
        for access in BOTH {
            let path = fresh(&dir);
            put(&path, 72, &(1_u64 << bit).to_be_bytes());
            let why = refusal(&path, access);
            assert!(why.contains(name), "{name}: {why}");
            assert!(why.contains("qemu-img"), "{why}");
        }
    }
    for (at, byte, name) in [(35, 1, "encrypted"), (104, 1, "zstd"), (7, 4, "version 4")] {
        let path = fresh(&dir);
        put(&path, at, &[byte]);
        let why = refusal(&path, Access::ReadOnly);
        assert!(why.contains(name), "{name}: {why}");
    }
    for (at, name) in [(95, "bitmaps"), (94, "autoclear"), (63, "snapshots")] {
        let path = fresh(&dir);
        put(&path, at, &[1]);
        let why = refusal(&path, Access::ReadWrite);
        assert!(why.contains(name), "{name}: {why}");
        // Who only reads harms nothing.
        use_it(&path, Access::ReadOnly, &BackingRules::default()).unwrap();
    }
}

#[test]
fn images_that_qemu_makes_with_such_features_are_refused_and_unharmed() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk.qcow2");
    let file = path.to_str().unwrap();
    let made = |commands: &[&[&str]]| {
        let _ = fs::remove_file(&path);
        commands.iter().all(|args| judge::must(args).is_some())
    };
    let create: &[&str] = &["create", "-q", "-f", "qcow2", file, "1M"];
    for (commands, access, name) in [
        (
            &[&[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-o",
                "extended_l2=on",
                file,
                "1M",
            ][..]][..],
            Access::ReadOnly,
            "extended L2",
        ),
        (
            &[&[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-o",
                "compression_type=zstd",
                file,
                "1M",
            ][..]],
            Access::ReadOnly,
            "zstd",
        ),
        (
            &[create, &["bitmap", "--add", file, "b"]],
            Access::ReadWrite,
            "bitmap --remove",
        ),
        (
            &[create, &["snapshot", "-c", "s", file]],
            Access::ReadWrite,
            "snapshot -d",
        ),
    ] {
        if !made(commands) {
            return;
        }
        let why = refusal(&path, access);
        assert!(why.contains(name), "{name}: {why}");
        if access == Access::ReadWrite {
            // All that it holds besides the disk is known to the check.
            let (report, _) = check::check_file(&path).unwrap();
            assert_eq!((report.errors, report.leaks), (0, 0), "{report:?}");
        }
        judge::check(&path);
    }
}

#[test]
fn tables_that_overlap_or_lie_elsewhere_are_refused_before_anything_is_written() {
    let dir = TempDir::new().unwrap();
    let cluster = 1_u64 << 16;
    let entry = |at: u64| (at | 1 << 63).to_be_bytes();
    for (at, bytes, name) in [
        // The L1 table over the header, the refcount table, behind the file, and not at a cluster.
        (40, 0_u64.to_be_bytes(), "L1 table"),
        (40, (3 * cluster).to_be_bytes(), "overlap"),
        (40, (1_u64 << 40).to_be_bytes(), "L1 table"),
        (40, 512_u64.to_be_bytes(), "L1 table"),
        // The refcount table.
        (48, 0_u64.to_be_bytes(), "refcount table"),
        (48, (1_u64 << 41).to_be_bytes(), "refcount table"),
        // Its blocks.
        (3 * cluster, cluster.to_be_bytes(), "overlap"),
        // An L2 table over the header, a table, behind the file.
        (cluster, entry(0x200), "L2 table"),
        (cluster, entry(cluster), "overlap"),
        (cluster, entry(3 * cluster), "overlap"),
        (cluster, entry(1 << 40), "L2 table"),
        (cluster, (1_u64 << 62).to_be_bytes(), "L1 table"),
        // A disk of nothing, and of more than its L1 table maps.
        (24, 0_u64.to_be_bytes(), "multiple of 512"),
        (24, 513_u64.to_be_bytes(), "multiple of 512"),
        (24, (1_u64 << 50).to_be_bytes(), "L1 table"),
        // Huge tables: clusters, entries.
        (32, (0xffff_ffff_u64).to_be_bytes(), "L1 table"),
        (56, (0xffff_ffff_u64 << 32).to_be_bytes(), "refcount table"),
        (96, (7_u64 << 32 | 112).to_be_bytes(), "refcounts"),
        (96, (4_u64 << 32 | 100).to_be_bytes(), "header"),
        (96, (4_u64 << 32 | 1 << 30).to_be_bytes(), "header"),
    ] {
        let path = fresh(&dir);
        put(&path, at, &bytes);
        let why = refusal(&path, Access::ReadWrite);
        assert!(why.contains(name), "{at} {bytes:x?}: {why}");
        assert!(why.contains("qemu-img check -r all"), "{why}");
    }
}

#[test]
fn a_guest_never_writes_to_the_header_whatever_the_tables_say() {
    let dir = TempDir::new().unwrap();
    let path = fresh(&dir);
    let disk = use_it(&path, Access::ReadWrite, &BackingRules::default()).unwrap();
    let mut sector = [7; 512];
    disk.write(&[Buffer::new(&mut sector)], 0, Durability::Immediate)
        .unwrap();
    drop(disk);
    // The first cluster of the disk is the header's now.
    let l1 = read_u64(&path, 1 << 16);
    let l2 = l1 & 0x00ff_ffff_ffff_fe00;
    put(&path, l2, &(1_u64 << 63).to_be_bytes());
    let head = fs::read(&path).unwrap()[..512].to_vec();
    let disk = use_it(&path, Access::ReadWrite, &BackingRules::default()).unwrap();
    for _ in 0..2 {
        let _ = disk.write(&[Buffer::new(&mut sector)], 512, Durability::Immediate);
        let _ = disk.discard(0, 512);
    }
    drop(disk);
    // But for the dirty bit.
    let now = fs::read(&path).unwrap();
    assert_eq!(now[..72], head[..72]);
    assert_eq!(now[80..512], head[80..]);
}

fn read_u64(path: &Path, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    File::open(path)
        .unwrap()
        .read_exact_at(&mut bytes, offset)
        .unwrap();
    u64::from_be_bytes(bytes)
}

#[test]
fn a_dirty_image_whose_tables_contradict_each_other_is_not_mended_by_guessing() {
    let dir = TempDir::new().unwrap();
    let path = fresh(&dir);
    let disk = use_it(&path, Access::ReadWrite, &BackingRules::default()).unwrap();
    let mut sector = [7; 512];
    for at in [0, 1 << 16] {
        disk.write(&[Buffer::new(&mut sector)], at, Durability::Immediate)
            .unwrap();
    }
    drop(disk);
    let l2 = read_u64(&path, 1 << 16) & 0x00ff_ffff_ffff_fe00;
    // Two clusters of the disk in one of the file.
    put(&path, l2 + 8, &read_u64(&path, l2).to_be_bytes());
    put(&path, 79, &[1]);
    let why = refusal(&path, Access::ReadWrite);
    assert!(why.contains("2 uses"), "{why}");
    let (report, header) = check::check_file(&path).unwrap();
    assert!(report.errors > 0 && header.is_dirty(), "{report:?}");
}

#[test]
fn backing_files_are_opened_only_where_they_may_lie() {
    let dir = TempDir::new().unwrap();
    let (own, other) = (dir.path().join("own"), dir.path().join("other"));
    fs::create_dir(&own).unwrap();
    fs::create_dir(&other).unwrap();
    fs::write(other.join("base.raw"), vec![1; 1 << 20]).unwrap();
    let path = own.join("disk.qcow2");
    new_image(&path, Some(("../other/base.raw", Format::Raw)));
    let rules = |folders: &[&Path]| BackingRules {
        permitted: folders.iter().map(|&folder| folder.to_owned()).collect(),
    };
    let refused = use_it(&path, Access::ReadWrite, &rules(&[])).unwrap_err();
    let why = refused.to_string();
    assert!(why.contains("--allow-backing"), "{why}");
    assert!(why.contains(other.to_str().unwrap()), "{why}");
    use_it(&path, Access::ReadWrite, &rules(&[&other])).unwrap();
    use_it(&path, Access::ReadWrite, &rules(&[dir.path()])).unwrap();
    // A link leads where it leads.
    let linked = own.join("linked.raw");
    std::os::unix::fs::symlink(other.join("base.raw"), &linked).unwrap();
    let path = own.join("link.qcow2");
    new_image(&path, Some(("linked.raw", Format::Raw)));
    assert!(use_it(&path, Access::ReadWrite, &rules(&[])).is_err());
    // Of a folder that only begins alike.
    let alike = dir.path().join("otherwise");
    fs::create_dir(&alike).unwrap();
    assert!(use_it(&path, Access::ReadWrite, &rules(&[&alike])).is_err());
}

#[test]
fn backing_files_need_a_format_and_a_path_and_make_a_chain_that_ends() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("base.raw"), vec![1; 1 << 20]).unwrap();
    let path = at("disk.qcow2");
    new_image(&path, Some(("base.raw", Format::Raw)));
    let whole = fs::read(&path).unwrap();
    let changed = |from: &[u8], to: &[u8]| {
        let mut bytes = whole.clone();
        let place = bytes.windows(from.len()).position(|w| w == from).unwrap();
        bytes[place..place + to.len()].copy_from_slice(to);
        fs::write(&path, &bytes).unwrap();
        refusal(&path, Access::ReadWrite)
    };
    let kind = 0xe279_2aca_u32.to_be_bytes();
    for (from, to, name) in [
        // Its format under a kind that means nothing.
        (&kind[..], &[1, 2, 3, 4][..], "qemu-img rebase -u -F"),
        (b"raw\0", b"vdi\0", "\"vdi\""),
        (b"base.raw", b"nbd:h:10", "no path"),
        (b"base.raw", b"json:{}x", "no path"),
        (b"base.raw", b"basX.raw", "does not exist"),
        (b"base.raw", b"disk.qco", "does not exist"),
        (b"base.raw", b"bas\xff.raw", "backing file"),
    ] {
        let why = changed(from, to);
        assert!(why.contains(name), "{name}: {why}");
    }
    // Itself, and each other.
    let over = |name: &str| {
        let elsewhere = TempDir::new().unwrap();
        new_image(&elsewhere.path().join(name), None);
        let made = elsewhere.path().join("made");
        new_image(&made, Some((name, Format::Qcow2)));
        fs::read(made).unwrap()
    };
    for (one, other) in [("a.qcow2", "a.qcow2"), ("a.qcow2", "b.qcow2")] {
        fs::write(at(one), over(other)).unwrap();
        fs::write(at(other), over(one)).unwrap();
        let why = refusal(&at(one), Access::ReadWrite);
        assert!(why.contains("own backing files"), "{why}");
    }
}

#[test]
fn a_chain_is_as_long_as_it_may_be_and_no_longer() {
    let dir = TempDir::new().unwrap();
    let name = |index: usize| format!("{index}.qcow2");
    let at = |index: usize| dir.path().join(name(index));
    new_image(&at(0), None);
    let rules = BackingRules::default();
    for index in 1..=MAX_BELOW {
        new_image(&at(index), Some((&name(index - 1), Format::Qcow2)));
    }
    let disk = use_it(&at(MAX_BELOW), Access::ReadWrite, &rules).unwrap();
    let mut sector = [7; 512];
    disk.read(&[Buffer::new(&mut sector)], 0).unwrap();
    assert_eq!(sector, [0; 512]);
    drop(disk);
    new_image(&at(MAX_BELOW + 1), Some((&name(MAX_BELOW), Format::Qcow2)));
    let error = use_it(&at(MAX_BELOW + 1), Access::ReadWrite, &rules).unwrap_err();
    assert!(error.to_string().contains("more than 64"), "{error}");
}

#[test]
fn a_file_below_that_somebody_writes_is_in_use() {
    let dir = TempDir::new().unwrap();
    let base = dir.path().join("base.qcow2");
    new_image(&base, None);
    let path = dir.path().join("disk.qcow2");
    new_image(&path, Some(("base.qcow2", Format::Qcow2)));
    let rules = BackingRules::default();
    let writer = use_it(&base, Access::ReadWrite, &rules).unwrap();
    let claim = writer.claim().unwrap();
    let disk = use_it(&path, Access::ReadWrite, &rules).unwrap();
    let error = disk.claim().unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    drop((claim, writer));
    let _claim = disk.claim().unwrap();
    // Two disks over one.
    let other = dir.path().join("other.qcow2");
    new_image(&other, Some(("base.qcow2", Format::Qcow2)));
    let other = use_it(&other, Access::ReadWrite, &rules).unwrap();
    let _other = other.claim().unwrap();
}
