//! What only whoever tests this program asks for.

mod layers;

pub(crate) use layers::DebugLayers;

/// What this host is taken for, so that two of a machine pass for two machines.
const BOOT_ID_VARIABLE: &str = "VMM_DEBUG_BOOT_ID";
/// Where the kernel tells which of its boots this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Which host this is, to processes of others: the boot of its kernel, unless another was named. Asked
/// where the process may open files.
pub(crate) fn host() -> Option<String> {
    if let Ok(named) = std::env::var(BOOT_ID_VARIABLE) {
        tracing::warn!("this host is taken for {named}, as {BOOT_ID_VARIABLE} says");
        return Some(named);
    }
    let read = std::fs::read_to_string(BOOT_ID);
    read.ok().map(|id| id.trim_end().to_owned())
}
