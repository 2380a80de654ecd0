//! VMs without KVM: memory with software dirty marks, a thread that plays the guest, and a witness
//! who sees whether two of them ever run the same guest.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod network;
pub mod players;
pub mod scene;

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, ScopedJoinHandle};
use std::time::{Duration, Instant};

use migration::observation::{Observation, Side};
use migration::vm::{
    DestinationDisks, DestinationMachine, DestinationMemory, DirtyMemory, MachineDescription,
    RamRegion, Rehearsal, RunState, SourceDisks, SourceMachine, VmResult,
};
use migration::{GuestRam, PAGE_SIZE};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// Two regions with a gap, as a real machine has.
pub fn layout(pages: u64) -> Vec<RamRegion> {
    let low = (pages / 2).max(1);
    vec![
        RamRegion {
            gpa: 0,
            len: low * PAGE_SIZE,
        },
        RamRegion {
            gpa: 4 << 30,
            len: (pages - low).max(1) * PAGE_SIZE,
        },
    ]
}

/// A memory file and guest RAM in it.
pub fn make_ram(layout: &[RamRegion]) -> (GuestRam, File) {
    let fd = rustix::fs::memfd_create("double", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    file.set_len(layout.iter().map(|r| r.len).sum()).unwrap();
    let mut at = 0;
    let ranges: Vec<_> = layout
        .iter()
        .map(|region| {
            let offset = FileOffset::new(file.try_clone().unwrap(), at);
            at += region.len;
            (GuestAddress(region.gpa), region.len as usize, Some(offset))
        })
        .collect();
    (
        GuestMemoryMmap::<AtomicBitmap>::from_ranges_with_files(&ranges).unwrap(),
        file,
    )
}

/// All memory, for comparison.
pub fn contents(ram: &GuestRam, layout: &[RamRegion]) -> Vec<u8> {
    let mut all = Vec::new();
    for region in layout {
        let at = all.len();
        all.resize(at + region.len as usize, 0);
        ram.read_slice(&mut all[at..], GuestAddress(region.gpa))
            .unwrap();
    }
    all
}

/// Sees who runs the guest, and panics when two do.
#[derive(Default)]
pub struct Witness {
    running: Mutex<(bool, bool)>,
}

impl Witness {
    fn set(&self, side: Side, runs: bool) {
        let mut running = self.running.lock().unwrap();
        match side {
            Side::Source => running.0 = runs,
            _ => running.1 = runs,
        }
        assert!(*running != (true, true), "both sides run the guest");
    }

    /// Whether the source and the destination run it.
    pub fn running(&self) -> (bool, bool) {
        *self.running.lock().unwrap()
    }
}

/// What a double refuses to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refuse {
    Nothing,
    Describe,
    OfferState,
    AgreeOnState,
    OfferDisks,
    StartLog,
    FetchDirty,
    ClearDirty,
    /// Panics in the middle of a pass, on the thread of a stream.
    ClearDirtyByPanic,
    FlushDisks,
    Pause,
    SaveState,
    Negotiate,
    ChooseState,
    Prepare,
    Ram,
    LoadState,
    Start,
}

fn refusal(side: Side) -> Observation {
    Observation::new(side, "test.refused", "the double was told to refuse this")
}

/// How the guest of a double writes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    Idle,
    /// Writes to pages of the first `pages` of each region, with a pause after each write.
    Writes {
        pages: u64,
        pause: Duration,
    },
}

/// A mark for each page of each region.
struct Marks(Vec<Vec<AtomicU64>>);

impl Marks {
    fn none(layout: &[RamRegion]) -> Self {
        let words = |r: &RamRegion| (r.len / PAGE_SIZE).div_ceil(64);
        let clean = |r| (0..words(r)).map(|_| AtomicU64::new(0)).collect();
        Self(layout.iter().map(clean).collect())
    }

    fn set(&self, region: usize, page: u64) {
        self.0[region][(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::SeqCst);
    }

    fn words(&self) -> impl Iterator<Item = &AtomicU64> {
        self.0.iter().flatten()
    }
}

/// Who writes to a page: whose mark it gets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// The mark stays until it is cleared.
    Vcpu,
    /// The mark is taken by who looks at it. Set whether or not somebody logs.
    Device,
}

struct Inner {
    layout: Vec<RamRegion>,
    ram: GuestRam,
    by_vcpus: Marks,
    by_devices: Marks,
    /// Held while the guest writes: pausing takes it away.
    runs: Mutex<bool>,
    end: AtomicBool,
    witness: Arc<Witness>,
}

impl Inner {
    fn write(&self, random: u64, pages: u64) {
        let index = (random >> 60) as usize % self.layout.len();
        let region = self.layout[index];
        let page = random % pages.min(region.len / PAGE_SIZE);
        let at = region.gpa + page * PAGE_SIZE + (random >> 20) % 500 * 8;
        // Some writes make a page all zeroes again.
        if random.is_multiple_of(7) {
            let start = GuestAddress(region.gpa + page * PAGE_SIZE);
            self.ram
                .write_slice(&[0; PAGE_SIZE as usize], start)
                .unwrap();
        } else {
            self.ram.write_obj(random, GuestAddress(at)).unwrap();
        }
        let by = if random.is_multiple_of(5) {
            By::Device
        } else {
            By::Vcpu
        };
        self.mark(by, index, page);
    }

    fn mark(&self, by: By, region: usize, page: u64) {
        match by {
            By::Vcpu => self.by_vcpus.set(region, page),
            By::Device => self.by_devices.set(region, page),
        }
    }
}

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
}

impl Source {
    pub fn new(pages: u64, guest: Guest, witness: &Arc<Witness>) -> Self {
        let layout = layout(pages);
        let (ram, file) = make_ram(&layout);
        let inner = Arc::new(Inner {
            by_vcpus: Marks::none(&layout),
            by_devices: Marks::none(&layout),
            layout,
            ram,
            runs: Mutex::new(true),
            end: AtomicBool::new(false),
            witness: witness.clone(),
        });
        witness.set(Side::Source, true);
        let thread = match guest {
            Guest::Idle => None,
            Guest::Writes { pages, pause } => {
                let inner = inner.clone();
                Some(std::thread::spawn(move || {
                    let mut random = 0x9e37_79b9_7f4a_7c15u64;
                    while !inner.end.load(Ordering::Relaxed) {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        {
                            let runs = inner.runs.lock().unwrap();
                            if *runs {
                                inner.write(random, pages);
                            }
                        }
                        std::thread::sleep(pause);
                    }
                }))
            }
        };
        Self {
            inner,
            file,
            guest: thread,
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

    /// Whether it is as before a migration.
    pub fn is_untouched(&self) -> bool {
        !self.logging.load(Ordering::SeqCst)
            && self.sharing.load(Ordering::SeqCst) == 0
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
    witness: Arc<Witness>,
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
        self.ram.is_none() && self.started == 0 && self.held == 0
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
        Ok(())
    }

    fn load_state(&mut self, state: &[u8]) -> VmResult<()> {
        self.check(Refuse::LoadState)?;
        self.state = Some(state.to_vec());
        Ok(())
    }

    fn start(&mut self) -> VmResult<()> {
        self.check(Refuse::Start)?;
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

impl DestinationDisks for Destination {}

/// Waits for `condition`, but not for ever.
/// Whether a thread ends in time.
pub fn ends_within<T>(thread: &ScopedJoinHandle<'_, T>, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while !thread.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    thread.is_finished()
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
