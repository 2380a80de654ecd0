//! Building a machine: KVM's parts, RAM, devices, vCPUs, in the order that KVM asks for.

// Giving guest RAM to KVM hands it raw addresses.
#![allow(unsafe_code)]

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use block::control_file::ControlFile;
use block::{Access, BlockDevice, Claim, Content, RawImage};
use devices::bus::{Bus, BusDevice};
use devices::interrupt::{EventFdInterrupt, Interrupt};
use devices::power::{ACPI_POWER_PORTS, AcpiPower, I8042, I8042_PORTS, PowerControl};
use devices::rtc::{RTC_PORTS, Rtc};
use devices::serial::{SERIAL_PORTS, Serial};
use devices::virtio::mmio::QUEUE_NOTIFY_OFFSET;
use devices::virtio::{Block, BlockConfig, Console, MMIO_LEN, MmioTransport, Rng, VirtioDevice};
use kvm_bindings::{
    KVM_MEM_LOG_DIRTY_PAGES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use migration::GuestRam;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::announce::Announcements;
use super::claims::Claims;
use super::console_ports::{ActivePort, Port};
use super::demands::CpuDemands;
use super::devices::{Devices, VirtioSlot};
use super::events::GuestEvents;
use super::net::NetSpec;
use super::power::PauseReasons;
use super::spec::{DiskAccess, MachineSpec};
use super::{DirtyLog, Machine, MachineError};
use crate::boot::MmioSlot;
use crate::console::ConsoleHub;
use crate::kvm::tsc::{HostTsc, TscRate};
use crate::kvm::{self, os_error};
use crate::memory::RamFile;
use crate::sandbox::opener;
use crate::vcpu::state::{GuestTsc, VcpuStateCaps};
use crate::vcpu::{ExitHandlers, VcpuSet};
use crate::{cpuid, memory};

/// Three pages that KVM on Intel needs for real mode; in the hole, above everything else.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

const SERIAL_PORT: u64 = 0x3f8;
const SERIAL_GSI: u32 = 4;
const RTC_PORT: u64 = 0x70;
const RTC_GSI: u32 = 8;
const I8042_PORT: u64 = 0x60;
const ACPI_POWER_PORT: u64 = 0x600;
const ACPI_POWER_GSI: u32 = 9;

const VIRTIO_BASE: u64 = 0xd000_0000;
/// GSIs of the virtio slots: first those that no ISA device ever had.
const VIRTIO_GSIS: [u32; 17] = [
    16, 17, 18, 19, 20, 21, 22, 23, 10, 11, 12, 13, 14, 15, 5, 6, 7,
];

/// A disk image and what is expected of it.
#[derive(Debug, Clone)]
pub struct DiskSource {
    /// Identity of the disk.
    pub id: String,
    /// Path of the image on this host.
    pub path: PathBuf,
    /// What the guest may do with it.
    pub access: DiskAccess,
    /// Whether another format than raw is recognised, and refused.
    pub content: Content,
    /// Size that it must have, when the guest knows it already.
    pub expected_size: Option<u64>,
    /// What orders faults of it, for tests of this program.
    pub faults: Option<ControlFile>,
}

/// As whom a machine claims its disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskClaim {
    /// It runs from its beginning: nobody else may hold them.
    Owner,
    /// It comes in: the source still owns them and has offered the succession.
    Successor,
}

/// virtio slots of a machine with so many disks and network interfaces: disks, console, rng,
/// interfaces.
pub fn mmio_slots(disks: usize, nets: usize) -> Vec<MmioSlot> {
    (0..disks + 2 + nets)
        .map(|i| MmioSlot {
            base: VIRTIO_BASE + i as u64 * MMIO_LEN,
            len: MMIO_LEN,
            gsi: VIRTIO_GSIS[i],
        })
        .collect()
}

fn open_disk(disk: &DiskSource) -> Result<RawImage, MachineError> {
    let disk = disk.clone();
    opener::outside(move || open_image(&disk))
}

fn open_image(disk: &DiskSource) -> Result<RawImage, MachineError> {
    let access = match disk.access {
        DiskAccess::ReadWrite => Access::ReadWrite,
        DiskAccess::ReadOnly => Access::ReadOnly,
    };
    let faults = disk.faults.as_ref();
    let image = faults
        .map_or(Ok(()), |faults| faults.opening(&disk.id, &disk.path))
        .and_then(|()| RawImage::open(&disk.path, access, disk.content))
        .map_err(|source| MachineError::Disk {
            id: disk.id.clone(),
            path: disk.path.clone(),
            source,
        })?;
    match disk.expected_size {
        Some(expected) if expected != image.size() => Err(MachineError::DiskSize {
            id: disk.id.clone(),
            path: disk.path.clone(),
            expected,
            found: image.size(),
        }),
        _ => Ok(image),
    }
}

/// Checks that a disk can be opened and is the expected one; claims nothing.
///
/// # Errors
/// When it cannot be opened as asked, or has another size.
pub fn check_disk(disk: &DiskSource) -> Result<u64, MachineError> {
    Ok(open_disk(disk)?.size())
}

/// Gives the RAM to KVM, a slot a region, with the dirty log on or off.
///
/// # Errors
/// When KVM refuses.
pub(super) fn map_ram(vm: &VmFd, ram: &GuestRam, log: DirtyLog) -> io::Result<()> {
    for (slot, region) in ram.iter().enumerate() {
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: if log == DirtyLog::On {
                KVM_MEM_LOG_DIRTY_PAGES
            } else {
                0
            },
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is mapped for as long as `ram` lives, and the machine that owns this VM
        // keeps a clone of it until after the VM is gone; regions do not overlap.
        unsafe { vm.set_user_memory_region(slot) }.map_err(os_error)?;
    }
    Ok(())
}

impl Machine {
    /// Builds the machine with fresh RAM in `file`; no vCPU runs, nothing is loaded.
    ///
    /// # Errors
    /// When this host cannot build it.
    pub fn build(
        file: RamFile,
        spec: MachineSpec,
        disks: &[DiskSource],
        claim: DiskClaim,
        console: &ConsoleHub,
        events: &GuestEvents,
    ) -> Result<Self, MachineError> {
        let ram = memory::allocate(file, spec.memory)?;
        memory::back_by(&ram, spec.pages);
        Self::build_on(ram, spec, disks, claim, console, events)
    }

    /// Builds the machine around RAM that is there already.
    ///
    /// # Errors
    /// When this host cannot build it.
    pub fn build_on(
        ram: GuestRam,
        spec: MachineSpec,
        disks: &[DiskSource],
        claim: DiskClaim,
        console: &ConsoleHub,
        events: &GuestEvents,
    ) -> Result<Self, MachineError> {
        let kvm = kvm::open()?;
        let vm = kvm::create_vm(&kvm)?;
        let step = |what| move |e: kvm_ioctls::Error| MachineError::Build(what, os_error(e));
        vm.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(step("place the identity map"))?;
        vm.set_tss_address(TSS_ADDRESS)
            .map_err(step("place the TSS"))?;
        // Before the interrupt controllers: KVM still waits for readers of the buses as they were before
        // those, for milliseconds, and this would wait with it.
        map_ram(&vm, &ram, DirtyLog::Off).map_err(|e| MachineError::Build("map guest RAM", e))?;
        vm.create_irq_chip()
            .map_err(step("create the interrupt controllers"))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(pit).map_err(step("create the PIT"))?;

        let mut builder = BusBuilder {
            vm: &vm,
            ram: &ram,
            cpus: spec.cpuid.len() as u16,
            pio: Bus::new(),
            mmio: Bus::new(),
        };
        let devices = builder.devices(disks, claim, &spec.nets, console, events)?;
        let BusBuilder { pio, mmio, .. } = builder;

        let mut fds = Vec::with_capacity(spec.cpuid.len());
        for (index, leaves) in spec.cpuid.iter().enumerate() {
            fds.push(create_vcpu(&vm, index as u64, leaves)?);
        }
        let tsc = if spec.backend.is_pvm() {
            GuestTsc::Host
        } else {
            GuestTsc::Offset
        };
        let area = kvm::XsaveArea::of(&vm);
        let vcpu_caps = VcpuStateCaps::probe(&kvm, &fds[0], &spec.cpuid[0], area, tsc)
            .map_err(|e| MachineError::Vcpu(0, e))?;
        let rate = set_tsc_rate(&kvm, &fds, &spec)?;
        let mut spec = spec;
        spec.cpu = CpuDemands::of(&spec, &kvm, &fds[0], &vcpu_caps, rate)?;
        let handlers = ExitHandlers {
            pio: Arc::new(pio),
            mmio: Arc::new(mmio),
            events: events.clone(),
            ram: ram.clone(),
        };
        let vcpus = VcpuSet::spawn(fds, &handlers)
            .map_err(|e| MachineError::Build("start the vCPU threads", e))?;
        Ok(Self {
            vcpus,
            devices,
            vm,
            ram,
            vcpu_caps,
            tsc: rate,
            spec,
            reasons: PauseReasons::new(),
            events: events.clone(),
            announcements: Announcements::default(),
        })
    }
}

/// Gives the vCPUs the rate of TSC that their guest has seen, where it is not this host's.
fn set_tsc_rate(kvm: &Kvm, vcpus: &[VcpuFd], spec: &MachineSpec) -> Result<TscRate, MachineError> {
    let host = HostTsc::of(kvm, &vcpus[0]);
    let Some(rate) = host.rate_for(spec.cpu.tsc_khz) else {
        let wanted = spec.cpu.tsc_khz;
        return Err(MachineError::Mismatch(format!(
            "its TSC runs at {wanted} kHz, this host's at {} kHz",
            host.khz
        )));
    };
    if rate.is_scaled() {
        for vcpu in vcpus {
            vcpu.set_tsc_khz(rate.guest)
                .map_err(|e| MachineError::Build("set the rate of the TSC", os_error(e)))?;
        }
    }
    Ok(rate)
}

fn create_vcpu(vm: &VmFd, index: u64, leaves: &[cpuid::CpuidLeaf]) -> Result<VcpuFd, MachineError> {
    let fd = vm
        .create_vcpu(index)
        .map_err(|e| MachineError::Build("create a vCPU", os_error(e)))?;
    fd.set_cpuid2(&cpuid::from_leaves(leaves)?)
        .map_err(|e| MachineError::Build("set CPUID", os_error(e)))?;
    Ok(fd)
}

/// Puts devices on their buses and ties their interrupts and notifications to KVM.
struct BusBuilder<'a> {
    vm: &'a VmFd,
    ram: &'a GuestRam,
    cpus: u16,
    pio: Bus,
    mmio: Bus,
}

impl BusBuilder<'_> {
    fn devices(
        &mut self,
        disks: &[DiskSource],
        claim: DiskClaim,
        nets: &[NetSpec],
        console: &ConsoleHub,
        events: &GuestEvents,
    ) -> Result<Devices, MachineError> {
        let power: Arc<dyn PowerControl> = Arc::new(events.clone());
        let active = ActivePort::default();
        let out = active.track(Port::Serial, console.writer());
        let serial = Serial::new(self.interrupt(SERIAL_GSI)?, out)
            .map(Arc::new)
            .map_err(named("serial"))?;
        self.port("serial", SERIAL_PORT, SERIAL_PORTS, serial.clone())?;
        let rtc = Rtc::new(self.interrupt(RTC_GSI)?)
            .map(Arc::new)
            .map_err(named("rtc"))?;
        self.port("rtc", RTC_PORT, RTC_PORTS, rtc.clone())?;
        let i8042 = Arc::new(I8042::new(power.clone()));
        self.port("i8042", I8042_PORT, I8042_PORTS, i8042.clone())?;
        let acpi = Arc::new(AcpiPower::new(power, self.interrupt(ACPI_POWER_GSI)?));
        self.port("acpi", ACPI_POWER_PORT, ACPI_POWER_PORTS, acpi.clone())?;

        let mut slots = mmio_slots(disks.len(), nets.len()).into_iter();
        let mut virtio = Vec::new();
        let mut claims = Vec::new();
        let mut plug = |builder: &mut Self, id: &str, device: Box<dyn VirtioDevice>| {
            let slot = slots.next().ok_or(MachineError::TooManyDevices)?;
            virtio.push(builder.virtio(id, &slot, device)?);
            Ok::<(), MachineError>(())
        };
        for disk in disks {
            let image = open_disk(disk)?;
            let claimed = match claim {
                DiskClaim::Owner => image.claim(),
                DiskClaim::Successor => image.claim_as_successor(),
            };
            let claimed: Claim = claimed.map_err(|source| MachineError::Disk {
                id: disk.id.clone(),
                path: disk.path.clone(),
                source,
            })?;
            claims.push((disk.id.clone(), Arc::new(claimed)));
            let config = BlockConfig {
                serial: disk.id.clone(),
                queues: self.cpus,
            };
            let image: Arc<dyn BlockDevice> = Arc::new(image);
            let image = match &disk.faults {
                Some(faults) => faults.over(&disk.id, image),
                None => image,
            };
            let device = Block::new(image, config);
            plug(self, &disk.id, Box::new(device))?;
        }
        let out = active.track(Port::Virtio, console.writer());
        let (port, end) = Console::new(out).map_err(named("console"))?;
        plug(self, "console", Box::new(port))?;
        plug(self, "rng", Box::new(Rng::new()))?;
        let mut ports = Vec::new();
        for spec in nets {
            let (device, port) = spec.device()?;
            plug(self, &spec.id, Box::new(device))?;
            ports.push((spec.id.clone(), port));
        }

        let (input, typed) = (Arc::downgrade(&serial), end.clone());
        // Keys that find a full queue are lost, as on a real port without flow control.
        console.set_input(Box::new(move |bytes| match active.get() {
            Port::Virtio => {
                typed.enqueue(bytes);
            }
            Port::Serial => {
                if let Some(serial) = input.upgrade() {
                    serial.enqueue_input(bytes);
                }
            }
        }));
        Ok(Devices {
            serial,
            rtc,
            i8042,
            acpi,
            console: end,
            virtio,
            claims: Claims::new(claims),
            nets: ports,
        })
    }

    /// An edge-triggered line to `gsi` by irqfd (KVM API 4.75).
    fn interrupt(&self, gsi: u32) -> Result<Arc<dyn Interrupt>, MachineError> {
        let line = EventFdInterrupt::new().map_err(named("interrupt"))?;
        self.vm
            .register_irqfd(line.event(), gsi)
            .map_err(|e| MachineError::Build("register an irqfd", os_error(e)))?;
        Ok(Arc::new(line))
    }

    fn port(
        &mut self,
        id: &str,
        base: u64,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), MachineError> {
        self.pio.insert(base, len, device).map_err(named(id))
    }

    fn virtio(
        &mut self,
        id: &str,
        slot: &MmioSlot,
        device: Box<dyn VirtioDevice>,
    ) -> Result<VirtioSlot, MachineError> {
        let transport = MmioTransport::new(device, self.ram.clone(), self.interrupt(slot.gsi)?)
            .map_err(named(id))?;
        // It stands still, as the machine does, until the machine runs.
        transport.pause().map_err(named(id))?;
        let notify = IoEventAddress::Mmio(slot.base + QUEUE_NOTIFY_OFFSET);
        for (queue, event) in transport.queue_notifiers().iter().enumerate() {
            // The kernel matches 4 bytes, as the driver must write them (virtio 1.2, 4.2.2.2).
            self.vm
                .register_ioevent(event, &notify, queue as u32)
                .map_err(|e| MachineError::Build("register an ioeventfd", os_error(e)))?;
        }
        self.mmio
            .insert(slot.base, slot.len, transport.clone())
            .map_err(named(id))?;
        Ok(VirtioSlot {
            id: id.to_owned(),
            transport,
        })
    }
}

fn named(id: &str) -> impl FnOnce(devices::Error) -> MachineError {
    let id = id.to_owned();
    move |source| MachineError::Device { id, source }
}
