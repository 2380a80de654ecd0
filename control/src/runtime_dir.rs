//! Where VMs of a host leave their sockets and logs, and how a name belongs to one process.
//!
//! ```text
//! ROOT/.lock                  held for moments, while folders come and go
//! ROOT/NAME/.vmm              says that the folder is ours; in it before it has its name
//! ROOT/NAME/pid               locked (flock) by the process that holds the VM, names it
//! ROOT/NAME/control.sock      HTTP API
//! ROOT/NAME/files.sock        where files are passed
//! ROOT/NAME/console.sock      serial console
//! ROOT/NAME/serial.log        output of the guest
//! ROOT/NAME/vmm.log           log of the process
//! ROOT/NAME/end.json          last status of a VM that has ended
//! ```
//! Journals of hand-overs outlive their VMs and the host's boot: see `state_dir.rs`. Where
//! `$VMM_RUNTIME_DIR` makes a host of its own they are in ROOT too, as `migrations/`.
//!
//! The last end of each name stays, with the logs, until the name is used again or `vmm forget`; the
//! oldest go when there are many (`end.rs`). Everything else in ROOT is somebody else's, and is left alone
//! (`folder.rs`).

mod end;
mod error;
mod files;
mod folder;
mod logs;
mod name;
mod process;
mod root;
mod vm_dir;

pub use logs::{Log, LogReader};
pub use name::check_name;
pub use process::VmProcess;
pub use root::{Entry, Forgotten, RuntimeDir};
pub use vm_dir::{Naming, VmDir};

#[cfg(test)]
mod tests;
