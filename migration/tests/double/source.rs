//! A VM to be moved away.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use migration::observation::Side;
use migration::vm::{
    DirtyMemory, MachineDescription, Rehearsal, RunState, SourceDisks, SourceMachine, SourceVolume,
    VmResult,
};
use migration::{GuestRam, MigrationId, PAGE_SIZE};
use vm_memory::{Bytes, GuestAddress};

use super::disks::MemoryDisk;
use super::guest::{Guest, Inner};
use super::memory::{By, contents, layout, make_ram};
use super::refuse::{Refuse, refusal};
use super::witness::Witness;

/// A VM to be moved away.
pub struct Source {
    inner: Arc<Inner>,
    pub file: File,
    guest: Option<JoinHandle<()>>,
    pub refuse: Refuse,
    /// Its user has paused it.
    user_paused: AtomicBool,
    pub state: Vec<u8>,
    /// How long its disks take to be flushed while it runs, and how often they were.
    pub flush_takes: Duration,
    pub flushes: AtomicUsize,
    /// Whether the guest writes to its disks, as far as it says.
    pub writes_to_disks: bool,
    /// How often they were flushed while it was stopped.
    pub stopped_flushes: AtomicUsize,
    /// How often it was stopped.
    pub pauses: AtomicUsize,
    /// What stopping and saving it takes, as it says.
    pub rehearsal: Rehearsal,
    pub logging: AtomicBool,
    /// Threads that it was told share its processors: now, and at most.
    pub sharing: AtomicUsize,
    pub shared: AtomicUsize,
    pub offered: AtomicBool,
    /// Its disks were handed over, and its memory may go.
    pub released: AtomicBool,
    pub memory_released: AtomicBool,
    /// How its state can be written, and what was chosen of that.
    pub forms: Option<String>,
    pub agreed: Mutex<Vec<Option<String>>>,
    /// What has come for the guest each time when it is asked for that.
    pub late: Option<Vec<u8>>,
    /// Its disks that travel, and whether their images are marked as leaving.
    pub disks: Vec<Arc<MemoryDisk>>,
    /// Those that were agreed on.
    pub agreed_disks: Mutex<Vec<String>>,
    pub disks_marked: AtomicBool,
}

impl Source {
    pub fn new(pages: u64, guest: Guest, witness: &Arc<Witness>) -> Self {
        let layout = layout(pages);
        let (ram, file) = make_ram(&layout);
        let inner = Inner::new(layout, ram, witness);
        let guest = inner.start(guest);
        Self {
            inner,
            file,
            guest,
            refuse: Refuse::Nothing,
            user_paused: AtomicBool::new(false),
            flush_takes: Duration::ZERO,
            flushes: AtomicUsize::new(0),
            writes_to_disks: true,
            stopped_flushes: AtomicUsize::new(0),
            pauses: AtomicUsize::new(0),
            rehearsal: Rehearsal::default(),
            state: b"the state of the machine".to_vec(),
            logging: AtomicBool::new(false),
            sharing: AtomicUsize::new(0),
            shared: AtomicUsize::new(0),
            offered: AtomicBool::new(false),
            released: AtomicBool::new(false),
            memory_released: AtomicBool::new(false),
            forms: None,
            agreed: Mutex::default(),
            late: None,
            disks: Vec::new(),
            agreed_disks: Mutex::default(),
            disks_marked: AtomicBool::new(false),
        }
    }

    /// Fills `pages` pages from `first` of region `region` on with what is not zero, as a loader or a
    /// disk does.
    pub fn fill(&self, region: usize, first: u64, pages: u64) {
        let base = self.inner.layout[region].gpa;
        for page in first..first + pages {
            let bytes: Vec<u8> = (0..PAGE_SIZE / 8)
                .flat_map(|i| (page * 0x1_0001 + i * 31 + 1).to_le_bytes())
                .collect();
            self.inner
                .ram
                .write_slice(&bytes, GuestAddress(base + page * PAGE_SIZE))
                .unwrap();
            self.inner.mark(By::Device, region, page);
        }
    }

    pub fn paused_by_user(self) -> Self {
        self.user_pauses();
        self
    }

    pub fn user_pauses(&self) {
        let mut runs = self.inner.runs.lock().unwrap();
        self.user_paused.store(true, Ordering::SeqCst);
        *runs = false;
        self.inner.witness.set(Side::Source, false);
    }

    pub fn contents(&self) -> Vec<u8> {
        contents(&self.inner.ram, &self.inner.layout)
    }

    /// The guest writes to a disk that travels, or discards a part of it, if it runs; whether it does.
    pub fn with_disk(&self, disk: usize, change: impl FnOnce(&MemoryDisk)) -> bool {
        let runs = self.inner.runs.lock().unwrap();
        if *runs {
            change(&self.disks[disk]);
        }
        *runs
    }

    /// Whether it is as before a migration.
    pub fn is_untouched(&self) -> bool {
        !self.logging.load(Ordering::SeqCst)
            && self.sharing.load(Ordering::SeqCst) == 0
            && !self.disks.iter().any(|disk| disk.is_tracked())
            && !self.disks_marked.load(Ordering::SeqCst)
            && !self.offered.load(Ordering::SeqCst)
            && !self.released.load(Ordering::SeqCst)
            && !self.memory_released.load(Ordering::SeqCst)
            && *self.inner.runs.lock().unwrap() == (self.run_state() == RunState::Running)
    }

    fn check(&self, operation: Refuse) -> VmResult<()> {
        if self.refuse == operation {
            Err(refusal(Side::Source))
        } else {
            Ok(())
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.inner.end.store(true, Ordering::Relaxed);
        if let Some(guest) = self.guest.take() {
            guest.join().unwrap();
        }
    }
}

impl SourceMachine for Source {
    fn describe(&self) -> VmResult<MachineDescription> {
        self.check(Refuse::Describe)?;
        Ok(MachineDescription {
            name: "double".into(),
            ram: self.inner.layout.clone(),
            machine: "{}".into(),
            disks: None,
        })
    }

    fn offer_state(&self) -> VmResult<Option<String>> {
        self.check(Refuse::OfferState)?;
        Ok(self.forms.clone())
    }

    fn agree_on_state(&self, chosen: Option<&str>) -> VmResult<()> {
        self.check(Refuse::AgreeOnState)?;
        assert!(
            !self.offered.load(Ordering::SeqCst),
            "disks were offered before"
        );
        self.agreed.lock().unwrap().push(chosen.map(str::to_owned));
        Ok(())
    }

    fn run_state(&self) -> RunState {
        if self.user_paused.load(Ordering::SeqCst) {
            RunState::Paused
        } else {
            RunState::Running
        }
    }

    fn share_processors(&self, threads: usize) {
        self.sharing.store(threads, Ordering::SeqCst);
        self.shared.fetch_max(threads, Ordering::SeqCst);
    }

    fn rehearse(&self) -> VmResult<Rehearsal> {
        Ok(self.rehearsal)
    }

    fn pause(&self) -> VmResult<()> {
        self.check(Refuse::Pause)?;
        self.pauses.fetch_add(1, Ordering::SeqCst);
        *self.inner.runs.lock().unwrap() = false;
        self.inner.witness.set(Side::Source, false);
        Ok(())
    }

    fn resume(&self) -> VmResult<()> {
        assert!(
            !self.released.load(Ordering::SeqCst),
            "resumed after release"
        );
        let runs = self.run_state() == RunState::Running;
        self.inner.witness.set(Side::Source, runs);
        *self.inner.runs.lock().unwrap() = runs;
        Ok(())
    }

    fn save_state(&self) -> VmResult<Vec<u8>> {
        self.check(Refuse::SaveState)?;
        let flushed = self.stopped_flushes.load(Ordering::SeqCst);
        assert!(flushed > 0, "what it wrote last is not on its disks");
        // A device that writes to memory while its state is saved.
        self.inner
            .ram
            .write_obj(0x5a5a_5a5au32, GuestAddress(64))
            .unwrap();
        self.inner.mark(By::Device, 0, 0);
        Ok(self.state.clone())
    }

    fn packets_to_forward(&self) -> Option<Vec<u8>> {
        self.late.clone()
    }
}

impl DirtyMemory for Source {
    fn ram(&self) -> &GuestRam {
        &self.inner.ram
    }

    fn start_dirty_log(&self) -> VmResult<()> {
        self.check(Refuse::StartLog)?;
        self.logging.store(true, Ordering::SeqCst);
        for word in self.inner.by_vcpus.words() {
            word.store(u64::MAX, Ordering::SeqCst);
        }
        Ok(())
    }

    fn stop_dirty_log(&self) -> VmResult<()> {
        self.logging.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn read_vcpu_writes(&self, dirty: &mut [Vec<u64>]) -> VmResult<()> {
        self.check(Refuse::FetchDirty)?;
        let marks = self.inner.by_vcpus.words();
        for (out, marks) in dirty.iter_mut().flatten().zip(marks) {
            *out |= marks.load(Ordering::SeqCst);
        }
        Ok(())
    }

    fn take_device_writes(&self, dirty: &mut [Vec<u64>]) -> VmResult<()> {
        let marks = self.inner.by_devices.words();
        for (out, marks) in dirty.iter_mut().flatten().zip(marks) {
            *out |= marks.swap(0, Ordering::SeqCst);
        }
        Ok(())
    }

    fn drop_device_writes(&self) -> VmResult<()> {
        assert!(self.logging.load(Ordering::SeqCst));
        for word in self.inner.by_devices.words() {
            word.store(0, Ordering::SeqCst);
        }
        Ok(())
    }

    fn clear_vcpu_writes(&self, region: usize, first_page: u64, bits: &[u64]) -> VmResult<()> {
        self.check(Refuse::ClearDirty)?;
        assert!(
            self.refuse != Refuse::ClearDirtyByPanic,
            "the double was told to panic"
        );
        assert!(first_page.is_multiple_of(64));
        for (marks, bits) in self.inner.by_vcpus.0[region][(first_page / 64) as usize..]
            .iter()
            .zip(bits)
        {
            marks.fetch_and(!bits, Ordering::SeqCst);
        }
        Ok(())
    }

    fn release_memory(&self) {
        let disks = self.released.load(Ordering::SeqCst);
        assert!(disks, "the memory goes before the disks");
        self.memory_released.store(true, Ordering::SeqCst);
    }
}

impl SourceDisks for Source {
    fn volumes(&self) -> VmResult<Vec<Arc<dyn SourceVolume>>> {
        let disks = self.disks.iter();
        Ok(disks.map(|disk| disk.clone() as Arc<_>).collect())
    }

    fn agree_on_disks(&self, travelling: &[String]) -> VmResult<()> {
        *self.agreed_disks.lock().unwrap() = travelling.to_vec();
        Ok(())
    }

    fn mark_disks(&self, _: MigrationId, _: &str) -> VmResult<()> {
        // Half-way, as where there are several.
        self.disks_marked.store(true, Ordering::SeqCst);
        self.check(Refuse::MarkDisks)
    }

    fn unmark_disks(&self) -> VmResult<()> {
        self.disks_marked.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn track_disks(&self) -> VmResult<()> {
        self.disks.iter().for_each(|disk| disk.track());
        self.check(Refuse::TrackDisks)
    }

    fn untrack_disks(&self) -> VmResult<()> {
        self.disks.iter().for_each(|disk| disk.untrack());
        Ok(())
    }

    fn offer_disks(&self) -> VmResult<()> {
        self.check(Refuse::OfferDisks)?;
        self.offered.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn reclaim_disks(&self) -> VmResult<()> {
        self.offered.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn has_unflushed_writes(&self) -> bool {
        self.writes_to_disks
    }

    fn flush_disks(&self) -> VmResult<()> {
        self.check(Refuse::FlushDisks)?;
        if !*self.inner.runs.lock().unwrap() {
            // What was not flushed before is too little to count.
            self.stopped_flushes.fetch_add(1, Ordering::SeqCst);
            return Ok(());
        }
        std::thread::sleep(self.flush_takes);
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn hand_over_disks(&self) {
        self.released.store(true, Ordering::SeqCst);
    }
}
