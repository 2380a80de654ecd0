//! What a VM is made of: the command line and a TOML file, merged and checked.

mod cpu;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use block::image::Format;
use control::units::ByteSize;
use migration::observation::Observation;
use serde::Deserialize;

pub use self::cache::DiskCache;
pub(crate) use self::check::check_disk_id;
pub use self::check::{MAX_ID, set_once};
use self::check::{absolute, usage};
pub use self::cpu::{CpuModel, host_limit};
pub use self::incoming_disk::{DiskTarget, IncomingDisk};
use self::net::FileNet;
pub(crate) use self::net::check_net_id;
pub use self::net::{NetArg, NetConfig, parse_net_override};
pub use self::receive::ReceiveConfig;
pub use crate::memory::PageBacking;

mod cache;
mod check;
mod incoming_disk;
mod net;
mod receive;

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
    /// qcow2. Never guessed: a guest could write its raw disk so that it looks like one.
    Qcow2,
}

impl FromStr for DiskFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse()? {
            Format::Raw => Ok(Self::Raw),
            Format::Qcow2 => Ok(Self::Qcow2),
        }
    }
}

/// What becomes of a disk whose guest has gone to another host, or may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StaleDisks {
    /// It is refused.
    #[default]
    Refused,
    /// It is used, and is this guest's from then on.
    Used,
}

/// A disk of the guest, an image file or block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// Image file or block device.
    pub path: PathBuf,
    /// What it holds.
    pub format: DiskFormat,
    /// The guest may only read.
    pub readonly: bool,
    /// Whether the page cache is used.
    pub cache: DiskCache,
    /// Name of the disk in the guest (virtio-blk serial) and in `receive --disk ID=PATH`.
    pub id: String,
}

/// A disk as it is written on the command line: `PATH[,format=raw|qcow2][,readonly][,cache=writeback|none][,id=ID]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskArg {
    /// Image file or block device.
    pub path: PathBuf,
    /// What it holds.
    pub format: DiskFormat,
    /// The guest may only read.
    pub readonly: bool,
    /// Whether the page cache is used.
    pub cache: DiskCache,
    /// Where absent, `disk0`, `disk1`, … by position.
    pub id: Option<String>,
}

impl FromStr for DiskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let path = parts.next().unwrap_or_default();
        if path.is_empty() {
            return Err(
                "a disk needs a path: PATH[,format=raw|qcow2][,readonly][,cache=writeback|none][,id=ID]".into(),
            );
        }
        let (mut format, mut readonly, mut cache, mut id) = (None, None, None, None);
        for part in parts {
            match part.split_once('=') {
                None if part == "readonly" => set_once(&mut readonly, "readonly", true)?,
                Some(("id", name)) => set_once(&mut id, "id", name.into())?,
                Some(("cache", name)) => set_once(&mut cache, "cache", name.parse()?)?,
                Some(("format", name)) => set_once(&mut format, "format", name.parse()?)?,
                _ => {
                    return Err(format!(
                        "{part:?} is not a disk option: format=raw, format=qcow2, readonly, cache=writeback, \
                         cache=none and id=ID are"
                    ));
                }
            }
        }
        Ok(Self {
            path: path.into(),
            format: format.unwrap_or_default(),
            readonly: readonly.unwrap_or_default(),
            cache: cache.unwrap_or_default(),
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
    /// Folders in which files below their images may lie, besides their own.
    pub allow_backing: Vec<PathBuf>,
    /// What becomes of disks whose guest may be elsewhere.
    pub stale_disks: StaleDisks,
    /// Network interfaces in the order in which the guest sees them.
    pub nets: Vec<NetConfig>,
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
    /// Folders in which files below their images may lie, besides their own.
    pub allow_backing: Vec<PathBuf>,
    /// What becomes of disks whose guest may be elsewhere.
    pub stale_disks: StaleDisks,
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
    allow_backing: Vec<PathBuf>,
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
    cache: Option<String>,
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
            allow_backing,
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
            cache,
            id,
        } in disk
        {
            let format = format.map(|text| text.parse()).transpose()?;
            let cache = cache.map(|text| text.parse()).transpose()?;
            disks.push(DiskArg {
                path: base.join(path),
                format: format.unwrap_or_default(),
                readonly,
                cache: cache.unwrap_or_default(),
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
            allow_backing: allow_backing.iter().map(|dir| base.join(dir)).collect(),
            stale_disks: StaleDisks::default(),
            nets: net
                .into_iter()
                .map(FileNet::into_arg)
                .collect::<Result<_, _>>()?,
        })
    }

    /// What is said here, and what `file` says where nothing is said here. Disks named here replace
    /// all of the file's, and so do network interfaces and folders of backing files.
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
            stale_disks: self.stale_disks,
            allow_backing: if self.allow_backing.is_empty() {
                file.allow_backing
            } else {
                self.allow_backing
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
                cache,
                id,
            } = disk;
            let id = id.unwrap_or_else(|| format!("disk{i}"));
            check_disk_id(&id)?;
            if !ids.insert(id.clone()) {
                return Err(usage("disk", format!("two disks have the id {id:?}")));
            }
            if cache == DiskCache::None && format == DiskFormat::Qcow2 {
                return Err(usage(
                    "disk",
                    format!("disk {id:?}: cache=none is for raw images"),
                ));
            }
            disks.push(DiskConfig {
                path: absolute(path),
                format,
                readonly,
                cache,
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
            allow_backing: self.allow_backing.into_iter().map(absolute).collect(),
            stale_disks: self.stale_disks,
            nets,
        })
    }
}

#[cfg(test)]
mod tests;
