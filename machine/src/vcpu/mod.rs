//! vCPUs: their threads, how they are stopped and started, and their state.

mod delivery;
mod exit;
mod gate;
mod kick;
pub mod msrs;
mod run;
mod shutdown;
pub mod state;
mod time_slice;
mod timer;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::{io, thread};

use kvm_ioctls::VcpuFd;
use rustix::thread::sched_getaffinity;
use vmm_sys_util::signal::Killable;

use crate::boot::refusal::KvmBackend;
use crate::threads::{self, ThreadKind};
use gate::{Gate, Mode};
use kick::ImmediateExit;
pub use run::ExitHandlers;
use time_slice::TimeSlices;

struct Vcpu {
    fd: Arc<Mutex<VcpuFd>>,
    immediate_exit: ImmediateExit,
    thread: Option<JoinHandle<()>>,
}

/// All vCPUs of a machine, stopped and started together.
pub struct VcpuSet {
    vcpus: Vec<Vcpu>,
    gate: Arc<Gate>,
    slices: Arc<TimeSlices>,
}

impl VcpuSet {
    /// Starts a parked thread for each vCPU.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn spawn(fds: Vec<VcpuFd>, handlers: &ExitHandlers) -> io::Result<Self> {
        kick::install_handler()?;
        let gate = Arc::new(Gate::new());
        let backend = KvmBackend::detect();
        let mut set = Self {
            vcpus: Vec::with_capacity(fds.len()),
            gate,
            slices: Arc::default(),
        };
        for (index, mut fd) in fds.into_iter().enumerate() {
            let immediate_exit = ImmediateExit::of(&mut fd);
            let fd = Arc::new(Mutex::new(fd));
            let worker = run::Worker {
                index,
                fd: fd.clone(),
                immediate_exit: immediate_exit.clone(),
                gate: set.gate.clone(),
                slices: set.slices.clone(),
                handlers: handlers.clone(),
                backend,
            };
            let thread = thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || {
                    threads::begin(ThreadKind::Vcpu);
                    worker.run();
                })?;
            set.vcpus.push(Vcpu {
                fd,
                immediate_exit,
                thread: Some(thread),
            });
        }
        Ok(set)
    }

    /// Lets all vCPUs run.
    pub fn resume(&self) {
        self.gate.open();
    }

    /// Stops all vCPUs and returns once each has completed its pending I/O and is parked.
    pub fn pause(&self) {
        self.gate.close(Mode::Paused);
        self.kick();
        self.gate.wait_parked(self.vcpus.len());
    }

    /// Lets the vCPUs share the processors with `threads` other threads; 0 ends it. Where all of them together are
    /// more than the processors that this process may use, each vCPU yields its own to others after each
    /// millisecond.
    pub fn share_processors(&self, threads: usize) {
        let scarce = sched_getaffinity(None)
            .is_ok_and(|allowed| (allowed.count() as usize) < self.vcpus.len() + threads);
        let yielding = threads > 0 && scarce;
        self.slices.set_active(yielding);
        if yielding {
            // A guest that does not leave by itself would not see it.
            self.kick();
        }
    }

    /// How often a vCPU yielded its processor to others.
    pub fn yields(&self) -> u64 {
        self.slices.yields()
    }

    /// Number of vCPUs.
    pub fn len(&self) -> usize {
        self.vcpus.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.vcpus.is_empty()
    }

    /// The vCPU's descriptor; blocks while the vCPU runs, so pause first.
    pub fn fd(&self, index: usize) -> MutexGuard<'_, VcpuFd> {
        self.vcpus[index]
            .fd
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Address and bytes of the instruction at which a parked vCPU stands.
    pub fn instruction(&self, index: usize, ram: &migration::GuestRam) -> (u64, Vec<u8>) {
        exit::instruction(&self.fd(index), ram)
    }

    fn kick(&self) {
        for vcpu in &self.vcpus {
            vcpu.immediate_exit.set();
            if let Some(thread) = &vcpu.thread {
                // ESRCH: the thread has ended, which is as good as parked.
                let _ = thread.kill(kick::signal());
            }
        }
    }
}

impl Drop for VcpuSet {
    fn drop(&mut self) {
        self.gate.close(Mode::Quit);
        self.kick();
        for vcpu in &mut self.vcpus {
            if let Some(thread) = vcpu.thread.take() {
                let _ = thread.join();
            }
        }
    }
}
