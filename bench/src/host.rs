//! The machine that the figures belong to.

use std::fs;

use serde::Serialize;

use machine::boot::refusal::KvmBackend;

/// The machine that the figures belong to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HostDescription {
    /// Model of the CPU as it calls itself.
    pub cpu_model: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// `kvm_intel`, `kvm_amd`, `kvm_pvm` or `unknown`.
    pub kvm_backend: String,
    /// Whether shared memory may use huge pages (`never`, `advise`, ...).
    pub shmem_huge_pages: String,
}

impl HostDescription {
    /// Describes this machine; what cannot be found out is called `unknown`.
    pub fn of_this_machine() -> Self {
        let unknown = || "unknown".to_owned();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let shmem = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
        let memory = rustix::system::sysinfo();
        Self {
            cpu_model: cpu_model(&cpuinfo).unwrap_or_else(unknown),
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: memory.totalram.saturating_mul(u64::from(memory.mem_unit)),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            kvm_backend: KvmBackend::detect().to_string(),
            shmem_huge_pages: shmem
                .ok()
                .as_deref()
                .and_then(chosen)
                .unwrap_or_else(unknown),
        }
    }
}

/// Read here and not by procfs-core, which cuts a name at its first colon.
fn cpu_model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The word in brackets of a line such as `always within_size [never]`.
fn chosen(line: &str) -> Option<String> {
    Some(line.split_once('[')?.1.split_once(']')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_and_the_chosen_setting_are_found() {
        let cpuinfo = "processor\t: 0\nmodel\t\t: 17\nmodel name\t: A CPU: fast\n";
        assert_eq!(cpu_model(cpuinfo).as_deref(), Some("A CPU: fast"));
        assert_eq!(cpu_model("processor : 0\n"), None);
        assert_eq!(
            chosen("always advise [never] deny\n").as_deref(),
            Some("never")
        );
        assert_eq!(chosen("never\n"), None);
    }

    #[test]
    fn this_machine_has_a_name() {
        let host = HostDescription::of_this_machine();
        assert!(host.cpus > 0 && host.memory_bytes > 0);
        assert!(!host.cpu_model.is_empty() && !host.kernel.is_empty());
    }
}
