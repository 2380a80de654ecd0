//! The CPU that a guest is to see, as it is asked for, and the most that a host is to offer.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use migration::observation::Observation;

use crate::cpuid::{Level, Model};

/// CPU features that the guest sees.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum CpuModel {
    /// What KVM on this host offers.
    #[default]
    Host,
    /// A microarchitecture level.
    Level(Level),
    /// What a file says.
    File(PathBuf),
}

impl FromStr for CpuModel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "host" {
            return Ok(Self::Host);
        }
        if let Ok(level) = text.parse() {
            return Ok(Self::Level(level));
        }
        if text.contains('/') || text.ends_with(".toml") {
            return Ok(Self::File(text.into()));
        }
        Err(format!(
            "CPU model {text:?} is not known: host, x86-64-v1 to x86-64-v4, and FILE.toml are"
        ))
    }
}

impl CpuModel {
    /// The model as it is meant in a file of folder `base`.
    pub(super) fn below(self, base: &Path) -> Self {
        match self {
            Self::File(path) => Self::File(base.join(path)),
            other => other,
        }
    }

    /// The same from any working directory.
    pub(super) fn absolute(self) -> Self {
        match self {
            Self::File(path) => Self::File(super::absolute(path)),
            other => other,
        }
    }

    /// What it stands for.
    ///
    /// # Errors
    /// `usage.cpu-model` when its file cannot be used.
    pub fn resolve(&self) -> Result<Model, Observation> {
        match self {
            Self::Host => Ok(Model::host()),
            Self::Level(level) => Ok(Model::level(*level)),
            Self::File(path) => {
                Model::from_file(path).map_err(|why| super::usage("cpu-model", why))
            }
        }
    }
}

/// The most of its CPU that a host offers, as `path` says; all of it if there is no such file.
///
/// # Errors
/// `usage.host-cpu` when the file cannot be used: to offer more than was meant would do harm.
pub fn host_limit(path: &Path) -> Result<Option<Model>, Observation> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        _ => Model::from_file(path)
            .map(Some)
            .map_err(|why| super::usage("host-cpu", why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_named_or_in_a_file() {
        for (text, model) in [
            ("host", CpuModel::Host),
            ("x86-64-v1", CpuModel::Level(Level::V1)),
            ("x86-64-v4", CpuModel::Level(Level::V4)),
            ("pool.toml", CpuModel::File("pool.toml".into())),
            ("./pool", CpuModel::File("./pool".into())),
        ] {
            assert_eq!(text.parse(), Ok(model), "{text}");
        }
        for text in ["", "qemu64", "v2", "x86-64-v5", "x86-64-V2", "HOST"] {
            assert!(text.parse::<CpuModel>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_is_named_by_the_file_that_names_it() {
        let model: CpuModel = "pool.toml".parse().unwrap();
        assert_eq!(
            model.below(Path::new("/etc/vms")),
            CpuModel::File("/etc/vms/pool.toml".into())
        );
        assert_eq!(CpuModel::Host.below(Path::new("/etc")), CpuModel::Host);
    }

    #[test]
    fn a_limit_that_cannot_be_read_is_not_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host-cpu.toml");
        assert_eq!(host_limit(&path), Ok(None));
        std::fs::write(&path, "base = \"x86-64-v2\"").unwrap();
        assert_eq!(host_limit(&path).unwrap().unwrap().name(), "host-cpu");
        std::fs::write(&path, "nonsense").unwrap();
        assert_eq!(host_limit(&path).unwrap_err().id, "usage.host-cpu");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        assert_eq!(host_limit(&path).unwrap_err().id, "usage.host-cpu");
    }
}
