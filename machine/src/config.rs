//! What a VM is made of: the command line and a TOML file, merged and checked.

mod cpu;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use control::units::ByteSize;
use migration::endpoint::Endpoint;
use migration::observation::Observation;
use serde::Deserialize;

pub use self::check::{MAX_ID, set_once};
use self::check::{absolute, check_id, usage};
pub use self::cpu::{CpuModel, host_limit};
use self::net::FileNet;
pub(crate) use self::net::check_net_id;
pub use self::net::{NetArg, NetConfig, parse_net_override};
use crate::memory;
pub use crate::memory::PageBacking;

mod check;
mod net;

/// Most vCPUs of a VM.
pub const MAX_CPUS: u8 = 16;

/// RAM of a VM that does not say how much it wants.
pub const DEFAULT_MEMORY: u64 = 256 << 20;

/// Most disks and network interfaces together: the virtio slots less console and rng.
pub const MAX_PLUGGED: usize = 15;

/// What a disk's file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiskFormat {
    /// Raw, it is assumed: refused if it begins as another format does.
    #[default]
    Guessed,
    /// Raw, whatever it begins with: a guest may have written anything there.
    Raw,
}

impl FromStr for DiskFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "raw" => Ok(Self::Raw),
            _ => Err(format!(
                "disk format {text:?} is not supported: only raw is"
            )),
        }
    }
}

/// A disk of the guest, a raw image or block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// Image file or block device.
    pub path: PathBuf,
    /// What it holds.
    pub format: DiskFormat,
    /// The guest may only read.
    pub readonly: bool,
    /// Name of the disk in the guest (virtio-blk serial) and in `receive --disk ID=PATH`.
    pub id: String,
}

/// A disk as it is written on the command line: `PATH[,format=raw][,readonly][,id=ID]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskArg {
    /// Image file or block device.
    pub path: PathBuf,
    /// What it holds.
    pub format: DiskFormat,
    /// The guest may only read.
    pub readonly: bool,
    /// Where absent, `disk0`, `disk1`, … by position.
    pub id: Option<String>,
}

impl FromStr for DiskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let path = parts.next().unwrap_or_default();
        if path.is_empty() {
            return Err("a disk needs a path: PATH[,format=raw][,readonly][,id=ID]".into());
        }
        let (mut format, mut readonly, mut id) = (None, None, None);
        for part in parts {
            match part.split_once('=') {
                None if part == "readonly" => set_once(&mut readonly, "readonly", true)?,
                Some(("id", name)) => set_once(&mut id, "id", name.into())?,
                Some(("format", name)) => set_once(&mut format, "format", name.parse()?)?,
                _ => {
                    return Err(format!(
                        "{part:?} is not a disk option: format=raw, readonly and id=ID are"
                    ));
                }
            }
        }
        Ok(Self {
            path: path.into(),
            format: format.unwrap_or_default(),
            readonly: readonly.unwrap_or_default(),
            id,
        })
    }
}

/// Everything that a machine is built from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunConfig {
    /// Name on this host.
    pub name: String,
    /// Kernel: PVH ELF, vmlinux or bzImage; the embedded probe guest where absent.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// RAM in bytes, a multiple of the page size.
    pub memory: u64,
    /// Pages that back the RAM.
    pub pages: PageBacking,
    /// CPU features.
    pub cpu: CpuModel,
    /// Disks in the order in which the guest sees them.
    pub disks: Vec<DiskConfig>,
    /// Network interfaces in the order in which the guest sees them.
    pub nets: Vec<NetConfig>,
}

/// What a destination is told before a guest arrives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiveConfig {
    /// `HOST:PORT`, `unix:PATH` or `fd:N`.
    pub listen: Endpoint,
    /// Name on this host; the guest's own name where absent.
    pub name: Option<String>,
    /// Paths of disks on this host by their id; a disk that is not named keeps its path.
    pub disks: Vec<(String, PathBuf)>,
    /// Taps on this host by the id of their interface; one that is not named keeps its name.
    pub nets: Vec<(String, String)>,
    /// Bytes of memory to have ready before the guest comes.
    pub reserve: Option<u64>,
}

/// What the user said about a VM; `None` and empty are left to the file or the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// Name on this host.
    pub name: Option<String>,
    /// Kernel image.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: Option<String>,
    /// vCPUs.
    pub cpus: Option<u8>,
    /// RAM in bytes.
    pub memory: Option<u64>,
    /// Pages that back the RAM.
    pub pages: Option<PageBacking>,
    /// CPU features.
    pub cpu: Option<CpuModel>,
    /// Disks.
    pub disks: Vec<DiskArg>,
    /// Network interfaces.
    pub nets: Vec<NetArg>,
}

/// The file as it is written; unknown keys are refused by name and line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileConfig {
    name: Option<String>,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    cmdline: Option<String>,
    cpus: Option<u8>,
    memory: Option<SizeText>,
    pages: Option<String>,
    cpu: Option<String>,
    #[serde(default)]
    disk: Vec<FileDisk>,
    #[serde(default)]
    net: Vec<FileNet>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDisk {
    path: PathBuf,
    format: Option<String>,
    #[serde(default)]
    readonly: bool,
    id: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum SizeText {
    Bytes(u64),
    Text(String),
}

/// Largest configuration file that is read.
const MAX_FILE: u64 = 1 << 20;

impl RunOptions {
    /// Reads options from a TOML file; its relative paths are relative to the file.
    ///
    /// # Errors
    /// `usage.config`, with the line where there is one.
    pub fn from_file(path: &Path) -> Result<Self, Observation> {
        let wrong = |what: String| usage("config", format!("{}: {what}", path.display()));
        let length = std::fs::metadata(path)
            .map_err(|e| wrong(e.to_string()))?
            .len();
        if length > MAX_FILE {
            return Err(wrong(format!(
                "{length} bytes is too large for a configuration"
            )));
        }
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        let base = path.parent().unwrap_or(Path::new(""));
        Self::from_toml(&text, base).map_err(wrong)
    }

    pub(crate) fn from_toml(text: &str, base: &Path) -> Result<Self, String> {
        let file: FileConfig = toml::from_str(text).map_err(|e| {
            let message = e.message().lines().collect::<Vec<_>>().join(", ");
            match e.span() {
                Some(span) => {
                    let upto = &text.as_bytes()[..span.start.min(text.len())];
                    let line = upto.iter().filter(|b| **b == b'\n').count() + 1;
                    format!("line {line}: {message}")
                }
                None => message,
            }
        })?;
        let FileConfig {
            name,
            kernel,
            initrd,
            cmdline,
            cpus,
            memory,
            pages,
            cpu,
            disk,
            net,
        } = file;
        let memory = match memory {
            None => None,
            Some(SizeText::Bytes(bytes)) => Some(bytes),
            Some(SizeText::Text(text)) => Some(
                text.parse::<ByteSize>()
                    .map_err(|e| format!("memory: {e}"))?
                    .0,
            ),
        };
        let mut disks = Vec::new();
        for FileDisk {
            path,
            format,
            readonly,
            id,
        } in disk
        {
            let format = format.map(|text| text.parse()).transpose()?;
            disks.push(DiskArg {
                path: base.join(path),
                format: format.unwrap_or_default(),
                readonly,
                id,
            });
        }
        Ok(Self {
            name,
            kernel: kernel.map(|p| base.join(p)),
            initrd: initrd.map(|p| base.join(p)),
            cmdline,
            cpus,
            memory,
            pages: pages.map(|text| text.parse()).transpose()?,
            cpu: cpu
                .map(|text| text.parse().map(|cpu: CpuModel| cpu.below(base)))
                .transpose()?,
            disks,
            nets: net
                .into_iter()
                .map(FileNet::into_arg)
                .collect::<Result<_, _>>()?,
        })
    }

    /// What is said here, and what `file` says where nothing is said here. Disks named here replace
    /// all of the file's, and so do network interfaces.
    #[must_use]
    pub fn or(self, file: Self) -> Self {
        Self {
            name: self.name.or(file.name),
            kernel: self.kernel.or(file.kernel),
            initrd: self.initrd.or(file.initrd),
            cmdline: self.cmdline.or(file.cmdline),
            cpus: self.cpus.or(file.cpus),
            memory: self.memory.or(file.memory),
            pages: self.pages.or(file.pages),
            cpu: self.cpu.or(file.cpu),
            disks: if self.disks.is_empty() {
                file.disks
            } else {
                self.disks
            },
            nets: if self.nets.is_empty() {
                file.nets
            } else {
                self.nets
            },
        }
    }

    /// The checked configuration of a VM called `name` (which the runtime directory assigned).
    ///
    /// # Errors
    /// `usage.cpus`, `usage.memory`, `usage.disk`, `usage.net`, `usage.devices`, `usage.initrd`.
    pub fn into_config(self, name: String) -> Result<RunConfig, Observation> {
        let cpus = self.cpus.unwrap_or(1);
        if !(1..=MAX_CPUS).contains(&cpus) {
            return Err(usage(
                "cpus",
                format!("{cpus} CPUs: 1 to {MAX_CPUS} are supported"),
            ));
        }
        let memory = self.memory.unwrap_or(DEFAULT_MEMORY);
        if memory == 0 || !memory.is_multiple_of(migration::PAGE_SIZE) {
            return Err(usage(
                "memory",
                format!("memory of {memory} bytes: a positive multiple of 4 KiB is needed"),
            ));
        }
        if self.initrd.is_some() && self.kernel.is_none() {
            return Err(usage(
                "initrd",
                "an initrd needs a kernel of its own: add --kernel",
            ));
        }
        let mut ids = BTreeSet::new();
        let mut disks = Vec::new();
        for (i, disk) in self.disks.into_iter().enumerate() {
            let DiskArg {
                path,
                format,
                readonly,
                id,
            } = disk;
            let id = id.unwrap_or_else(|| format!("disk{i}"));
            check_disk_id(&id)?;
            if !ids.insert(id.clone()) {
                return Err(usage("disk", format!("two disks have the id {id:?}")));
            }
            disks.push(DiskConfig {
                path: absolute(path),
                format,
                readonly,
                id,
            });
        }
        let mut nets = Vec::new();
        for (i, net) in self.nets.into_iter().enumerate() {
            let net = net.into_config(i)?;
            if !ids.insert(net.id.clone()) {
                return Err(usage(
                    "net",
                    format!("two devices have the id {:?}", net.id),
                ));
            }
            nets.push(net);
        }
        if disks.len() + nets.len() > MAX_PLUGGED {
            return Err(usage(
                "devices",
                format!(
                    "{} disks and {} network interfaces: {MAX_PLUGGED} together are supported",
                    disks.len(),
                    nets.len()
                ),
            ));
        }
        Ok(RunConfig {
            name,
            kernel: self.kernel.map(absolute),
            initrd: self.initrd.map(absolute),
            cmdline: self.cmdline.unwrap_or_default(),
            cpus,
            memory,
            pages: self.pages.unwrap_or_default(),
            cpu: self.cpu.unwrap_or_default().absolute(),
            disks,
            nets,
        })
    }
}

impl ReceiveConfig {
    /// Checks what the command line says.
    ///
    /// # Errors
    /// `usage.disk`, `usage.net`, `usage.reserve`.
    pub fn new(
        listen: Endpoint,
        name: Option<String>,
        disks: Vec<(String, PathBuf)>,
        nets: Vec<(String, String)>,
        reserve: Option<u64>,
    ) -> Result<Self, Observation> {
        let mut ids = BTreeSet::new();
        for (id, _) in &disks {
            check_disk_id(id)?;
            if !ids.insert(id) {
                return Err(usage("disk", format!("the disk {id:?} is named twice")));
            }
        }
        let disks = disks
            .into_iter()
            .map(|(id, path)| (id, absolute(path)))
            .collect();
        let mut ids = BTreeSet::new();
        for (id, _) in &nets {
            check_net_id(id)?;
            if !ids.insert(id) {
                return Err(usage("net", format!("the interface {id:?} is named twice")));
            }
        }
        if let Some(size) = reserve {
            memory::check_size(size).map_err(|e| usage("reserve", e.to_string()))?;
        }
        Ok(Self {
            listen,
            name,
            disks,
            nets,
            reserve,
        })
    }
}

/// Reads `ID=PATH` of `receive --disk`.
///
/// # Errors
/// A sentence for the user.
pub fn parse_disk_override(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((id, path)) if !id.is_empty() && !path.is_empty() => Ok((id.into(), path.into())),
        _ => Err("write ID=PATH: the id of a disk at the source and its path here".into()),
    }
}

pub(crate) fn check_disk_id(id: &str) -> Result<(), Observation> {
    check_id(id).map_err(|what| usage("disk", format!("disk id {what}")))
}

#[cfg(test)]
mod tests;
