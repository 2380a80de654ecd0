//! The state of a whole machine: of which components it consists, how it travels, how it is saved and loaded.

pub mod components;
mod form;
mod parts;
mod save;
pub mod v1;

pub use form::Form;
pub use parts::{IrqchipsStateV1, MachineState, PitStateV1, RunStateV1};
