//! What a program needs that deals with VMs and runs none: the control API's types, its routes and its client, and
//! the directories in which processes of VMs keep what others find.

pub mod api;
pub mod disk_move;
pub mod exit;
pub mod instance;
pub mod job;
pub mod on_demand;
pub mod output;
pub mod passed;
pub mod peer;
mod places;
pub mod rotating_file;
pub mod runtime_dir;
pub mod signals;
pub mod state_dir;
pub mod threads;

pub use migration::units;
