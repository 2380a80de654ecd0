//! Overlays in which a disk goes on while it moves, made for the one who asks for that.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use block::Reach;
use block::image::Format;
use block::image::qcow2::create::{DEFAULT_CLUSTER_BITS, NewImage};
use control::disk_move::ImageFormat;
use migration::MigrationId;
use migration::journal::Journal;
use migration::observation::{Observation, Side};

use crate::disks::marks::{Mark, OVERLAYS, Overlays, Part};
use crate::disks::target::{Passed, Target};
use crate::disks::unused::room_in;

/// The overlays of a move, of which nothing is used yet.
#[derive(Debug)]
pub struct OverlayTargets(Vec<Target>);

impl OverlayTargets {
    /// Makes them, for a disk of `size` bytes; those that were left of a move that did not come to its end go first.
    ///
    /// # Errors
    /// As [`Target::create`]; none is left then.
    pub fn create(
        overlays: &Overlays,
        size: u64,
        id: MigrationId,
        journal: &dyn Journal,
    ) -> Result<Self, Observation> {
        let new = overlays.new.display().to_string();
        let format = match overlays.old_is {
            ImageFormat::Raw => Format::Raw,
            ImageFormat::Qcow2 => Format::Qcow2,
        };
        let image = NewImage {
            size,
            cluster_bits: DEFAULT_CLUSTER_BITS,
            backing: Some((overlays.old.clone(), format)),
        };
        let mut made = Vec::new();
        for number in 0..OVERLAYS {
            let mark = Mark::of_disk_move(id, journal.identity(), &new);
            let mark = mark.in_course(overlays, Part::Overlay(number));
            let path = overlays.path(number);
            match Target::create_overlay(Path::new(&path), id, &image, &mark, journal) {
                Ok(target) => made.push(target),
                Err(why) => {
                    for target in made {
                        target.passed().discard(journal);
                    }
                    return Err(why);
                }
            }
        }
        Ok(Self(made))
    }

    /// Them, in their order.
    pub fn all(&self) -> &[Target] {
        &self.0
    }

    /// Bytes that there are for them, when the new image has taken `needed`.
    ///
    /// # Errors
    /// `disk.target` when that cannot be told.
    pub fn room(overlays: &Overlays, needed: u64) -> Result<u64, Observation> {
        let folder = |path: &Path| path.parent().unwrap_or(Path::new("/")).to_owned();
        let (here, there) = (folder(&overlays.beginning), folder(&overlays.new));
        let failed = |e: io::Error| Observation::from_error(Side::Client, "disk.target", &e);
        let free = room_in(&here).map_err(failed)?;
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
        let is_shared = device(&here).map_err(failed)? == device(&there).map_err(failed)?;
        Ok(if is_shared {
            free.saturating_sub(needed)
        } else {
            free
        })
    }

    /// Who can reach their storage.
    pub fn reach(&self) -> Reach {
        // They lie in one folder.
        self.0.first().map_or(Reach::OtherHosts, Target::reach)
    }

    /// The VM has them.
    pub fn passed(self) -> Vec<Passed> {
        self.0.into_iter().map(Target::passed).collect()
    }
}
