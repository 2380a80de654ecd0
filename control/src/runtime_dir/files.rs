//! Names of what processes leave in the folder of a VM, in one place: whoever removes a folder has to
//! know all of them.

/// Locked by the process that holds the VM, whose number it is.
pub(super) const PID: &str = "pid";
/// The socket of the HTTP API.
pub(super) const CONTROL: &str = "control.sock";
/// The socket at which files are passed.
pub(super) const FILES: &str = "files.sock";
/// The socket of the serial console.
pub(super) const CONSOLE: &str = "console.sock";
/// The record of how it ended.
pub(super) const END: &str = "end.json";
/// That record while it is written.
pub(super) const END_DRAFT: &str = "end.json.new";
/// The record of version 0.1, for VMs that failed.
pub(super) const FAILED: &str = "failed.json";
/// Output of the guest.
pub(super) const SERIAL: &str = "serial.log";
/// What came before it.
pub(super) const SERIAL_OLDER: &str = "serial.log.1";
/// Log of the process.
pub(super) const VMM: &str = "vmm.log";
/// What came before it.
pub(super) const VMM_OLDER: &str = "vmm.log.1";

/// All sockets: they go when the VM has ended.
pub(super) const SOCKETS: [&str; 3] = [CONTROL, FILES, CONSOLE];

/// All files of logs, newer and older.
pub(super) const LOGS: [&str; 4] = [SERIAL, SERIAL_OLDER, VMM, VMM_OLDER];
