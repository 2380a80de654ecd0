//! CPU time of a process over a window of time, its vCPUs aside.
//!
//! A guest that spins takes all the CPU time that it gets, which says nothing about the migration.
//! What remains of a process is its work: threads that move memory, the event loop, and giving the
//! memory back.

use super::error::BenchError;
use super::proc::Process;

/// CPU time of a process since the window was opened.
pub(super) struct CpuWindow {
    process: Process,
    vcpus: Vec<u32>,
    total_before: f64,
    vcpus_before: f64,
    vcpus_seen: f64,
}

impl CpuWindow {
    /// Opens the window of a process whose vCPUs are these threads.
    pub fn open(process: Process, vcpus: Vec<u32>) -> Result<Self, BenchError> {
        let vcpus_before = process.thread_seconds(&vcpus).unwrap_or(0.0);
        Ok(Self {
            total_before: process.cpu_seconds()?,
            process,
            vcpus,
            vcpus_before,
            vcpus_seen: vcpus_before,
        })
    }

    /// Notes what the vCPUs used so far: threads take their figures with them when they end.
    pub fn note_vcpus(&mut self) {
        if let Some(seconds) = self.process.thread_seconds(&self.vcpus) {
            self.vcpus_seen = self.vcpus_seen.max(seconds);
        }
    }

    /// Names vCPUs that were made since the window was opened.
    pub fn add_vcpus(&mut self, vcpus: Vec<u32>) {
        if self.vcpus.is_empty() {
            self.vcpus = vcpus;
        }
    }

    /// Seconds used since the window was opened. Also of a process that ended and was not waited
    /// for.
    pub fn close(mut self) -> Result<f64, BenchError> {
        self.note_vcpus();
        let total = self.process.cpu_seconds()? - self.total_before;
        let vcpus = self.vcpus_seen - self.vcpus_before;
        // Both are counted in hundredths.
        Ok((total - vcpus).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use super::*;

    fn spin(until: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !until() && Instant::now() < deadline {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn a_vcpu_that_spins_does_not_count() {
        let process = Process::new(std::process::id());
        let (sender, receiver) = mpsc::channel();
        let (go_on, wait) = mpsc::channel::<()>();
        let vcpu = std::thread::Builder::new()
            .name("bench-spinner".to_owned())
            .spawn(move || {
                let own = Process::new(std::process::id());
                let id = rustix::thread::gettid().as_raw_nonzero().get() as u32;
                sender.send(id).unwrap();
                spin(|| own.thread_seconds(&[id]).is_some_and(|used| used >= 0.5));
                sender.send(id).unwrap();
                // It stays until it was counted.
                let _ = wait.recv();
            })
            .unwrap();
        let id = receiver.recv().unwrap();
        let with = CpuWindow::open(process.clone(), Vec::new()).unwrap();
        let without = CpuWindow::open(process, vec![id]).unwrap();
        receiver.recv().unwrap();
        let (without, with) = (without.close().unwrap(), with.close().unwrap());
        drop(go_on);
        vcpu.join().unwrap();
        // Other tests of this process may spin too, in both alike.
        assert!(with - without >= 0.4, "{with} with, {without} without");
    }
}
