use std::fs::{self, File};

use block::Content;
use block::image::Format;
use block::image::qcow2::BackingRules;
use block::image::qcow2::create::{NewImage, create};

use super::*;
use crate::build::spec::DiskAccess;
use crate::config::DiskCache;
use crate::debug::DebugLayers;

const SIZE: u64 = 64 << 10;

/// A disk that comes from a share of another machine, on which locks do not travel.
fn in_doubt(path: &Path) -> (DiskSource, DiskPlaces) {
    File::create(path).unwrap().set_len(SIZE).unwrap();
    let source = DiskSource {
        id: "data".into(),
        path: path.to_owned(),
        access: DiskAccess::ReadWrite,
        format: Format::Raw,
        content: Content::Raw,
        backing: BackingRules::default(),
        expected_size: Some(SIZE),
        owner: DiskOwner::AsTheMachine,
        cache: DiskCache::Writeback,
        journal: None,
        debug: DebugLayers::default(),
    };
    let place = DiskPlace {
        id: "data".into(),
        device: 60,
        inode: 12,
        below: None,
        is_local: false,
    };
    let told = DiskPlaces {
        host: Some("another".into()),
        holds: None,
        disks: vec![place],
    };
    (source, told)
}

#[test]
fn a_disk_in_doubt_is_taken_only_with_the_samples_of_its_source() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let (source, told) = in_doubt(&path);
    let disks = Disks::open(&[source], DiskClaim::Successor(Some(&told))).unwrap();
    assert_eq!(disks.doubtful(), ["data"]);
    let refused = |samples: Option<&str>| disks.check_samples(samples).unwrap_err().id();
    assert_eq!(refused(None), "disk.samples");
    assert_eq!(refused(Some("{}")), "disk.samples");
    // Of disks that are not in doubt, or not there.
    let none = disks.samples(&["other".into()]).unwrap();
    assert_eq!(refused(Some(&none)), "disk.samples");
    let samples = disks.samples(&["data".into()]).unwrap();
    disks.check_samples(Some(&samples)).unwrap();
    let outside = samples.replacen("[0,", "[1099511627776,", 1);
    assert_ne!(outside, samples);
    assert_eq!(refused(Some(&outside)), "disk.samples");
    assert_eq!(refused(Some(&" ".repeat(MAX_SAMPLES + 1))), "disk.samples");
    fs::write(&path, vec![1; SIZE as usize]).unwrap();
    assert_eq!(refused(Some(&samples)), "disk.content");
    disks.begin_use().unwrap();
}

#[test]
fn a_disk_that_a_successor_is_sure_of_needs_no_samples() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let (source, _) = in_doubt(&path);
    let owner = Disks::open(std::slice::from_ref(&source), DiskClaim::Owner).unwrap();
    let told = owner.places().unwrap();
    check(&source, DiskClaim::Successor(Some(&told))).unwrap();
    owner.all()[0].claim.offer_successor().unwrap();
    let successor = Disks::open(&[source], DiskClaim::Successor(Some(&told))).unwrap();
    assert!(successor.doubtful().is_empty());
    successor.check_samples(None).unwrap();
}

fn write(disk: &Disk, byte: u8, offset: u64) {
    let mut bytes = vec![byte; 128 << 10];
    let memory = [block::Buffer::new(&mut bytes)];
    let device = disk.device();
    device
        .write(&memory, offset, block::Durability::Flushed)
        .unwrap();
}

#[test]
fn a_qcow2_disk_is_read_by_its_successor_when_its_owner_has_closed_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let (mut source, told) = in_doubt(&path);
    fs::remove_file(&path).unwrap();
    let image = NewImage {
        size: 1 << 20,
        cluster_bits: 16,
        backing: None,
    };
    create(&path, &image).unwrap();
    source.format = Format::Qcow2;
    source.expected_size = Some(1 << 20);
    let sources = [source];
    let owner = Disks::open(&sources, DiskClaim::Owner).unwrap();
    write(&owner.all()[0], 1, 0);
    // On another machine, where no lock is seen.
    owner.all()[0].claim.release().unwrap();
    let successor = Disks::open(&sources, DiskClaim::Successor(Some(&told))).unwrap();
    assert_eq!(successor.doubtful(), ["data"]);
    // The file grows while both have it open.
    write(&owner.all()[0], 2, 512 << 10);
    let device = successor.all()[0].device();
    let mut bytes = [0; 512];
    let read = |bytes: &mut [u8]| device.read(&[block::Buffer::new(bytes)], 512 << 10);
    assert!(read(&mut bytes).is_err(), "it is not its own yet");
    owner.all()[0].device().flush().unwrap();
    write(&owner.all()[0], 3, 256 << 10);
    let marked = fs::read(&path).unwrap()[79] & 1 == 1;
    let early = successor.take_over();
    assert_eq!(early.is_err(), marked, "an image in use is left alone");
    owner.all()[0].device().flush().unwrap();
    let samples = owner.samples(&["data".into()]).unwrap();
    successor.check_samples(Some(&samples)).unwrap();
    let before = fs::read(&path).unwrap();
    successor.take_over().unwrap();
    assert!(
        fs::read(&path).unwrap() == before,
        "it may still be given up"
    );
    successor.begin_use().unwrap();
    read(&mut bytes).unwrap();
    assert_eq!(bytes, [2; 512]);
}
