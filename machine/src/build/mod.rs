//! Building a machine: KVM's parts, RAM, devices, vCPUs, in the order that KVM asks for.

pub(crate) mod demands;
pub mod spec;

use std::sync::Arc;

use devices::bus::{Bus, BusDevice};
use devices::interrupt::{EventFdInterrupt, Interrupt};
use devices::power::{
    ACPI_POWER_PORTS, AcpiPower, I8042, I8042_PORTS, PowerControl, RESET_CONTROL_PORT, ResetControl,
};
use devices::rtc::{RTC_PORTS, Rtc};
use devices::serial::{SERIAL_PORTS, Serial};
use devices::virtio::mmio::QUEUE_NOTIFY_OFFSET;
use devices::virtio::{Block, BlockConfig, Console, MMIO_LEN, MmioTransport, Rng, VirtioDevice};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use migration::GuestRam;

use crate::boot::MmioSlot;
use crate::build::spec::CpuDemands;
use crate::build::spec::MachineSpec;
use crate::console::ConsoleHub;
use crate::devices::announce::Announcements;
use crate::devices::console_ports::{ActivePort, Port};
use crate::devices::net::NetSpec;
use crate::devices::{Devices, VirtioSlot};
use crate::disks::claims::Claims;
use crate::disks::{DiskClaim, DiskSource, Disks};
use crate::error::MachineError;
use crate::events::GuestEvents;
use crate::kvm::slots::{DirtyLog, map_ram};
use crate::kvm::tsc::{HostTsc, TscRate};
use crate::kvm::{self, os_error};
use crate::machine::Machine;
use crate::memory::RamFile;
use crate::power::PauseReasons;
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

impl Machine {
    /// Builds the machine with fresh RAM in `file`; no vCPU runs, nothing is loaded.
    ///
    /// # Errors
    /// When this host cannot build it.
    pub fn build(
        file: RamFile,
        spec: MachineSpec,
        disks: &[DiskSource],
        claim: DiskClaim<'_>,
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
        claim: DiskClaim<'_>,
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
        claim: DiskClaim<'_>,
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
        let reset = Arc::new(ResetControl::new(power.clone()));
        self.port("reset control", RESET_CONTROL_PORT, 1, reset)?;
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
        let disks = Disks::open(disks, claim)?;
        for disk in disks.iter() {
            claims.push((disk.id.clone(), disk.claim.clone()));
            let config = BlockConfig {
                serial: disk.id.clone(),
                queues: self.cpus,
            };
            let device = Block::new(disk.backend()?, config);
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

        let room = console.room_notifier();
        serial.on_room(Box::new({
            let room = room.clone();
            move || room()
        }));
        end.on_room(Box::new(move || room()));
        let (input, typed) = (Arc::downgrade(&serial), end.clone());
        console.set_input(Box::new(move |bytes| match active.get() {
            Port::Virtio => typed.enqueue(bytes),
            // A guest that is gone reads nothing, and nobody waits for it.
            Port::Serial => input
                .upgrade()
                .map_or(bytes.len(), |serial| serial.enqueue_input(bytes)),
        }));
        Ok(Devices {
            serial,
            rtc,
            i8042,
            acpi,
            console: end,
            virtio,
            claims: Claims::new(claims),
            disks,
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
