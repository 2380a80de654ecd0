//! Pulls units of volumes that have not come yet: who lacks them asks for them, who has them answers.
//!
//! # What always holds
//! A unit that is absent is asked for at most once at a time, and answered once or told gone. What was not asked for, is
//! answered twice, or is not what was asked for, ends the connection and changes nothing else. When a connection is lost, what
//! was asked for on it is absent again, and whoever wanted it is told so. A volume is released when its client has said that it is
//! whole and durable, and that has been recorded.

pub mod client;
mod line;
mod maps;
pub mod server;

pub use client::{Lost, Presence, PullClient, PullError, Wanted};
pub use server::{PullServer, PullSource, Served, ServedVolume};

pub use crate::wire::pull::{Class, PulledVolume, Units};
