//! The targets, by what they read.

mod agreement;
mod api;
mod command_line;
mod config;
mod cpu_model;
mod description;
mod descriptors;
mod files;
mod journal;
mod kernel;
mod legacy;
mod machine;
mod network;
mod presence_map;
mod pull;
mod qcow2;
mod script;
mod seeds;
mod session;
mod source;
mod state;
mod text;
mod virtio;
mod wire;

use crate::Target;

/// All targets.
pub static ALL: &[Target] = &[
    wire::HELLO,
    wire::CONTROL,
    wire::BATCH,
    session::SESSION,
    source::SOURCE,
    pull::SERVER,
    pull::CLIENT,
    journal::JOURNAL,
    state::STATE,
    machine::MACHINE,
    description::DESCRIPTION,
    agreement::AGREEMENT,
    kernel::KERNEL,
    qcow2::QCOW2,
    presence_map::PRESENCE_MAP,
    virtio::BLOCK,
    virtio::CONSOLE,
    virtio::RNG,
    virtio::NET,
    legacy::LEGACY,
    api::HTTP,
    api::JSON,
    files::FILES,
    config::CONFIG,
    cpu_model::CPU_MODEL,
    command_line::COMMAND_LINE,
    text::UNITS,
    text::PROBE,
    text::KEYS,
];

/// The target called `name`.
///
/// # Errors
/// When there is none.
pub fn find(name: &str) -> Result<&'static Target, String> {
    let found = ALL.iter().find(|target| target.name == name);
    found.ok_or_else(|| format!("there is no target {name:?}; fuzz-input --list names them"))
}
