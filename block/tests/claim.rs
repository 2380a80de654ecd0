//! The claim on an image: at no moment can a third party get in.

use std::fs::File;
use std::path::PathBuf;

use block::claim::Held;
use block::{Access, Claim, Content, Error, RawImage};
use tempfile::TempDir;

struct Disk {
    _dir: TempDir,
    path: PathBuf,
}

impl Disk {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("disk.raw");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        Self { _dir: dir, path }
    }

    fn open(&self, access: Access) -> RawImage {
        RawImage::open(&self.path, access, Content::Raw).unwrap()
    }

    fn owner(&self) -> (RawImage, Claim) {
        let image = self.open(Access::ReadWrite);
        let claim = image.claim().unwrap();
        (image, claim)
    }

    fn successor(&self) -> (RawImage, Claim) {
        let image = self.open(Access::ReadWrite);
        let claim = image.claim_as_successor().unwrap();
        (image, claim)
    }

    /// Nobody else can claim the image now, neither for writing nor for reading.
    fn assert_closed(&self) {
        for access in [Access::ReadWrite, Access::ReadOnly] {
            let error = self.open(access).claim().unwrap_err();
            assert!(matches!(error, Error::InUse { .. }), "{error}");
            assert!(error.to_string().contains("disk.raw"), "{error}");
        }
    }

    fn assert_no_successor(&self) {
        let error = self
            .open(Access::ReadWrite)
            .claim_as_successor()
            .unwrap_err();
        assert!(matches!(error, Error::InUse { .. }), "{error}");
    }
}

#[test]
fn owner_keeps_everybody_out() {
    let disk = Disk::new();
    let (_image, claim) = disk.owner();
    assert_eq!(claim.held(), Held::Both);
    disk.assert_closed();
    disk.assert_no_successor();
}

#[test]
fn claim_changes_hands_without_a_gap() {
    let disk = Disk::new();
    let (source_image, source) = disk.owner();
    source.offer_successor().unwrap();
    source.offer_successor().unwrap();
    disk.assert_closed();
    let (_image, destination) = disk.successor();
    disk.assert_closed();
    disk.assert_no_successor();
    assert!(!destination.complete().unwrap());
    assert_eq!(destination.held(), Held::Successor);
    // The source's process ends.
    drop(source);
    drop(source_image);
    disk.assert_closed();
    disk.assert_no_successor();
    assert!(destination.complete().unwrap());
    assert!(destination.complete().unwrap());
    assert_eq!(destination.held(), Held::Both);
    disk.assert_closed();
    disk.assert_no_successor();
}

#[test]
fn source_takes_the_claim_back_when_the_destination_fails() {
    let disk = Disk::new();
    let (_image, source) = disk.owner();
    source.offer_successor().unwrap();
    let destination = disk.successor();
    assert!(matches!(source.reclaim(), Err(Error::InUse { .. })));
    assert_eq!(source.held(), Held::Owner);
    disk.assert_closed();
    drop(destination);
    disk.assert_closed();
    source.reclaim().unwrap();
    source.reclaim().unwrap();
    assert_eq!(source.held(), Held::Both);
    disk.assert_closed();
    disk.assert_no_successor();
}

#[test]
fn destination_stays_alone_when_the_source_dies() {
    let disk = Disk::new();
    let source = disk.owner();
    source.1.offer_successor().unwrap();
    let (_image, destination) = disk.successor();
    drop(source);
    disk.assert_closed();
    assert!(destination.complete().unwrap());
}

#[test]
fn there_and_back_hands_over_each_time() {
    let disk = Disk::new();
    let mut holder = disk.owner();
    for _ in 0..20 {
        holder.1.offer_successor().unwrap();
        let next = disk.successor();
        drop(holder);
        // Not completed: the offer completes first.
        holder = next;
        disk.assert_closed();
    }
}

#[test]
fn a_successor_that_is_not_yet_owner_cannot_offer() {
    let disk = Disk::new();
    let (_source_image, source) = disk.owner();
    source.offer_successor().unwrap();
    let (_image, destination) = disk.successor();
    assert!(matches!(
        destination.offer_successor(),
        Err(Error::ClaimState { .. })
    ));
    assert!(matches!(source.complete(), Err(Error::ClaimState { .. })));
    disk.assert_closed();
}

#[test]
fn a_released_claim_lets_the_next_in_and_stays_released() {
    let disk = Disk::new();
    let (_image, claim) = disk.owner();
    claim.release().unwrap();
    claim.release().unwrap();
    assert_eq!(claim.held(), Held::Nothing);
    assert!(matches!(claim.reclaim(), Err(Error::ClaimState { .. })));
    assert!(matches!(
        claim.offer_successor(),
        Err(Error::ClaimState { .. })
    ));
    let (_other_image, other) = disk.owner();
    drop(claim);
    assert_eq!(other.held(), Held::Both);
    disk.assert_closed();
}

#[test]
fn readers_share_and_keep_writers_out() {
    let disk = Disk::new();
    let first = disk.open(Access::ReadOnly);
    let second = disk.open(Access::ReadOnly);
    let (a, b) = (first.claim().unwrap(), second.claim_as_successor().unwrap());
    assert_eq!((a.held(), b.held()), (Held::Shared, Held::Shared));
    a.offer_successor().unwrap();
    assert!(a.complete().unwrap());
    a.reclaim().unwrap();
    assert!(matches!(
        disk.open(Access::ReadWrite).claim(),
        Err(Error::InUse { .. })
    ));
    drop((a, b));
    assert!(disk.open(Access::ReadWrite).claim().is_ok());
}

#[test]
fn a_refused_claim_leaves_nothing_locked() {
    let disk = Disk::new();
    let (_image, source) = disk.owner();
    source.offer_successor().unwrap();
    let (_successor_image, successor) = disk.successor();
    source.release().unwrap();
    // Refused at the second byte, and must let go of the first.
    disk.assert_closed();
    assert!(successor.complete().unwrap());
}
