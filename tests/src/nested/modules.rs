//! Kernel modules of an unpacked kernel package and the order in which they must be loaded.
//!
//! The package carries no dependency list (its installation would make one), so dependencies are read
//! from the modules themselves: each names what it needs in its `.modinfo` section.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// A module ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Name with underscores, as the kernel knows it.
    pub name: String,
    /// The module's ELF file, decompressed.
    pub image: Vec<u8>,
}

/// The modules of one kernel.
#[derive(Debug)]
pub struct Modules {
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

impl Modules {
    /// Reads which modules there are below `dir` (`lib/modules/VERSION` of the package).
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        collect(dir, &mut files)?;
        let built_in = std::fs::read_to_string(dir.join("modules.builtin")).unwrap_or_default();
        let built_in = built_in
            .lines()
            .filter_map(|line| module_name(Path::new(line)))
            .collect();
        Ok(Self { files, built_in })
    }

    /// The named modules and all that they need, in loading order; what is built in is left out.
    ///
    /// # Errors
    /// When a module does not exist or cannot be read.
    pub fn in_load_order(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut ordered = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            self.add(&name.replace('-', "_"), &mut seen, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn add(&self, name: &str, seen: &mut BTreeSet<String>, out: &mut Vec<Module>) -> Result<()> {
        if self.built_in.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self
            .files
            .get(name)
            .with_context(|| format!("kernel has no module {name}"))?;
        let image = read_module(path)?;
        for needed in dependencies(&image) {
            self.add(&needed.replace('-', "_"), seen, out)?;
        }
        out.push(Module {
            name: name.to_owned(),
            image,
        });
        Ok(())
    }
}

fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        // The links back to the build tree are not followed.
        if path.is_dir() && !path.is_symlink() {
            collect(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `kvm_amd` for `kernel/arch/x86/kvm/kvm-amd.ko.xz`.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = [".ko", ".ko.xz", ".ko.zst"]
        .iter()
        .find_map(|suffix| file.strip_suffix(suffix))?;
    Some(stem.replace('-', "_"))
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => {
            return std::fs::read(path).with_context(|| format!("read {}", path.display()));
        }
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => bail!("{} is compressed in an unknown way", path.display()),
    };
    let output = Command::new(tool).args(["-dc"]).arg(path).output();
    let output = output.with_context(|| format!("start {tool} for {}", path.display()))?;
    ensure!(
        output.status.success(),
        "{tool} cannot decompress {}",
        path.display()
    );
    Ok(output.stdout)
}

/// What a module's `.modinfo` says after `depends=`; strings there end with NUL.
fn dependencies(image: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = image.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = image[at + KEY.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    let names = value
        .split(|byte| *byte == b',')
        .filter(|name| !name.is_empty());
    names
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(built_in: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Modules) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("modules.builtin"), built_in).unwrap();
        for (file, depends) in files {
            let path = dir.path().join("kernel").join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("ELF\0license=GPL\0depends={depends}\0")).unwrap();
        }
        let modules = Modules::read(dir.path()).unwrap();
        (dir, modules)
    }

    fn names(modules: &Modules, wanted: &[&str]) -> Vec<String> {
        modules
            .in_load_order(wanted)
            .unwrap()
            .into_iter()
            .map(|module| module.name)
            .collect()
    }

    #[test]
    fn needed_modules_come_first_and_once() {
        let (_dir, modules) = modules(
            "",
            &[
                ("x/kvm-amd.ko", "kvm,ccp"),
                ("x/kvm.ko", "irqbypass"),
                ("i/irqbypass.ko", ""),
                ("ccp.ko", "kvm"),
            ],
        );
        assert_eq!(
            names(&modules, &["kvm-amd", "kvm"]),
            ["irqbypass", "kvm", "ccp", "kvm_amd"]
        );
    }

    #[test]
    fn built_in_modules_are_left_out() {
        let (_dir, modules) = modules("kernel/fs/mb-cache.ko\n", &[("ext4.ko", "mb-cache")]);
        assert_eq!(names(&modules, &["ext4"]), ["ext4"]);
    }

    #[test]
    fn modules_that_need_each_other_end() {
        let (_dir, modules) = modules("", &[("a.ko", "b"), ("b.ko", "a")]);
        assert_eq!(names(&modules, &["a"]), ["b", "a"]);
    }

    #[test]
    fn unknown_module_is_named() {
        let (_dir, modules) = modules("", &[]);
        let error = modules.in_load_order(&["nothing"]).unwrap_err();
        assert!(error.to_string().contains("nothing"));
    }
}
