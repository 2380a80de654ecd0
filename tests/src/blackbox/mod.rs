//! What the tests of the real binary share: two "hosts" on this machine, guests that check
//! themselves, migrations followed event by event, and peers that misbehave.

pub mod busy_disk;
pub mod clock_ledger;
pub mod console;
pub mod disk_load;
pub mod guest;
pub mod guest_lock;
pub mod images;
pub mod leaving;
pub mod leftovers;
pub mod migration;
pub mod mounted;
pub mod moving_disk;
pub mod moving_load;
pub mod pair;
pub mod passing;
pub mod relay;
pub mod storage;
pub mod vitals;
pub mod vms;
pub mod wait;
pub mod wire;

pub use console::Console;
pub use guest::Guest;
pub use guest_lock::{GuestLock, guest_lock, machine_lock};
pub use migration::{Ended, Migration};
pub use mounted::Mounted;
pub use pair::Pair;
pub use vms::{Vms, crash, error_text, fails, kill, one_json, signal};
pub use wait::{eventually, holds};
