//! The command line of a QEMU with the probe guest.

use std::path::Path;

use super::super::guest::Workload;
use super::variant::{Memory, Variant};

/// The file of the guest in the folder of the benchmark.
pub(super) const KERNEL: &str = "probe.elf";

/// The guest and its serial port: a socket, and a file with all that it printed.
pub(super) fn guest(kernel: &Path, line: &str, serial: &Path, log: &Path) -> Vec<String> {
    let serial = format!(
        "socket,id=serial,server=on,wait=off,path={},logfile={}",
        escaped(serial),
        escaped(log)
    );
    let kernel = kernel.display().to_string();
    let words = [
        "-kernel",
        &kernel,
        "-append",
        line,
        "-chardev",
        &serial,
        "-serial",
        "chardev:serial",
    ];
    words.map(str::to_owned).to_vec()
}

/// The machine without its guest's image and its sockets.
pub(super) fn arguments(workload: &Workload, variant: Variant, waits: bool) -> Vec<String> {
    let memory_mib = workload.memory_bytes >> 20;
    // Without ACPI tables the firmware starts the guest at once: the guest needs none.
    let machine = match variant.memory {
        Memory::Memfd | Memory::MemfdPopulated => "microvm,acpi=off,memory-backend=ram",
        Memory::Anonymous => "microvm,acpi=off",
    };
    let mut arguments = vec![
        "-nodefaults".to_owned(),
        "-no-user-config".to_owned(),
        "-display".to_owned(),
        "none".to_owned(),
        "-no-reboot".to_owned(),
        "-accel".to_owned(),
        "kvm".to_owned(),
        // The MSR behind it cannot be set on every KVM, and QEMU gives up where it cannot.
        "-cpu".to_owned(),
        "host,arch-capabilities=off".to_owned(),
        "-machine".to_owned(),
        machine.to_owned(),
        "-smp".to_owned(),
        workload.cpus.to_string(),
        "-m".to_owned(),
        format!("{memory_mib}M"),
    ];
    if variant.memory != Memory::Anonymous {
        let populate = if waits && variant.memory == Memory::MemfdPopulated {
            ",prealloc=on"
        } else {
            ""
        };
        arguments.push("-object".to_owned());
        arguments.push(format!(
            "memory-backend-memfd,id=ram,size={memory_mib}M,share=on{populate}"
        ));
    }
    if waits {
        arguments.extend(["-incoming".to_owned(), "defer".to_owned()]);
    }
    arguments
}

/// A path as part of an option: a comma is doubled.
pub(super) fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_destination_waits_and_populates_its_memory() {
        let workload = Workload {
            cpus: 2,
            memory_bytes: 1088 << 20,
            random_bytes: 1 << 30,
            dirty_bytes: 0,
            dirty_pages_per_s: 0,
        };
        let words = |memory, waits| {
            let variant = Variant {
                memory,
                ..Variant::STANDARD[0]
            };
            arguments(&workload, variant, waits).join(" ")
        };
        let source = words(Memory::MemfdPopulated, false);
        assert!(!source.contains("prealloc") && !source.contains("-incoming"));
        let destination = words(Memory::MemfdPopulated, true);
        assert!(destination.contains("size=1088M,share=on,prealloc=on"));
        assert!(destination.ends_with("-incoming defer"));
        assert!(!words(Memory::Memfd, true).contains("prealloc"));
        assert!(!words(Memory::Anonymous, true).contains("memfd"));
    }

    #[test]
    fn a_comma_in_a_path_ends_no_option() {
        assert_eq!(escaped(Path::new("/tmp/a,b")), "/tmp/a,,b");
    }
}
