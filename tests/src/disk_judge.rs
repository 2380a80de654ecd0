//! The verdict on the image of a disk that the probe guest's load wrote, from outside: whether each unit
//! holds at least what was flushed, and nothing that was never written there.
//!
//! Which change wrote what follows from the options alone ([`Script`]), so an image needs no log of
//! each write: one number tells what was flushed, by the guest's `disk` lines or by the image itself, as
//! each unit carries what was flushed when it was written. The latter serves where an image is one of a
//! power cut at any moment.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use machine::probe::DiskReady;

use crate::units::{Content, Head, Identity, Kind, Pattern, Script, Shares, Sizes, State, inspect};

/// Most changes that are followed.
const MOST_CHANGES: u64 = 100_000_000;
/// Changes beyond the newest that is seen, which may have discarded or zeroed what they touched.
const UNSEEN: u64 = 4096;
/// Bytes of a sector.
const SECTOR: u64 = 512;

/// A unit that holds what it must not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// As the guest calls it: `disk-lost`, `disk-stale` and so on (docs/probe.md).
    pub kind: &'static str,
    /// The unit, counted from the begin of the region.
    pub unit: u64,
    /// What was expected: the number of a change, a sector or a checksum.
    pub expected: u64,
    /// What was found.
    pub found: u64,
}

/// What is known of the time at which the image was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// All changes up to this one were flushed.
    pub flushed: u64,
    /// No change after this one was made; `None` when that is not known.
    pub submitted: Option<u64>,
}

/// A reader of images that one load of one boot wrote.
#[derive(Debug, Clone)]
pub struct Judge {
    script: Script,
    identity: Identity,
    sector: u64,
    unit: u64,
}

impl Judge {
    /// A judge of the load that introduced itself so.
    ///
    /// # Errors
    /// When no load introduces itself so.
    pub fn new(ready: &DiskReady) -> Result<Self> {
        let pattern = match ready.pattern.as_str() {
            "random" => Pattern::Random,
            "sequential" => Pattern::Sequential,
            other => anyhow::bail!("unknown pattern {other}"),
        };
        let largest = ready.sizes.iter().copied().max().unwrap_or(0);
        let sizes = Sizes::new(ready.sizes.iter().copied()).context("sizes of requests")?;
        ensure!(
            matches!(ready.unit, 512 | 1024 | 2048 | 4096) && ready.units >= largest,
            "{} units of {} bytes",
            ready.units,
            ready.unit
        );
        Ok(Self {
            script: Script {
                seed: ready.seed,
                units: ready.units,
                sizes,
                pattern,
                shares: Shares {
                    writes: ready.writes,
                    discards: ready.discards,
                    zeroes: ready.zeroes,
                },
                fill: ready.fill,
                sequence: 0,
                position: 0,
            },
            identity: Identity {
                disk: ready.id,
                seed: ready.seed,
                run: ready.run,
            },
            sector: ready.sector,
            unit: ready.unit,
        })
    }

    /// All changes that the load makes, one after the other.
    #[must_use]
    pub fn script(&self) -> Script {
        self.script
    }

    /// What a unit tells of itself that change `sequence` wrote when all up to `flushed` was flushed.
    #[must_use]
    pub fn head(&self, unit: u64, sequence: u64, flushed: u64) -> Head {
        Head {
            identity: self.identity,
            sector: self.sector_of(unit),
            sequence,
            flushed,
        }
    }

    /// Where a unit lies in the image, in bytes.
    #[must_use]
    pub fn offset_of(&self, unit: u64) -> u64 {
        self.sector_of(unit) * SECTOR
    }

    /// What each unit must hold when all changes up to `sequence` were made and no other.
    ///
    /// # Errors
    /// When these are too many to be followed.
    pub fn states(&self, sequence: u64) -> Result<Vec<State>> {
        ensure!(sequence <= MOST_CHANGES, "{sequence} changes");
        let units = usize::try_from(self.script.units)?;
        let mut states = vec![State::Unknown; units];
        let changes = self.script.take(usize::try_from(sequence)?);
        for change in changes {
            for unit in change.first..change.first + change.units {
                let state = &mut states[usize::try_from(unit)?];
                *state = state.after(change.kind, change.sequence);
            }
        }
        Ok(states)
    }

    /// What had been flushed when the newest of the units in the image was written.
    ///
    /// # Errors
    /// When the image cannot be read.
    pub fn flushed_by(&self, image: &Path) -> Result<u64> {
        let ours = self.contents(image)?.into_iter().enumerate();
        let ours = ours.filter_map(|(unit, content)| match content {
            Content::Whole(head) if self.is_at_home(&head, unit as u64) => Some(head.flushed),
            _ => None,
        });
        Ok(ours.max().unwrap_or(0))
    }

    /// All that is wrong with the image.
    ///
    /// # Errors
    /// When it cannot be read, or does not hold the region.
    pub fn judge(&self, image: &Path, moment: Moment) -> Result<Vec<Wrong>> {
        let contents = self.contents(image)?;
        let newest = contents.iter().zip(0..).filter_map(|(content, unit)| {
            let Content::Whole(head) = content else {
                return None;
            };
            self.is_at_home(head, unit).then_some(head.sequence)
        });
        let newest = newest.max().unwrap_or(0).max(moment.flushed);
        let last = moment.submitted.unwrap_or(newest.saturating_add(UNSEEN));
        ensure!(
            moment.flushed <= last && last <= MOST_CHANGES,
            "{} of {last} changes flushed",
            moment.flushed
        );
        let states = self.states(moment.flushed)?;
        let mut later: HashMap<u64, Vec<(u64, Kind)>> = HashMap::new();
        let after = usize::try_from(moment.flushed)?;
        let further = usize::try_from(last - moment.flushed)?;
        for change in self.script.skip(after).take(further) {
            for unit in change.first..change.first + change.units {
                let of_unit = later.entry(unit).or_default();
                of_unit.push((change.sequence, change.kind));
            }
        }
        let none = Vec::new();
        let units = states.iter().zip(&contents).zip(0..);
        Ok(units
            .filter_map(|((state, content), unit)| {
                let later = later.get(&unit).unwrap_or(&none);
                self.judge_unit(unit, *state, content, later).err()
            })
            .collect())
    }

    fn sector_of(&self, unit: u64) -> u64 {
        self.sector + unit * (self.unit / SECTOR)
    }

    fn is_at_home(&self, head: &Head, unit: u64) -> bool {
        head.identity == self.identity && head.sector == self.sector_of(unit)
    }

    fn contents(&self, image: &Path) -> Result<Vec<Content>> {
        let mut file = File::open(image).with_context(|| image.display().to_string())?;
        // Also of a block device.
        let length = file.seek(SeekFrom::End(0))?;
        let end = self.script.units.checked_mul(self.unit);
        let end = end.and_then(|bytes| bytes.checked_add(self.offset_of(0)));
        ensure!(
            end.is_some_and(|end| end <= length),
            "{} has {length} bytes, and the region ends at {end:?}",
            image.display()
        );
        let mut bytes = vec![0; usize::try_from(self.unit)?];
        (0..self.script.units)
            .map(|unit| {
                file.read_exact_at(&mut bytes, self.offset_of(unit))
                    .with_context(|| format!("unit {unit} of {}", image.display()))?;
                Ok(inspect(&words(&bytes)))
            })
            .collect()
    }

    /// A unit that must hold `state`, unless one of the changes `later` has reached the disk.
    fn judge_unit(
        &self,
        unit: u64,
        state: State,
        content: &Content,
        later: &[(u64, Kind)],
    ) -> Result<(), Wrong> {
        let is_later = match content {
            Content::Blank => later.iter().any(|(_, kind)| *kind != Kind::Write),
            // Power may fail within a write.
            Content::Torn { .. } | Content::Damaged { .. } => {
                later.iter().any(|(_, kind)| *kind == Kind::Write)
            }
            Content::Whole(head) => {
                self.is_at_home(head, unit) && later.contains(&(head.sequence, Kind::Write))
            }
        };
        if is_later {
            return Ok(());
        }
        state
            .judge(content, &self.identity, self.sector_of(unit))
            .map(drop)
            .map_err(|wrong| Wrong {
                kind: wrong.kind,
                unit,
                expected: wrong.expected,
                found: wrong.found,
            })
    }
}

/// The words of a unit as the guest, an x86 CPU, wrote them.
fn words(bytes: &[u8]) -> Vec<u64> {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().map(|word| u64::from_le_bytes(*word)).collect()
}

/// The bytes of a unit that tells `head` of itself.
#[must_use]
pub fn composed(bytes: u64, head: &Head) -> Vec<u8> {
    let mut words = vec![0; usize::try_from(bytes / 8).unwrap_or(0)];
    crate::units::compose(&mut words, head);
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u64 = 4096;
    const CHANGES: u64 = 200;
    const FLUSHED: u64 = 120;

    fn ready() -> DiskReady {
        let line = "PROBE disk-ready disk=0 serial=data id=0x2a seed=0x7 run=0x9 sector=8 unit=4096 \
                    units=64 fill=16 pattern=random sizes=1/2 writes=80 discards=10 zeroes=10 \
                    reads=0 verifies=0 depth=1 cpu=0";
        match line.parse() {
            Ok(machine::probe::ProbeLine::DiskReady(ready)) => ready,
            other => panic!("{other:?}"),
        }
    }

    /// An image in which all changes up to `sequence` were made.
    struct Image {
        file: tempfile::NamedTempFile,
        judge: Judge,
    }

    impl Image {
        fn after(sequence: u64) -> Self {
            let judge = Judge::new(&ready()).unwrap();
            let file = tempfile::NamedTempFile::new().unwrap();
            let this = Self { file, judge };
            let length = this.judge.offset_of(64) + 4096;
            this.file.as_file().set_len(length).unwrap();
            for (state, unit) in this.judge.states(sequence).unwrap().iter().zip(0..) {
                if let State::Data(sequence) = state {
                    this.write(unit, &this.version(unit, *sequence));
                }
            }
            this
        }

        fn version(&self, unit: u64, sequence: u64) -> Vec<u8> {
            let flushed = FLUSHED.min(sequence - 1);
            composed(UNIT, &self.judge.head(unit, sequence, flushed))
        }

        fn write(&self, unit: u64, bytes: &[u8]) {
            let offset = self.judge.offset_of(unit);
            self.file.as_file().write_all_at(bytes, offset).unwrap();
        }

        fn judged(&self) -> Vec<(&'static str, u64)> {
            let moment = Moment {
                flushed: FLUSHED,
                submitted: Some(CHANGES),
            };
            let wrong = self.judge.judge(self.file.path(), moment).unwrap();
            wrong.iter().map(|wrong| (wrong.kind, wrong.unit)).collect()
        }

        /// Units that were written before the flush and are the same after all changes, with the number
        /// of the write.
        fn settled(&self) -> Vec<(u64, u64)> {
            let (before, after) = (
                self.judge.states(FLUSHED).unwrap(),
                self.judge.states(CHANGES).unwrap(),
            );
            let units = before.iter().zip(&after).zip(0..);
            units
                .filter_map(|((before, after), unit)| match before {
                    State::Data(sequence) if before == after => Some((unit, *sequence)),
                    _ => None,
                })
                .collect()
        }
    }

    #[test]
    fn images_between_the_flush_and_the_newest_change_are_right_and_older_ones_are_not() {
        for sequence in [FLUSHED, 150, CHANGES] {
            assert_eq!(Image::after(sequence).judged(), [], "{sequence}");
        }
        let old = Image::after(100).judged();
        assert!(!old.is_empty());
        let all = Image::after(CHANGES);
        let flushed = all.judge.flushed_by(all.file.path()).unwrap();
        assert_eq!(flushed, FLUSHED);
    }

    #[test]
    fn each_kind_of_damage_is_named() {
        let image = Image::after(CHANGES);
        let settled = image.settled();
        let written: Vec<_> = settled.iter().filter(|(_, n)| *n > 4).copied().collect();
        let [(a, _), (b, new), (c, _), (d, _), ..] = written[..] else {
            panic!("{settled:?}");
        };
        // The version that filled the region.
        image.write(a, &image.version(a, a / 16 + 1));
        assert_eq!(image.judged(), [("disk-stale", a)]);
        let mut torn = image.version(b, b / 16 + 1);
        torn[..2048].copy_from_slice(&image.version(b, new)[..2048]);
        image.write(b, &torn);
        image.write(c, &image.version(d, new));
        image.write(d, &[0; 4096]);
        let mut wrong = image.judged();
        wrong.sort_unstable();
        let mut expected = [
            ("disk-lost", d),
            ("disk-misplaced", c),
            ("disk-stale", a),
            ("disk-torn", b),
        ];
        expected.sort_unstable();
        assert_eq!(wrong, expected);
    }

    #[test]
    fn a_write_that_was_lost_before_the_flush_is_told_and_one_after_it_is_not() {
        let image = Image::after(CHANGES);
        let (before, after) = (
            image.judge.states(FLUSHED).unwrap(),
            image.judge.states(CHANGES).unwrap(),
        );
        let rewritten = before.iter().zip(&after).zip(0..).find_map(|both| {
            let ((before, after), unit) = both;
            match (before, after) {
                (State::Data(old), State::Data(_)) if before != after => Some((unit, *old)),
                _ => None,
            }
        });
        let (unit, old) = rewritten.unwrap();
        image.write(unit, &image.version(unit, old));
        assert_eq!(image.judged(), []);
        // A version that no change has written here.
        let (settled, newest) = image.settled()[0];
        image.write(settled, &image.version(settled, newest + 1));
        assert_eq!(image.judged(), [("disk-future", settled)]);
    }

    #[test]
    fn a_short_image_and_an_impossible_load_are_refused() {
        let image = Image::after(FLUSHED);
        image.file.as_file().set_len(4096).unwrap();
        assert!(image.judge.flushed_by(image.file.path()).is_err());
        for wrong in [
            DiskReady {
                units: 1,
                ..ready()
            },
            DiskReady {
                sizes: vec![0],
                ..ready()
            },
            DiskReady {
                unit: 100,
                ..ready()
            },
            DiskReady {
                pattern: "spiral".into(),
                ..ready()
            },
        ] {
            assert!(Judge::new(&wrong).is_err(), "{wrong:?}");
        }
    }
}
