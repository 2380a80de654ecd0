//! The machine: vCPUs, RAM, devices and what KVM holds of them, built, paused, saved and loaded as
//! one.

use std::time::Duration;

use block::Stack;
use kvm_ioctls::VmFd;
use migration::GuestRam;
use migration::observation::Observation;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

use crate::boot::{self, EntryPoint};
use crate::build::spec::MachineSpec;
use crate::devices::Devices;
use crate::devices::announce::Announcements;
use crate::error::MachineError;
use crate::events::GuestEvents;
use crate::kvm::slots::{DirtyLog, map_ram};
use crate::kvm::tsc::TscRate;
use crate::kvm::{ioctl, os_error};
use crate::power::{PauseReason, PauseReasons};
use crate::vcpu::VcpuSet;
use crate::vcpu::state::VcpuStateCaps;

/// A built machine; it stands still until [`Machine::resume`] removes the last reason to.
///
/// Fields are dropped in order: vCPU threads end before what they run on goes away.
pub struct Machine {
    pub(crate) vcpus: VcpuSet,
    pub(crate) devices: Devices,
    pub(crate) vm: VmFd,
    pub(crate) ram: GuestRam,
    pub(crate) vcpu_caps: VcpuStateCaps,
    pub(crate) tsc: TscRate,
    pub(crate) spec: MachineSpec,
    pub(crate) reasons: PauseReasons,
    pub(crate) events: GuestEvents,
    pub(crate) announcements: Announcements,
}

impl Machine {
    /// What a destination must build alike.
    pub fn spec(&self) -> &MachineSpec {
        &self.spec
    }

    /// As [`Machine::spec`], with its disks where they are now.
    pub(crate) fn current_spec(&self) -> MachineSpec {
        let mut spec = self.spec.clone();
        for disk in &mut spec.disks {
            if let Some(moved) = self.devices.disks.moved(&disk.id) {
                disk.path = moved.file().path().display().to_string();
                disk.format = moved.format().into();
            }
        }
        spec
    }

    /// What went wrong when the guest was announced to its networks, told once.
    pub(crate) fn announcement_failures(&self) -> Vec<String> {
        self.announcements.take_failures()
    }

    /// Guest RAM.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Devices and disks.
    pub(crate) fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Whether the guest ended itself: powered off, asked for a reset, or crashed.
    pub fn ended(&self) -> bool {
        self.events.ended()
    }

    /// How the guest ended itself, if it did.
    pub(crate) fn end(&self) -> Option<&Observation> {
        self.events.end()
    }

    /// Whether this reason keeps it paused.
    pub fn paused_for(&self, reason: PauseReason) -> bool {
        self.reasons.contains(reason)
    }

    /// Pauses the machine for `reason`: the vCPUs complete their I/O and park, then the devices drain
    /// and flush their disks.
    ///
    /// # Errors
    /// When a disk cannot be flushed; the machine is paused all the same.
    pub fn pause(&self, reason: PauseReason) -> Result<(), MachineError> {
        self.reasons.add(reason, || self.quiesce())
    }

    /// A migration that is over leaves the machine stopped, where a device did not go on: from now on it is paused for
    /// its user, who may let it go on.
    pub fn leave_to_user(&self) {
        self.reasons
            .replace(PauseReason::Migration, PauseReason::User);
    }

    /// As [`Machine::pause`], but flushes nothing.
    ///
    /// # Errors
    /// When a device does not stand still in time.
    pub fn stop(&self, reason: PauseReason) -> Result<(), MachineError> {
        self.reasons.add(reason, || {
            self.vcpus.pause();
            self.devices.drain()
        })
    }

    /// Removes `reason`; the machine runs when it was the last. A guest that is over stays so.
    ///
    /// # Errors
    /// When a device cannot go on; vCPUs and devices stand still then.
    pub fn resume(&self, reason: PauseReason) -> Result<(), MachineError> {
        self.reasons.remove(reason, || self.go_on())
    }

    /// Pauses the machine for its user, unless a migration holds it: what was saved of it by then does
    /// not know of the pause any more. Whether it did.
    ///
    /// # Errors
    /// As [`Machine::pause`].
    pub fn user_pause(&self) -> Result<bool, MachineError> {
        self.reasons
            .add_unless(PauseReason::Migration, PauseReason::User, || self.quiesce())
    }

    /// Lets the machine run as far as its user is concerned, unless a migration holds it. Whether it
    /// did.
    ///
    /// # Errors
    /// As [`Machine::resume`].
    pub fn user_resume(&self) -> Result<bool, MachineError> {
        self.reasons
            .remove_unless(PauseReason::Migration, PauseReason::User, || self.go_on())
    }

    /// Has the requests of disk `id` go to another stack of layers, between two requests, whether the guest runs,
    /// stands still or moves; requests in flight have `patience` to end. How long new ones waited.
    ///
    /// The new stack answers for all that the old one has completed: a read sees it, and a flush makes it durable. The
    /// claims stay those of the image that the disk began with; whoever has the guest use another holds its claim.
    ///
    /// # Errors
    /// When there is no such disk, the stack is another one to the guest, or requests do not end in time: nothing is
    /// changed then.
    pub fn pivot(
        &self,
        id: &str,
        next: Stack,
        patience: Duration,
    ) -> Result<Duration, MachineError> {
        self.devices.pivot(id, next, patience)
    }

    /// The stack of layers of each disk now, by the disk's identity, in the order of their slots.
    pub fn stacks(&self) -> Vec<(String, Stack)> {
        let disks = self.devices.disks.iter();
        disks
            .map(|disk| (disk.id.clone(), disk.current.stack()))
            .collect()
    }

    fn quiesce(&self) -> Result<(), MachineError> {
        self.vcpus.pause();
        self.devices.pause()
    }

    fn go_on(&self) -> Result<(), MachineError> {
        // The guest's end is told before its vCPU parks, and adds its own reason a little later.
        if self.ended() {
            return Ok(());
        }
        for index in 0..self.vcpus.len() {
            // Tells the guest's watchdogs that time passed without it (KVM API 4.73). Here and not
            // at the pause: what it leaves behind in KVM is no part of the saved state, so a
            // destination has to do it too. EINVAL: the guest has no kvmclock.
            let _ = self.vcpus.fd(index).kvmclock_ctrl();
        }
        if let Err(e) = self.devices.resume() {
            // Some may have begun; a disk must not change under a guest that did not go on.
            if let Err(also) = self.devices.pause() {
                tracing::warn!(error = %also, "devices did not stand still again");
            }
            return Err(e);
        }
        self.vcpus.resume();
        self.announcements.make(&self.devices.nets);
        Ok(())
    }

    /// Sets every vCPU as firmware would have left it, and the boot CPU to the kernel's entry.
    ///
    /// # Errors
    /// When KVM refuses a register.
    pub fn set_boot_registers(&self, entry: &EntryPoint) -> Result<(), MachineError> {
        for index in 0..self.vcpus.len() {
            boot::set_msrs(&self.vcpus.fd(index))?;
        }
        Ok(entry.set_registers(&self.vcpus.fd(0), &self.ram)?)
    }

    /// As [`VcpuSet::share_processors`].
    pub fn share_processors(&self, threads: usize) {
        self.vcpus.share_processors(threads);
    }

    /// As [`VcpuSet::yields`].
    #[cfg(test)]
    pub(crate) fn vcpu_yields(&self) -> u64 {
        self.vcpus.yields()
    }

    /// Turns the dirty log of all RAM on or off.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn set_dirty_log(&self, log: DirtyLog) -> Result<(), MachineError> {
        map_ram(&self.vm, &self.ram, log)
            .map_err(|e| MachineError::State("switch the dirty log", e))
    }

    /// Drops the marks of what devices, and whoever loaded the guest, have written.
    pub fn drop_device_writes(&self) {
        for region in self.ram.iter() {
            let mapping: &MmapRegion<AtomicBitmap> = region;
            mapping.bitmap().reset();
        }
    }

    /// Adds the pages that vCPUs wrote since their marks were cleared to `dirty`, one bitmap a region.
    ///
    /// # Errors
    /// When KVM refuses, or a bitmap has the wrong length.
    pub fn read_vcpu_writes(&self, dirty: &mut [Vec<u64>]) -> Result<(), MachineError> {
        for ((slot, region), into) in self.ram.iter().enumerate().zip(dirty) {
            let marks = self
                .vm
                .get_dirty_log(slot as u32, region.len() as usize)
                .map_err(|e| unread_log(os_error(e)))?;
            add_marks(&marks, into)?;
        }
        Ok(())
    }

    /// Adds the pages that devices, and whoever loaded the guest, have written to `dirty`, one bitmap a region, and
    /// drops their marks.
    ///
    /// # Errors
    /// When a bitmap has the wrong length.
    pub fn take_device_writes(&self, dirty: &mut [Vec<u64>]) -> Result<(), MachineError> {
        for (region, into) in self.ram.iter().zip(dirty) {
            let mapping: &MmapRegion<AtomicBitmap> = region;
            add_marks(&mapping.bitmap().get_and_reset(), into)?;
        }
        Ok(())
    }

    /// Clears the vCPUs' marks of the pages set in `bits`, from `first_page` of a region on.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn clear_vcpu_writes(
        &self,
        region: usize,
        first_page: u64,
        bits: &[u64],
    ) -> Result<(), MachineError> {
        let failed = |e| MachineError::State("clear the dirty log", e);
        let invalid = || failed(std::io::Error::from_raw_os_error(libc::EINVAL));
        let len = self.ram.iter().nth(region).ok_or_else(invalid)?.len() / migration::PAGE_SIZE;
        let pages = len
            .checked_sub(first_page)
            .ok_or_else(invalid)?
            .min(bits.len() as u64 * 64);
        ioctl::clear_dirty_log(&self.vm, region as u32, first_page, pages as u32, bits)
            .map_err(failed)
    }
}

fn unread_log(why: std::io::Error) -> MachineError {
    MachineError::State("read the dirty log", why)
}

/// Adds the marks of one region.
fn add_marks(marks: &[u64], into: &mut [u64]) -> Result<(), MachineError> {
    if marks.len() != into.len() {
        return Err(unread_log(std::io::Error::from_raw_os_error(libc::EINVAL)));
    }
    for (word, marks) in into.iter_mut().zip(marks) {
        *word |= marks;
    }
    Ok(())
}

/// A tap that the command line gives to an incoming machine instead of the source's.
pub type NetOverrides = Vec<(String, String)>;
