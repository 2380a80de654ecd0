//! qcow2 images against a model, with QEMU's tools as the judge of what is left behind.

mod judge;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use block::image::Format;
use block::image::qcow2::create::{self, NewImage};
use block::image::qcow2::resize::{self, Shrink};
use block::image::qcow2::{BackingRules, Qcow2Image, check};
use block::{Access, BlockDevice, Buffer, Discarded, Durability, Error, ExtentKind, ZeroMode};
use proptest::prelude::*;
use tempfile::TempDir;

const SECTOR: u64 = 512;

fn new_image(path: &Path, size: u64, cluster_bits: u32, backing: Option<(&str, Format)>) {
    let image = NewImage {
        size,
        cluster_bits,
        backing: backing.map(|(name, format)| (name.into(), format)),
    };
    create::create(path, &image).unwrap();
}

fn open(path: &Path) -> Qcow2Image {
    let image = Qcow2Image::open(path, Access::ReadWrite, &BackingRules::default()).unwrap();
    image.begin_use().unwrap();
    image
}

fn write(disk: &dyn BlockDevice, bytes: &[u8], offset: u64) {
    let mut bytes = bytes.to_vec();
    let memory = [Buffer::new(&mut bytes)];
    disk.write(&memory, offset, Durability::Flushed).unwrap();
}

fn read(disk: &dyn BlockDevice, len: usize, offset: u64) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    // In three pieces, one of them empty.
    let (one, two) = bytes.split_at_mut(len / 3);
    let memory = [Buffer::new(one), Buffer::new(&mut []), Buffer::new(two)];
    disk.read(&memory, offset).unwrap();
    bytes
}

/// The image holds this, as QEMU sees it.
fn compare(path: &Path, content: &[u8]) {
    let raw = path.with_extension("expected");
    fs::write(&raw, content).unwrap();
    let (path, raw) = (path.to_str().unwrap(), raw.to_str().unwrap());
    judge::must(&["compare", "-q", "-f", "qcow2", "-F", "raw", path, raw]);
}

/// Our own check finds what QEMU's does: nothing.
fn is_whole(path: &Path) {
    let image = Qcow2Image::open(path, Access::ReadOnly, &BackingRules::default()).unwrap();
    let report = check::check(image.file(), image.header()).unwrap();
    assert_eq!((report.errors, report.leaks), (0, 0), "{report:?}");
    judge::check(path);
}

#[derive(Debug, Clone)]
enum Step {
    Write { at: u64, len: u64, byte: u8 },
    Durably { at: u64, len: u64, byte: u8 },
    Discard { at: u64, len: u64 },
    Zero { at: u64, len: u64, unmap: bool },
    Flush,
    Reopen,
}

fn steps(size: u64) -> impl Strategy<Value = Vec<Step>> {
    let range = move || {
        (0..size / SECTOR).prop_flat_map(move |at| {
            let most = (size / SECTOR - at).min(600);
            (Just(at * SECTOR), (1..=most).prop_map(|len| len * SECTOR))
        })
    };
    let step = prop_oneof![
        6 => (range(), 1_u8..).prop_map(|((at, len), byte)| Step::Write { at, len, byte }),
        1 => (range(), 1_u8..).prop_map(|((at, len), byte)| Step::Durably { at, len, byte }),
        3 => range().prop_map(|(at, len)| Step::Discard { at, len }),
        2 => (range(), any::<bool>()).prop_map(|((at, len), unmap)| Step::Zero { at, len, unmap }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

fn carry_out(step: &Step, path: &Path, disk: &mut Option<Qcow2Image>, model: &mut [u8]) {
    let image = disk.as_ref().unwrap();
    let mut fill = |at: u64, len: u64, byte| model[at as usize..(at + len) as usize].fill(byte);
    match *step {
        Step::Write { at, len, byte } => {
            write(image, &vec![byte; len as usize], at);
            fill(at, len, byte);
        }
        Step::Durably { at, len, byte } => {
            let mut bytes = vec![byte; len as usize];
            let memory = [Buffer::new(&mut bytes)];
            image.write(&memory, at, Durability::Immediate).unwrap();
            assert!(!image.has_unflushed_writes());
            fill(at, len, byte);
        }
        Step::Discard { at, len } => {
            assert_eq!(image.discard(at, len).unwrap(), Discarded::Zero);
            fill(at, len, 0);
        }
        Step::Zero { at, len, unmap } => {
            let mode = if unmap {
                ZeroMode::MayUnmap
            } else {
                ZeroMode::KeepAllocated
            };
            image.write_zeroes(at, len, mode).unwrap();
            fill(at, len, 0);
        }
        Step::Flush => {
            image.flush().unwrap();
            assert!(!image.has_unflushed_writes());
        }
        Step::Reopen => {
            image.flush().unwrap();
            *disk = None;
            *disk = Some(open(path));
        }
    }
}

/// Every extent that is told as zero is zero, and they follow each other without gaps.
fn extents_fit(disk: &dyn BlockDevice, model: &[u8]) {
    let extents = disk.extents(0, disk.size(), usize::MAX).unwrap();
    let mut at = 0;
    for extent in extents {
        assert_eq!(extent.offset, at);
        let content = &model[at as usize..][..extent.len as usize];
        assert!(extent.kind != ExtentKind::Zero || content.iter().all(|&byte| byte == 0));
        at += extent.len;
    }
    assert_eq!(at, disk.size());
}

/// Below an image: nothing, a raw file that is shorter, or a chain of two.
fn below(dir: &Path, kind: u8, model: &mut [u8]) -> Option<(&'static str, Format)> {
    let base = vec![0xb5; (model.len() / 2 / 512 * 512) + 256];
    let shown = base.len().min(model.len());
    if kind == 0 {
        return None;
    }
    fs::write(dir.join("base.raw"), &base).unwrap();
    model[..shown].copy_from_slice(&base[..shown]);
    if kind == 1 {
        return Some(("base.raw", Format::Raw));
    }
    // Longer than what is above.
    let middle = dir.join("middle.qcow2");
    let size = model.len() as u64 + (1 << 20);
    new_image(&middle, size, 12, Some(("base.raw", Format::Raw)));
    let disk = open(&middle);
    write(&disk, &[0x3c; 8192], 4096);
    write(&disk, &[0x3d; 8192], model.len() as u64 - 4096);
    disk.discard(64 << 10, 64 << 10).unwrap();
    disk.flush().unwrap();
    model[4096..4096 + 8192].fill(0x3c);
    let end = model.len();
    model[end - 4096..].fill(0x3d);
    model[64 << 10..128 << 10].fill(0);
    Some(("middle.qcow2", Format::Qcow2))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_holds_what_was_written_and_qemu_finds_its_image_whole(
        steps in steps(1_310_720 + 512),
        cluster_bits in prop_oneof![Just(12_u32), Just(16), Just(21)],
        kind in 0_u8..3,
    ) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("disk.qcow2");
        let mut model = vec![0; 1_310_720 + 512];
        let backing = below(dir.path(), kind, &mut model);
        new_image(&path, model.len() as u64, cluster_bits, backing);
        is_whole(&path);
        let mut disk = Some(open(&path));
        for step in &steps {
            carry_out(step, &path, &mut disk, &mut model);
        }
        let image = disk.unwrap();
        assert!(read(&image, model.len(), 0) == model, "before it is closed");
        extents_fit(&image, &model);
        image.flush().unwrap();
        is_whole(&path);
        compare(&path, &model);
        drop(image);
        assert!(read(&open(&path), model.len(), 0) == model, "opened again");
    }

    #[test]
    fn whoever_opens_an_image_after_its_user_was_killed_finds_it_whole(
        steps in steps(1_310_720),
        cluster_bits in prop_oneof![Just(12_u32), Just(16)],
        kind in 0_u8..3,
        killed in prop::collection::vec(0_usize..40, 1..4),
    ) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("disk.qcow2");
        let mut model = vec![0; 1_310_720];
        let backing = below(dir.path(), kind, &mut model);
        new_image(&path, model.len() as u64, cluster_bits, backing);
        let mut disk = Some(open(&path));
        // Values that a sector may have: as it was flushed, or anything that came later.
        let mut since = vec![model.clone()];
        for (index, step) in steps.iter().enumerate() {
            carry_out(step, &path, &mut disk, &mut model);
            if matches!(step, Step::Flush | Step::Reopen | Step::Durably { .. }) {
                since.clear();
            }
            since.push(model.clone());
            if !killed.contains(&index) {
                continue;
            }
            // What the page cache holds stays when a process is killed.
            let left = dir.path().join("left.qcow2");
            fs::copy(&path, &left).unwrap();
            let found = open(&left);
            let content = read(&found, model.len(), 0);
            for at in (0..model.len()).step_by(512) {
                let sector = &content[at..at + 512];
                let known = since.iter().any(|model| &model[at..at + 512] == sector);
                assert!(known, "sector at {at}");
            }
            // It is used on, and stays whole.
            write(&found, &[0x77; 65536], 12288);
            found.discard(300 << 10, 200 << 10).unwrap();
            found.flush().unwrap();
            drop(found);
            is_whole(&left);
        }
    }
}

#[test]
fn an_image_of_qemus_is_read_written_and_whole_afterwards() {
    let dir = TempDir::new().unwrap();
    let raw = dir.path().join("disk.raw");
    let mut model: Vec<u8> = (0..1_u32 << 21).map(|i| (i >> 9) as u8).collect();
    model[300_000..900_000].fill(0);
    fs::write(&raw, &model).unwrap();
    for options in [
        "cluster_size=4k",
        "cluster_size=64k,lazy_refcounts=on",
        "cluster_size=2M",
        "refcount_bits=1",
        "refcount_bits=64,cluster_size=4k",
        "preallocation=metadata",
    ] {
        let path = dir.path().join("disk.qcow2");
        let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
        let convert = [
            "convert", "-f", "raw", "-O", "qcow2", "-o", options, from, to,
        ];
        if judge::must(&convert).is_none() {
            return;
        }
        let mut model = model.clone();
        let disk = open(&path);
        assert!(read(&disk, model.len(), 0) == model, "{options}");
        write(&disk, &[7; 5000 / 512 * 512], 600_064);
        model[600_064..600_064 + 4608].fill(7);
        disk.flush().unwrap();
        drop(disk);
        is_whole(&path);
        compare(&path, &model);
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn compressed_clusters_are_read_and_written_over() {
    let dir = TempDir::new().unwrap();
    let raw = dir.path().join("disk.raw");
    let mut model: Vec<u8> = (0..1_u32 << 20).map(|i| (i >> 12) as u8).collect();
    fs::write(&raw, &model).unwrap();
    let path = dir.path().join("disk.qcow2");
    let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
    if judge::must(&["convert", "-c", "-f", "raw", "-O", "qcow2", from, to]).is_none() {
        return;
    }
    let disk = open(&path);
    assert!(read(&disk, model.len(), 0) == model);
    write(&disk, &[9; 4096], 70_000 / 512 * 512);
    model[69_632..69_632 + 4096].fill(9);
    disk.discard(200_192, 100_352).unwrap();
    model[200_192..300_544].fill(0);
    disk.flush().unwrap();
    assert!(read(&disk, model.len(), 0) == model);
    drop(disk);
    is_whole(&path);
    compare(&path, &model);
}

#[test]
fn an_image_of_version_2_is_read_and_not_written() {
    let dir = TempDir::new().unwrap();
    let raw = dir.path().join("base.raw");
    fs::write(&raw, vec![0x21; 1 << 20]).unwrap();
    let path = dir.path().join("old.qcow2");
    let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
    let convert = [
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        "compat=v2",
        from,
        to,
    ];
    if judge::must(&convert).is_none() {
        return;
    }
    let rules = BackingRules::default();
    let error = Qcow2Image::open(&path, Access::ReadWrite, &rules).unwrap_err();
    assert!(error.to_string().contains("qemu-img amend"), "{error}");
    let overlay = dir.path().join("disk.qcow2");
    new_image(&overlay, 2 << 20, 16, Some(("old.qcow2", Format::Qcow2)));
    let disk = open(&overlay);
    assert_eq!(read(&disk, 512, (1 << 20) - 512), [0x21; 512]);
    assert_eq!(read(&disk, 512, 1 << 20), [0; 512]);
}

fn blocks(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn what_is_discarded_goes_back_to_the_host_in_clusters_and_in_parts_of_them() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk.qcow2");
    new_image(&path, 64 << 20, 21, None);
    let disk = open(&path);
    write(&disk, &vec![1; 16 << 20], 0);
    disk.flush().unwrap();
    let full = blocks(&path);
    assert!(full >= 16 << 20, "{full}");
    // Half a cluster, which the image goes on holding.
    disk.discard(1 << 20, 1 << 20).unwrap();
    disk.flush().unwrap();
    let parted = blocks(&path);
    // But for what the file system needs to know of the hole.
    assert!(
        parted + (1 << 20) <= full + (64 << 10),
        "{parted} of {full}"
    );
    disk.discard(0, 16 << 20).unwrap();
    disk.flush().unwrap();
    let empty = blocks(&path);
    assert!(empty + (16 << 20) <= full + (64 << 10), "{empty} of {full}");
    // It is told as what it is, and its place is used again.
    let extents = disk.extents(0, 16 << 20, 8).unwrap();
    assert_eq!(extents.len(), 1, "{extents:?}");
    assert_eq!(extents[0].kind, ExtentKind::Zero);
    let length = fs::metadata(&path).unwrap().len();
    write(&disk, &vec![2; 16 << 20], 0);
    disk.flush().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), length);
    drop(disk);
    is_whole(&path);
}

#[test]
fn a_discard_over_several_tables_takes_what_was_discarded_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    const SIZE: usize = 8 << 20;
    fs::write(dir.path().join("base.raw"), vec![0xb5; SIZE]).unwrap();
    let path = dir.path().join("disk.qcow2");
    // A table maps 2 MiB.
    new_image(&path, SIZE as u64, 12, Some(("base.raw", Format::Raw)));
    let disk = open(&path);
    write(&disk, &vec![1; 2 << 20], 0);
    disk.flush().unwrap();
    disk.discard(0, (6 << 20) + 4096).unwrap();
    disk.flush().unwrap();
    let mut model = vec![0; SIZE];
    model[(6 << 20) + 4096..].fill(0xb5);
    assert!(read(&disk, SIZE, 0) == model);
    drop(disk);
    is_whole(&path);
    compare(&path, &model);
    assert!(read(&open(&path), SIZE, 0) == model);
}

/// A file system of its own, on which little fits.
struct Small(TempDir);

impl Small {
    fn new() -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let small = Self(dir);
        small.mount("size=3m").then_some(small)
    }

    fn mount(&self, options: &str) -> bool {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "tmpfs"]);
        command
            .arg(self.0.path())
            .status()
            .is_ok_and(|s| s.success())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn an_image_for_which_there_is_no_room_keeps_what_it_has_and_goes_on_when_there_is() {
    let Some(small) = Small::new() else {
        println!("skipped: no file system can be mounted");
        return;
    };
    let path = small.0.path().join("disk.qcow2");
    const SIZE: usize = 16 << 20;
    new_image(&path, SIZE as u64, 16, None);
    let disk = open(&path);
    let mut model = vec![0; SIZE];
    let (mut failed, mut at) = (Vec::new(), 0);
    while at < SIZE {
        let mut bytes = vec![(at >> 16) as u8 + 1; 48 << 10];
        let memory = [Buffer::new(&mut bytes)];
        match disk.write(&memory, at as u64, Durability::Flushed) {
            Ok(()) => model[at..at + bytes.len()].copy_from_slice(&bytes),
            Err(error) => {
                assert!(matches!(error, Error::Io { .. }), "{error}");
                failed.push(at);
            }
        }
        at += 100 << 10;
    }
    assert!(!failed.is_empty() && failed[0] > 1 << 20, "{failed:?}");
    // It cannot be made durable either, or can; nothing is lost by trying.
    let _ = disk.flush();
    assert!(small.mount("remount,size=64m"));
    let mut found = read(&disk, SIZE, 0);
    for &at in &failed {
        // Old and new bytes in any mixture.
        found[at..at + (48 << 10)].fill(0);
    }
    assert!(found == model);
    for &at in &failed {
        write(&disk, &[9; 48 << 10], at as u64);
        model[at..at + (48 << 10)].fill(9);
    }
    disk.flush().unwrap();
    drop(disk);
    // What was made for a write that failed may be lost to the image, which is all that may be.
    let (report, _) = check::check_file(&path).unwrap();
    assert_eq!(report.errors, 0, "{report:?}");
    let repair = ["check", "-q", "-r", "leaks", path.to_str().unwrap()];
    if judge::must(&repair).is_none() {
        return;
    }
    is_whole(&path);
    compare(&path, &model);
}

/// What a thread does at once with others, and what its own parts of the disk must hold.
struct Busy {
    disk: Arc<Qcow2Image>,
    thread: u64,
    state: u64,
    model: Vec<u8>,
}

impl Busy {
    const SIZE: u64 = 8 << 20;
    const CLUSTER: u64 = 64 << 10;
    /// From here on it is each thread's what it makes of it.
    const ANYBODYS: u64 = 7 << 20;
    /// Up to here a thread has whole clusters, and then every fourth block of 4 KiB.
    const CLUSTERS: u64 = 4 << 20;

    fn chance(&mut self, of: u64) -> u64 {
        let product = self.state.wrapping_mul(6_364_136_223_846_793_005);
        self.state = product.wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % of
    }

    /// A block of its own.
    fn own(&mut self) -> u64 {
        if self.chance(2) == 0 {
            return self.own_cluster() + self.chance(16) * 4096;
        }
        let blocks = (Self::ANYBODYS - Self::CLUSTERS) / 4096 / 4;
        Self::CLUSTERS + (self.chance(blocks) * 4 + self.thread) * 4096
    }

    fn own_cluster(&mut self) -> u64 {
        (self.chance(Self::CLUSTERS / Self::CLUSTER / 4) * 4 + self.thread) * Self::CLUSTER
    }

    fn fill(&mut self, at: u64, len: u64, byte: u8) {
        self.model[at as usize..(at + len) as usize].fill(byte);
    }

    fn step(&mut self) {
        let disk = self.disk.clone();
        let byte = self.chance(250) as u8 + 1;
        let anybodys = Self::ANYBODYS + self.chance(16) * Self::CLUSTER;
        match self.chance(16) {
            0 => disk.flush().unwrap(),
            1 | 2 => {
                let at = self.own_cluster();
                disk.discard(at, Self::CLUSTER).unwrap();
                self.fill(at, Self::CLUSTER, 0);
            }
            3 => {
                let at = self.own();
                disk.discard(at, 4096).unwrap();
                self.fill(at, 4096, 0);
            }
            4 => {
                let at = self.own();
                disk.write_zeroes(at, 4096, ZeroMode::KeepAllocated)
                    .unwrap();
                self.fill(at, 4096, 0);
            }
            5 | 6 => {
                let at = self.own();
                let found = read(&*disk, 4096, at);
                assert!(found == self.model[at as usize..][..4096], "at {at}");
            }
            7 | 8 => {
                disk.discard(anybodys, Self::CLUSTER).unwrap();
            }
            9..=11 => write(&*disk, &[0xff; 32 << 10], anybodys + 4096),
            _ => {
                let at = self.own();
                write(&*disk, &[byte; 4096], at);
                self.fill(at, 4096, byte);
            }
        }
    }
}

#[test]
fn requests_of_several_threads_do_not_lose_what_another_wrote_beside() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk.qcow2");
    new_image(&path, Busy::SIZE, 16, None);
    let disk = Arc::new(open(&path));
    let threads = (0..4).map(|thread| {
        let mut busy = Busy {
            disk: disk.clone(),
            thread,
            state: thread + 1,
            model: vec![0; Busy::SIZE as usize],
        };
        thread::spawn(move || {
            (0..1500).for_each(|_| busy.step());
            busy.model
        })
    });
    let threads: Vec<_> = threads.collect();
    let all: Vec<Vec<u8>> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    // Each has written to its own parts only.
    let mut model = vec![0; Busy::SIZE as usize];
    for other in all {
        model
            .iter_mut()
            .zip(other)
            .for_each(|(byte, other)| *byte |= other);
    }
    let anybodys = Busy::ANYBODYS as usize;
    let rest = read(&*disk, model.len() - anybodys, Busy::ANYBODYS);
    model[anybodys..].copy_from_slice(&rest);
    disk.flush().unwrap();
    assert!(!disk.has_unflushed_writes());
    drop(disk);
    is_whole(&path);
    compare(&path, &model);
}

#[test]
fn an_image_gets_another_size_and_shows_nothing_of_what_lies_below_its_old_end() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("base.raw"), vec![0xb5; 4 << 20]).unwrap();
    let path = dir.path().join("disk.qcow2");
    let size = (1 << 20) + 512;
    new_image(&path, size, 12, Some(("base.raw", Format::Raw)));
    let disk = open(&path);
    write(&disk, &[3; 512], 1 << 20);
    disk.flush().unwrap();
    let rules = BackingRules::default();
    // In use: it has no claim yet, and gets one.
    let claim = disk.claim().unwrap();
    let error = resize::resize(&path, 2 << 20, Shrink::Refused, &rules).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    drop((claim, disk));
    // So far that the L1 table has to be moved.
    let grown = 3_u64 << 30;
    resize::resize(&path, grown, Shrink::Refused, &rules).unwrap();
    is_whole(&path);
    let disk = open(&path);
    assert_eq!(disk.size(), grown);
    let mut expected = vec![0xb5; 1 << 20];
    expected.extend([3; 512]);
    expected.resize(4 << 20, 0);
    assert!(read(&disk, 4 << 20, 0) == expected);
    write(&disk, &[8; 512], grown - 512);
    disk.flush().unwrap();
    drop(disk);
    let error = resize::resize(&path, 1 << 20, Shrink::Refused, &rules).unwrap_err();
    assert!(matches!(error, Error::Size { .. }), "{error}");
    resize::resize(&path, 1 << 20, Shrink::Allowed, &rules).unwrap();
    is_whole(&path);
    compare(&path, &expected[..1 << 20]);
    resize::resize(&path, 2 << 20, Shrink::Refused, &rules).unwrap();
    expected[1 << 20..].fill(0);
    compare(&path, &expected[..2 << 20]);
}

#[test]
fn qemu_keeps_off_an_image_in_use_and_only_reads_what_is_below_it() {
    let dir = TempDir::new().unwrap();
    let base = dir.path().join("base.qcow2");
    new_image(&base, 1 << 20, 16, None);
    let path: PathBuf = dir.path().join("disk.qcow2");
    new_image(&path, 1 << 20, 16, Some(("base.qcow2", Format::Qcow2)));
    let disk = open(&path);
    let claim = disk.claim().unwrap();
    let tried = |args: &[&str]| judge::run("qemu-io", args).map(|output| output.status.success());
    let (top, below) = (path.to_str().unwrap(), base.to_str().unwrap());
    let Some(top_written) = tried(&["-f", "qcow2", "-c", "write 0 512", top]) else {
        return;
    };
    assert!(!top_written);
    assert_eq!(
        tried(&["-f", "qcow2", "-c", "write 0 512", below]),
        Some(false)
    );
    assert_eq!(
        tried(&["-r", "-f", "qcow2", "-c", "read 0 512", below]),
        Some(true)
    );
    drop((claim, disk));
    assert_eq!(
        tried(&["-f", "qcow2", "-c", "write 0 512", top]),
        Some(true)
    );
    assert_eq!(
        tried(&["-f", "qcow2", "-c", "write 0 512", below]),
        Some(true)
    );
}

#[test]
fn nothing_is_written_over_what_is_there_already() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk.qcow2");
    fs::write(&path, b"mine").unwrap();
    let image = NewImage {
        size: 1 << 20,
        cluster_bits: 16,
        backing: None,
    };
    let error = create::create(&path, &image).unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error}");
    let error = create::create_raw(&path, 1 << 20).unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"mine");
}
