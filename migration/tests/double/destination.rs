//! A VM that is taken in.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use migration::observation::Side;
use migration::vm::{
    DestinationDisks, DestinationMachine, DestinationMemory, DestinationVolume, MachineDescription,
    RamRegion, TravellingDisk, VmResult, VolumeOffer, Wish,
};
use migration::{GuestRam, MigrationId};

use super::disks::{MemoryDisk, Operation};
use super::memory::{contents, make_ram};
use super::refuse::{Refuse, refusal};
use super::witness::Witness;

/// A VM that is taken in.
pub struct Destination {
    layout: Vec<RamRegion>,
    ram: Option<(GuestRam, File)>,
    pub refuse: Refuse,
    pub state: Option<Vec<u8>>,
    pub started: u32,
    pub held: u32,
    pub abandoned: u32,
    /// What it was offered, and what it chooses.
    pub offers: Vec<Option<String>>,
    pub chooses: Option<String>,
    /// Disks that come in: what was offered, and those that were made.
    pub expected: Vec<VolumeOffer>,
    pub disks: Vec<Arc<MemoryDisk>>,
    /// Those of them that are there before, by their identities: they are written over, and hold that then.
    pub existing: Vec<(String, Vec<u8>)>,
    /// Those that it finds where they lie.
    pub reaches: Vec<String>,
    /// What is wrong with those that it makes.
    pub flaw: Flaw,
    /// Whether what was to fail of disks that it has given up had not come.
    pub is_still_to_fail: bool,
    witness: Arc<Witness>,
}

/// What is wrong with disks that a destination makes.
#[derive(Debug, Clone, Copy)]
pub enum Flaw {
    None,
    /// Nothing of them works.
    Broken,
    /// They hold something else than was written.
    Damages,
    /// An operation fails once, after it was done so many times.
    FailsAfter(Operation, usize),
}

impl Destination {
    pub fn new(witness: &Arc<Witness>) -> Self {
        Self {
            layout: Vec::new(),
            ram: None,
            refuse: Refuse::Nothing,
            state: None,
            started: 0,
            held: 0,
            abandoned: 0,
            offers: Vec::new(),
            chooses: None,
            expected: Vec::new(),
            disks: Vec::new(),
            existing: Vec::new(),
            reaches: Vec::new(),
            flaw: Flaw::None,
            is_still_to_fail: false,
            witness: witness.clone(),
        }
    }

    pub fn contents(&self) -> Vec<u8> {
        contents(&self.ram.as_ref().unwrap().0, &self.layout)
    }

    /// Bytes of memory that are allocated.
    pub fn allocated(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.ram.as_ref().unwrap().1.metadata().unwrap().blocks() * 512
    }

    pub fn has_nothing(&self) -> bool {
        self.ram.is_none() && self.disks.is_empty() && self.started == 0 && self.held == 0
    }

    fn check_panic(&self, operation: Refuse) {
        assert!(self.refuse != operation, "the double was told to panic");
    }

    fn check(&self, operation: Refuse) -> VmResult<()> {
        if self.refuse == operation {
            Err(refusal(Side::Destination))
        } else {
            Ok(())
        }
    }
}

impl DestinationMachine for Destination {
    fn negotiate(&mut self, description: &MachineDescription) -> VmResult<()> {
        self.check(Refuse::Negotiate)?;
        self.layout = description.ram.clone();
        Ok(())
    }

    fn choose_state(
        &mut self,
        description: &MachineDescription,
        offered: Option<&str>,
    ) -> VmResult<Option<String>> {
        self.check(Refuse::ChooseState)?;
        assert_eq!(
            description.ram, self.layout,
            "chosen before it was described"
        );
        assert!(self.ram.is_none(), "chosen after it was built");
        self.offers.push(offered.map(str::to_owned));
        Ok(self.chooses.clone())
    }

    fn prepare(&mut self, description: &MachineDescription) -> VmResult<()> {
        self.check(Refuse::Prepare)?;
        self.ram = Some(make_ram(&description.ram));
        let made = self.expected.iter();
        self.disks = made
            .map(|offer| {
                let existing = self.existing.iter().find(|(id, _)| *id == offer.id);
                let disk = match existing {
                    Some((id, bytes)) => MemoryDisk::holding(id, bytes),
                    None => MemoryDisk::new(&offer.id, offer.size as usize),
                };
                disk.may_lack
                    .store(offer.may_leave_rest(), Ordering::SeqCst);
                disk
            })
            .collect();
        for disk in &self.disks {
            match self.flaw {
                Flaw::None => {}
                Flaw::Broken => disk.broken.store(true, Ordering::SeqCst),
                Flaw::Damages => disk.damages.store(true, Ordering::SeqCst),
                Flaw::FailsAfter(operation, times) => disk.fail_after((operation, times)),
            }
        }
        Ok(())
    }

    fn load_state(&mut self, state: &[u8]) -> VmResult<()> {
        self.check(Refuse::LoadState)?;
        self.check_panic(Refuse::LoadStateByPanic);
        self.state = Some(state.to_vec());
        Ok(())
    }

    fn start(&mut self) -> VmResult<()> {
        self.check(Refuse::Start)?;
        self.check_panic(Refuse::StartByPanic);
        self.started += 1;
        self.witness.set(Side::Destination, true);
        Ok(())
    }

    fn take_over_paused(&mut self) -> VmResult<()> {
        self.held += 1;
        Ok(())
    }

    fn abandon(&mut self) {
        assert_eq!(self.started, 0, "abandoned after the guest ran");
        self.ram = None;
        let disks = std::mem::take(&mut self.disks);
        self.is_still_to_fail = disks.iter().any(|disk| disk.is_still_to_fail());
        self.state = None;
        self.abandoned += 1;
    }
}

impl DestinationMemory for Destination {
    fn ram(&self) -> VmResult<GuestRam> {
        self.check(Refuse::Ram)?;
        Ok(self.ram.as_ref().unwrap().0.clone())
    }
}

impl DestinationDisks for Destination {
    fn expect_volumes(&mut self, _: MigrationId, offered: &[VolumeOffer]) -> VmResult<()> {
        self.expected = offered.to_vec();
        let reaches = |offer: &VolumeOffer| self.reaches.contains(&offer.id);
        self.expected
            .retain(|offer| offer.wish != Wish::MayTravel || !reaches(offer));
        Ok(())
    }

    fn travelling_disks(&self) -> Vec<TravellingDisk> {
        let chosen = self.expected.iter().map(|offer| TravellingDisk {
            id: offer.id.clone(),
            why: (offer.wish == Wish::MayTravel).then(|| "it is not here".into()),
        });
        chosen.collect()
    }

    fn volumes(&self) -> VmResult<Vec<Arc<dyn DestinationVolume>>> {
        let disks = self.disks.iter();
        Ok(disks.map(|disk| disk.clone() as Arc<_>).collect())
    }
}
