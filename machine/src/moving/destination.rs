//! A machine that comes in: checked, built and loaded as the source describes it.

use block::image::qcow2::BackingRules;
use std::sync::Arc;
use std::time::Instant;

use block::Content;
use control::runtime_dir::VmDir;
use migration::endpoint::RemoteHost;
use migration::observation::{Observation, Side};
use migration::vm::{
    DestinationDisks, DestinationMachine, DestinationMemory, DestinationVolume, HugePages,
    MachineDescription, TravellingDisk, VmResult, VolumeOffer,
};
use migration::{GuestRam, MigrationId};

use crate::boot::refusal::KvmBackend;
use crate::build::demands;
use crate::build::spec::MachineSpec;
use crate::clock::TimeBounds;
use crate::config::DiskCache;
use crate::console::ConsoleHub;
use crate::cpuid::{HostCpu, Model};
use crate::debug::DebugLayers;
use crate::disks::claims::Completion;
use crate::disks::incoming::{DiskPaths, Places};
use crate::disks::places::DiskPlaces;
use crate::disks::{self, DiskClaim, DiskOwner, DiskSource};
use crate::error::MachineError;
use crate::events::GuestEvents;
use crate::machine::Machine;
use crate::machine::NetOverrides;
use crate::memory::{PageBacking, Rooms};
use crate::moving::arriving_disks::{ArrivingDisks, Here};
use crate::moving::forwarding;
use crate::opener;
use crate::power::PauseReason;
use crate::snapshot::agreement::{Agreed, Disagreement, Known};
use crate::state::RunStateV1;
use crate::state::components;
use crate::state::v1;
use crate::{kvm, memory};

/// Told of the machine at the moment it runs, before the source is.
pub(crate) type Started = Box<dyn FnMut(&Arc<Machine>) + Send>;

/// What this host adds to the machine that comes in.
pub(crate) struct Arrival {
    /// Where disks are here.
    pub(crate) places: Places,
    /// Taps of network interfaces that have another name here.
    pub(crate) taps: NetOverrides,
    /// Whether the source may say where the other disks lie.
    pub(crate) paths: DiskPaths,
    /// Where the files below images may lie.
    pub(crate) backing: BackingRules,
    /// Bytes a second at most of what comes and no guest waits for.
    pub(crate) max_inbound: Option<u64>,
    /// What is laid over its images, for tests of this program.
    pub(crate) debug: DebugLayers,
    /// Whether the VM keeps the name that it was given here, or takes the guest's.
    pub(crate) naming: Naming,
    /// Where the guest's RAM will lie.
    pub(crate) rooms: Rooms,
    /// The most of its CPU that this host offers to guests.
    pub(crate) cpu_limit: Option<Model>,
    /// Folder of the VM.
    pub(crate) dir: VmDir,
    /// Where the guest's output goes.
    pub(crate) console: ConsoleHub,
    /// Where the guest's end is told.
    pub(crate) events: GuestEvents,
}

/// Which name an incoming VM gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    /// The one that it was given here.
    Given,
    /// The one that it had at the source.
    AsAtSource,
}

/// What a VM is called that waits for its guest's name.
pub const NAMELESS: &str = "incoming";

/// Takes in one machine.
pub(crate) struct MachineDestination {
    arrival: Arrival,
    started: Started,
    machine: Option<Arc<Machine>>,
    /// The VM has the guest's name.
    renamed: bool,
    /// Disks that travel, or may.
    arriving: ArrivingDisks,
    /// Takes what is left of the disks' claims when the guest runs.
    completion: Option<Completion>,
    huge: HugePages,
    run: RunStateV1,
    /// When the state was saved, as far as this host can tell.
    saved: TimeBounds,
}

impl MachineDestination {
    pub(crate) fn new(arrival: Arrival, started: Started) -> Self {
        Self {
            arrival,
            started,
            machine: None,
            renamed: false,
            arriving: ArrivingDisks::default(),
            completion: None,
            huge: HugePages::default(),
            run: RunStateV1::Running,
            saved: TimeBounds::default(),
        }
    }

    fn disks(&self, spec: &MachineSpec) -> Vec<DiskSource> {
        spec.disks
            .iter()
            .map(|disk| {
                let given = self.arrival.places.of(&disk.id);
                let placed = self.arriving.placement(&disk.id);
                let path = placed
                    .map(|placed| &placed.path)
                    .or(given.map(|given| &given.path));
                DiskSource {
                    id: disk.id.clone(),
                    path: path.map_or_else(|| disk.path.clone().into(), Clone::clone),
                    owner: match placed.map(|placed| &placed.rest) {
                        Some(Some(_)) => DiskOwner::HereInPart,
                        Some(None) => DiskOwner::Here,
                        None => DiskOwner::AsTheMachine,
                    },
                    access: disk.access,
                    format: placed.map_or(disk.format.into(), |placed| placed.format),
                    backing: self.arrival.backing.clone(),
                    // The guest may have written anything into its first sector.
                    content: Content::Raw,
                    expected_size: Some(disk.size),
                    cache: given.map_or_else(DiskCache::default, |given| given.cache),
                    journal: placed
                        .filter(|placed| placed.rest.is_some())
                        .map(|_| self.arrival.dir.migrations()),
                    debug: self.arrival.debug.clone(),
                }
            })
            .collect()
    }

    /// Where this host puts or finds disks.
    fn here(&self) -> Here<'_> {
        Here {
            places: &self.arrival.places,
            paths: self.arrival.paths,
            journal: self.arrival.dir.migrations(),
        }
    }

    fn check_paths(&self, spec: &MachineSpec) -> VmResult<()> {
        let given = |id: &str| {
            self.arrival.places.of(id).is_some() || self.arriving.placement(id).is_some()
        };
        match spec.disks.iter().find(|disk| !given(&disk.id)) {
            Some(disk) if self.arrival.paths == DiskPaths::GivenHere => {
                let (id, path) = (&disk.id, &disk.path);
                Err(refuse(
                    "negotiate.disk",
                    format!(
                        "this host listens on the network, where anybody may name any file: say here \
                         where disk {id} lies, by --disk {id}=PATH (at the source it is {path})"
                    ),
                ))
            }
            _ => Ok(()),
        }
    }

    /// The machine as it is on this host: on this host's taps.
    fn at_home(&self, mut spec: MachineSpec) -> MachineSpec {
        for net in &mut spec.nets {
            if let Some((_, tap)) = self.arrival.taps.iter().find(|(id, _)| *id == net.id) {
                net.tap.clone_from(tap);
            }
        }
        for disk in &mut spec.disks {
            if let Some(placed) = self.arriving.placement(&disk.id) {
                disk.path = placed.path.display().to_string();
                disk.format = placed.format.into();
            }
        }
        spec
    }

    /// Refuses interfaces whose taps are missing, busy or less than what the guest relies on.
    fn check_nets(&self, spec: &MachineSpec) -> VmResult<()> {
        let known = |id: &str| spec.nets.iter().any(|net| net.id == id);
        if let Some((id, _)) = self.arrival.taps.iter().find(|(id, _)| !known(id)) {
            return Err(refuse(
                "negotiate.net",
                format!("the guest has no network interface {id}"),
            ));
        }
        for net in &spec.nets {
            if let Err(e) = net.open_tap() {
                let (id, tap) = (&net.id, &net.tap);
                let message = format!(
                    "network interface {id} cannot be on {tap} here; --net {id}=TAP names another"
                );
                return Err(refuse("negotiate.net", message).caused_by(observed(&e)));
            }
        }
        Ok(())
    }

    /// What the guest is going to be called here.
    fn name_here(&self, description: &MachineDescription) -> String {
        match self.arrival.naming {
            Naming::AsAtSource => description.name.clone(),
            Naming::Given => self.arrival.dir.name(),
        }
    }

    fn built(&self) -> VmResult<&Arc<Machine>> {
        self.machine
            .as_ref()
            .ok_or_else(|| refuse("machine.build", "the machine is not built".into()))
    }
}

/// Chooses the versions of the components of such a machine, of what its source offers; one that offers
/// nothing writes the first version of each.
fn choose(spec: &MachineSpec, offered: Option<&str>) -> Result<Agreed, Disagreement> {
    let known = components::of(spec);
    let offered = match offered {
        Some(offered) => Known::from_json(offered)?,
        None => known.in_first_version(&v1::KINDS),
    };
    known.choose(&offered)
}

fn refuse(id: &str, message: String) -> Observation {
    Observation::new(Side::Destination, id, message)
}

fn observed(e: &MachineError) -> Observation {
    e.observed(Side::Destination)
}

impl DestinationMachine for MachineDestination {
    fn negotiate(&mut self, description: &MachineDescription) -> VmResult<()> {
        let spec = self.at_home(MachineSpec::from_description(description)?);
        let kvm = kvm::open().map_err(|e| observed(&e.into()))?;
        memory::check_size(spec.memory).map_err(|e| observed(&e.into()))?;
        let here = KvmBackend::detect();
        if here.is_pvm() != spec.backend.is_pvm() {
            let there = spec.backend;
            return Err(refuse(
                "negotiate.backend",
                format!("the guest runs on {there} and cannot go on on {here}"),
            ));
        }
        let cpu = HostCpu::probe(&kvm, self.arrival.cpu_limit.as_ref())
            .map_err(|e| observed(&e.into()))?;
        let missing = demands::missing(&spec, &kvm, &cpu).map_err(|e| observed(&e))?;
        if !missing.is_empty() {
            let (here, lacks) = (cpu.described(), missing.join(", "));
            return Err(refuse(
                "negotiate.cpu",
                format!("{here} lacks what the guest's CPU has: {lacks}"),
            ));
        }
        let name = self.name_here(description);
        let told = DiskPlaces::told(description)?;
        let mut arriving = std::mem::take(&mut self.arriving);
        let here = self.here();
        arriving.choose(&here, &self.disks(&spec), told.as_ref());
        arriving.place(&here, &name, &spec)?;
        self.arriving = arriving;
        self.check_paths(&spec)?;
        let shared = self.disks(&spec).into_iter();
        for disk in shared.filter(|disk| disk.owner == DiskOwner::AsTheMachine) {
            disks::check(&disk, DiskClaim::Successor(told.as_ref())).map_err(|e| observed(&e))?;
        }
        self.check_nets(&spec)
    }

    fn choose_state(
        &mut self,
        description: &MachineDescription,
        offered: Option<&str>,
    ) -> VmResult<Option<String>> {
        let spec = MachineSpec::from_description(description)?;
        let chosen = choose(&spec, offered).map_err(|e| observed(&e.into()))?;
        Ok(offered.map(|_| chosen.to_json()))
    }

    fn prepare(&mut self, description: &MachineDescription) -> VmResult<()> {
        let spec = self.at_home(MachineSpec::from_description(description)?);
        if self.arrival.naming == Naming::AsAtSource {
            let (dir, name) = (self.arrival.dir.clone(), description.name.clone());
            opener::outside(move || dir.rename(&name))?;
            self.renamed = true;
        }
        let mut arriving = std::mem::take(&mut self.arriving);
        arriving.make(&self.here())?;
        self.arriving = arriving;
        let disks = self.disks(&spec);
        let told = DiskPlaces::told(description)?;
        let room = self.arrival.rooms.take();
        self.huge = match spec.pages {
            PageBacking::Thp => room.huge_pages(),
            // The advice would stay after the guest has come.
            PageBacking::Small => HugePages::ByCollapse,
        };
        let ram = room.take(spec.memory);
        let machine = Machine::build_on(
            ram.map_err(|e| observed(&e.into()))?,
            spec,
            &disks,
            DiskClaim::Successor(told.as_ref()),
            &self.arrival.console,
            &self.arrival.events,
        )
        .map_err(|e| observed(&e))?;
        let completion = machine.devices().claims.complete_later();
        self.completion = Some(completion.map_err(|e| observed(&e))?);
        let machine = self.machine.insert(Arc::new(machine));
        self.arriving.opened(&machine.devices().disks)
    }

    fn saved_between(&mut self, earliest: Option<Instant>, latest: Instant) {
        self.saved = TimeBounds {
            earliest,
            latest: Some(latest),
        };
    }

    fn load_state(&mut self, state: &[u8]) -> VmResult<()> {
        // Flushed before the state was saved. Not later: once the source has let go, nothing may fail.
        let disks = &self.built()?.devices().disks;
        disks.take_over().map_err(|e| observed(&e))?;
        self.arriving.are_whole()?;
        self.run = self
            .built()?
            .load_saved(state, self.saved)
            .map_err(|e| observed(&e))?;
        Ok(())
    }

    fn start(&mut self) -> VmResult<()> {
        let machine = self.built()?.clone();
        let disks = &machine.devices().disks;
        disks.begin_use().map_err(|e| observed(&e))?;
        // Everything that the guest was given is open, and no other one comes.
        opener::close();
        if self.run == RunStateV1::Paused {
            machine.pause(PauseReason::User).map_err(|e| observed(&e))?;
        }
        machine
            .resume(PauseReason::NotStarted)
            .map_err(|e| observed(&e))?;
        if let Some(completion) = self.completion.take() {
            completion.begin();
        }
        // Not before: while memory comes in, the engine decides page by page.
        memory::back_by(machine.ram(), machine.spec().pages);
        let rate = self.arrival.max_inbound;
        self.arriving.arrived(&machine.devices().disks, rate);
        (self.started)(&machine);
        Ok(())
    }

    /// The state says itself whether the guest's user had paused it, also when that came after the
    /// negotiation.
    fn take_over_paused(&mut self) -> VmResult<()> {
        self.start()
    }

    fn warnings(&mut self) -> Vec<Observation> {
        let failures = self.machine.iter().flat_map(|m| m.announcement_failures());
        let failures = failures.map(|what| refuse("net.announce", what));
        let of_disks = self
            .machine
            .iter()
            .flat_map(|m| m.devices().disks.warnings());
        let of_servers = self.arriving.warnings();
        failures.chain(of_disks).chain(of_servers).collect()
    }

    fn take_forwarded(&mut self, packets: &[u8]) -> VmResult<()> {
        forwarding::give(&self.built()?.devices().nets, packets).map_err(|e| observed(&e))
    }

    fn abandon(&mut self) {
        self.completion = None;
        let arriving = std::mem::take(&mut self.arriving);
        arriving.give_up();
        self.machine = None;
        // Once nobody has its images open.
        arriving.abandon();
        self.arrival.rooms.renew();
        if std::mem::take(&mut self.renamed) {
            let dir = self.arrival.dir.clone();
            if let Err(why) = opener::outside(move || dir.rename_to_free(NAMELESS)) {
                tracing::warn!(id = why.id, "the name of the guest is not free: {why}");
            }
        }
    }
}

impl DestinationMemory for MachineDestination {
    fn ram(&self) -> VmResult<GuestRam> {
        Ok(self.built()?.ram().clone())
    }

    fn huge_pages(&self) -> HugePages {
        self.huge
    }
}

impl DestinationDisks for MachineDestination {
    fn expect_volumes(&mut self, id: MigrationId, offered: &[VolumeOffer]) -> VmResult<()> {
        self.arriving = ArrivingDisks::of(id, offered);
        Ok(())
    }

    fn reach_servers(&mut self, source: RemoteHost) -> VmResult<()> {
        self.arriving.reach_servers(source)
    }

    fn travelling_disks(&self) -> Vec<TravellingDisk> {
        self.arriving.travelling().to_vec()
    }

    fn volumes(&self) -> VmResult<Vec<Arc<dyn DestinationVolume>>> {
        Ok(self.arriving.volumes().collect())
    }

    fn doubtful_disks(&self) -> Vec<String> {
        let built = self.machine.iter();
        built.flat_map(|m| m.devices().disks.doubtful()).collect()
    }

    fn check_disk_samples(&mut self, samples: Option<&str>) -> VmResult<()> {
        let disks = &self.built()?.devices().disks;
        disks.check_samples(samples).map_err(|e| observed(&e))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::build::spec::{CpuDemands, DiskAccess, DiskSpec, ImageFormat};
    use crate::config::IncomingDisk;
    use crate::console::ConsoleOutputs;
    use crate::memory::RamFile;
    use control::runtime_dir::RuntimeDir;

    /// One that takes in nothing.
    pub(crate) fn nowhere() -> MachineDestination {
        arriving(DiskPaths::FromSource, Vec::new())
    }

    fn arriving(paths: DiskPaths, named: Vec<IncomingDisk>) -> MachineDestination {
        let files = tempfile::tempdir().unwrap();
        let runtime = RuntimeDir::at(files.path()).unwrap();
        let arrival = Arrival {
            places: Places {
                named,
                folder: None,
            },
            taps: Vec::new(),
            paths,
            backing: BackingRules::default(),
            max_inbound: None,
            debug: DebugLayers::default(),
            naming: Naming::Given,
            rooms: Rooms::new(RamFile::memfd(), None).unwrap(),
            cpu_limit: None,
            dir: runtime.create(Some("guest"), "vm").unwrap(),
            console: ConsoleHub::start(ConsoleOutputs::default()).unwrap(),
            events: GuestEvents::new().0,
        };
        MachineDestination::new(arrival, Box::new(|_| ()))
    }

    fn check(paths: DiskPaths, named: Vec<IncomingDisk>) -> VmResult<()> {
        let spec = MachineSpec {
            memory: 16 << 20,
            pages: PageBacking::Small,
            cpuid: Vec::new(),
            cpu: CpuDemands::default(),
            backend: KvmBackend::Unknown,
            disks: vec![DiskSpec {
                format: ImageFormat::Raw,
                id: "root".into(),
                path: "/srv/root.raw".into(),
                access: DiskAccess::ReadWrite,
                size: 512,
            }],
            nets: Vec::new(),
        };
        arriving(paths, named).check_paths(&spec)
    }

    #[test]
    fn a_peer_on_the_network_does_not_say_which_file_is_a_disk() {
        let given = vec!["root=/here/root.raw".parse().unwrap()];
        check(DiskPaths::FromSource, Vec::new()).unwrap();
        check(DiskPaths::GivenHere, given).unwrap();
        let refused = check(DiskPaths::GivenHere, Vec::new()).unwrap_err();
        assert_eq!(refused.id, "negotiate.disk");
        assert!(refused.message.contains("--disk root=PATH"), "{refused}");
    }
}
